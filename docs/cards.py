"""The cards of docs/results/cards.md: one for each packaged recipe in benchmarks/results/recipes,
and one for each student in benchmarks/results/real-teacher that was scored.

A card states what the file records, and leaves out what it does not.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from real_teacher import CONTROLS, RESULTS, SETS, recorded

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "benchmarks" / "recipes" / "smollm2.yaml"
PAGE = ROOT / "docs" / "results"
RECIPES = ROOT / "benchmarks" / "results" / "recipes"
TIMES = ROOT / "benchmarks" / "results" / "time-to-teacher"
Result = Mapping[str, Any]


def cards() -> str:
    """Markdown: a table for each packaged recipe, then for each student of the real teacher, the
    longest trained first."""
    files = sorted(RECIPES.glob("*.json"), key=lambda file: (file.stem != "quickstart", file.stem))
    own = [recipe_card(json.loads(file.read_text("utf-8")), file) for file in files]
    scored = [each for each in recorded() if each["zero_shot"]]
    order = sorted(scored, key=lambda each: -each["trainings"]["student"]["tokens"])
    return "\n\n".join([*own, *(_card(result) for result in order)])


def leaderboard() -> str:
    """Markdown: the shortest training that reaches the wanted share of the teacher, by machine."""
    columns = ["recipe", "machine", "time", "tokens", "teacher's loss over student's", "commit"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    found = [json.loads(file.read_text("utf-8")) for file in sorted(TIMES.glob("*.json"))]
    if not found:
        return "No run is recorded yet."
    order = sorted(found, key=lambda each: (each["recipe"], each["trials"][-1]["seconds"]))
    for result in order:
        best = result["trials"][-1]
        reached = best["share"] >= result["wanted"]
        minutes = f"{best['seconds'] / 60:.1f} min"
        cells = [
            f"`{result['recipe']}`",
            _machine(result),
            minutes if reached else f"not in {minutes}",
            f"{best['tokens']:,}",
            f"{best['share']:.3f}",
            f"`{result['commit'][:12]}`",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def recipe_card(result: Result, file: Path) -> str:
    """The card of a packaged recipe."""
    title = f"`{result['recipe']}`, seed {result['seed']}"
    rows = [("teacher", f"`{result['teacher']}`")] if result["teacher"] else []
    for name, own in result["tasks"].items():
        rows += _task_rows(name, own)
    if "models" in result:
        tokens = result["trainings"]["student"]["tokens"]
        size = f"{_millions(result, 'student')}, teacher {_millions(result, 'teacher')}"
        rows += [
            ("student", size),
            ("data", f"{', '.join(result['data'])}; {tokens:,} tokens"),
            *_text_rows(result),
        ]
    peak = f"{result['peak_memory_bytes'] / 1e9:.1f} GB, peak of the process"
    return _table(title, [*rows, ("memory", peak), *_origin_rows(result, file)])


def _task_rows(name: str, task: Result) -> list[tuple[str, str]]:
    """A task's data, trainings, and the scores of its models on each split."""
    data, metric = task["data"], task["metric"]
    examples = f", {data['examples']:,} of its examples" if data["examples"] else ""
    unlabeled = f", labels ignored for {data['unlabeled']:,} more" if data["unlabeled"] else ""
    rows = [("data", f"{data['train']}{examples}{unlabeled}")]
    for model, own in task["trainings"].items():
        costs = task["costs"].get(model)
        size = f"{costs['parameters'] / 1e6:.1f} M parameters; " if costs else ""
        training = f"{size}{own['steps']:,} steps in {own['seconds'] / 60:.1f} min"
        rows.append((f"{name}, {model}", training))
    for split, found in task["splits"].items():
        for kind in ("models", "differences"):
            for label, own in found[kind].items():
                value = own[metric]
                interval = f"{value['low']:.3f} to {value['high']:.3f}"
                rows.append((f"{metric} on {split}, {label}", f"{value['value']:.3f} ({interval})"))
    return rows


def _text_rows(result: Result) -> list[tuple[str, str]]:
    """Training and scores of a language model."""
    return [
        ("training", _training(result)),
        ("utilization", _utilization(result)),
        ("held-out text", _loss(result)),
        *(
            (f"student minus {_words(name)}", _difference(result, name))
            for name in result["intervals"]
        ),
        ("generation", _generation(result)),
    ]


def _origin_rows(result: Result, file: Path) -> list[tuple[str, str]]:
    return [
        ("machine", _machine(result)),
        ("command", f"`{result['command']}`"),
        ("commit", f"`{result['commit'][:12]}`"),
        ("raw numbers", f"[{file.name}]({os.path.relpath(file, PAGE)})"),
    ]


def _table(title: str, rows: Sequence[tuple[str, str]]) -> str:
    lines = [f"### {title}", "", "| | |", "|---|---|"]
    return "\n".join([*lines, *(f"| {name} | {value} |" for name, value in rows if value)])


def _card(result: Result) -> str:
    rows = [
        ("teacher", f"SmolLM2-135M-Instruct, {_millions(result, 'teacher')}"),
        ("student", f"{result['title']}, {_millions(result, 'student')}"),
        ("data", _data(result)),
        *_text_rows(result),
        ("memory", _memory(result)),
        ("WikiText-2, nats per token", _wikitext(result)),
        ("zero-shot", _zero_shot(result)),
        ("gain over chance kept", _kept(result)),
        *_origin_rows(result, _files()[result["command"]]),
    ]
    return _table(f"{result['title']}, seed {result['seed']}", rows)


def _millions(result: Result, model: str) -> str:
    own = result["models"][model]["parameters"]
    share = own / result["models"]["teacher"]["parameters"]
    return f"{own / 1e6:.1f} M parameters" + ("" if model == "teacher" else f" ({share:.0%})")


def _data(result: Result) -> str:
    text = RECIPE.read_text(encoding="utf-8")
    corpus = text.partition(" on ")[2].partition(";")[0]  # the recipe's first line says what it is
    length = yaml.safe_load(text)["tokens"]["sequence_length"]
    tokens = result["trainings"]["student"]["tokens"]
    return f"{corpus}; {tokens:,} tokens in sequences of {length}"


def _training(result: Result) -> str:
    own = result["trainings"]["student"]
    return f"{own['steps']:,} steps in {own['seconds'] / 60:.0f} min"


def _utilization(result: Result) -> str:
    own = result["trainings"]["student"]
    return f"MFU {own['mfu']:.0%}" if "mfu" in own else ""


def _memory(result: Result) -> str:
    peak = result["models"]["student"].get("peak_memory_bytes")
    return f"{peak / 1e9:.1f} GB, peak of loading and one forward pass" if peak else ""


def _loss(result: Result) -> str:
    own, theirs = (result["models"][name]["validation_loss"] for name in ("student", "teacher"))
    return f"{own:.3f} nats per token, teacher {theirs:.3f}"


def _difference(result: Result, name: str) -> str:
    found = result["intervals"][name]
    if found is None:
        return ""
    low, high = found["low"], found["high"]
    return (
        f"{found['value']:+.3f} nats (95 % interval {low:+.3f} to {high:+.3f}); below 0 is better"
    )


def _wikitext(result: Result) -> str:
    models = ("student", "teacher", *(name for name in CONTROLS if name in result["models"]))
    losses = []
    for name in models:
        (figures,) = result["models"][name]["perplexity_of"].values()
        losses.append(f"{_words(name)} {math.log(figures['token']):.3f}")
    return ", ".join(losses)


def _zero_shot(result: Result) -> str:
    if not result["zero_shot"]:
        return ""
    parts = []
    for name, title in SETS.items():
        own = result["zero_shot"]["sets"][name]
        values = [own["models"][model][own["metric"]] for model in ("student", "teacher")]
        student, teacher = values
        interval = f"{student['low']:.1%} to {student['high']:.1%}"
        parts.append(f"{title} {student['value']:.1%} ({interval}), teacher {teacher['value']:.1%}")
    return "<br>".join(parts)


def _kept(result: Result) -> str:
    if not result["zero_shot"]:
        return ""
    kept: Mapping[str, Any] = result["zero_shot"]["gain_kept"]
    return ", ".join(
        f"{_words(name)} {each['value']:.0%} ({each['low']:.0%} to {each['high']:.0%})"
        for name, each in kept.items()
        if each
    )


def _generation(result: Result) -> str:
    student, teacher = (
        (result["models"][name]["speed"] or {}).get("generate_tokens_per_second")
        for name in ("student", "teacher")
    )
    if student is None or teacher is None:
        return ""
    return f"{student:.1f} tokens/s in float32, teacher {teacher:.1f}"


def _machine(result: Result) -> str:
    own = result["machine"]
    instructions = f", {own['instruction_set']}" if "instruction_set" in own else ""
    name = own["processor"].replace("(R)", "")
    return f"{own['cores']} cores of {name}{instructions}, {own['memory_bytes'] / 1e9:.0f} GB"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _files() -> dict[str, Path]:
    """The file of each command."""
    files: Sequence[Path] = sorted(RESULTS.glob("*.json"))
    return dict(zip((each["command"] for each in recorded()), files, strict=True))
