"""The table of students of a real teacher, from benchmarks/results/real-teacher."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "real-teacher"
CONTROLS = {
    "control": "its control: same tokens, no teacher",
    "control_same_time": "its control: same training time, no teacher",
}
SETS = {
    "lambada": "LAMBADA",
    "arc_easy": "ARC-easy",
    "piqa": "PIQA",
    "openbookqa": "OpenBookQA",
    "winogrande": "Winogrande",
}
Result = Mapping[str, Any]


def recorded() -> list[Result]:
    return [json.loads(file.read_text("utf-8")) for file in sorted(RESULTS.glob("*.json"))]


def real_teacher_table() -> str:
    """The table of all recorded results."""
    return table_of(recorded())


def real_teacher_summary() -> str:
    """The short table of the students that were scored."""
    return summary_of(recorded())


def table_of(results: Sequence[Result]) -> str:
    """Markdown: the teacher, then each student and its controls, means over its seeds; the largest
    and longest trained student first."""
    students = _by_student(results)
    with_scores = [own for own in students.values() if own[0]["zero_shot"]]
    columns = ["", "parameters", "tokens (minutes)", "WikiText-2, nats", *SETS.values()]
    columns += ["gain over chance kept", "generation"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    lines.append(_line("teacher", [*with_scores, *students.values()][0], "teacher"))
    for own in students.values():
        lines.append(_line(f"**{own[0]['title']}**", own, "student"))
        lines += [
            _line(label, own, control)
            for control, label in CONTROLS.items()
            if control in own[0]["models"]
        ]
    return "\n".join(lines)


def summary_of(results: Sequence[Result]) -> str:
    """Markdown: the teacher, each student that was scored on the data sets, and its controls: size,
    speed, loss and the share of the gain over chance, means over seeds."""
    students = _by_student([each for each in results if each["zero_shot"]])
    columns = ["", "parameters", "generation throughput", "WikiText-2 loss, nats"]
    columns += ["gain over chance kept, 5 data sets"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    first = next(iter(students.values()))
    lines.append(_short_line("teacher: SmolLM2-135M-Instruct", first, "teacher"))
    for own in students.values():
        seeds = f", {len(own)} seeds" if len(own) > 1 else ", 1 seed"
        lines.append(_short_line(f"**student**: {own[0]['title']}{seeds}", own, "student"))
        lines += [
            _short_line(label.replace("its control", "control"), own, control)
            for control, label in CONTROLS.items()
            if control in own[0]["models"]
        ]
    return "\n".join(lines)


def _short_line(label: str, results: Sequence[Result], model: str) -> str:
    cells = [
        label,
        _parameters(results, model),
        "1x" if model == "teacher" else _generation(results, model),
        _wikitext(results, model),
        "" if model == "teacher" else _mean_kept(results, model),
    ]
    return f"| {' | '.join(cells)} |"


def _by_student(results: Sequence[Result]) -> dict[str, list[Result]]:
    """The seeds of each student, the largest and longest trained first."""
    found: dict[str, list[Result]] = {}
    for result in sorted(results, key=_size, reverse=True):
        found.setdefault(result["student"], []).append(result)
    return found


def _size(result: Result) -> tuple[int, int]:
    """What rows are sorted by; seeds of one student keep their order."""
    return result["models"]["student"]["parameters"], result["trainings"]["student"]["tokens"]


def _line(label: str, results: Sequence[Result], model: str) -> str:
    seeds = f", {len(results)} seeds" if model == "student" and len(results) > 1 else ""
    cells = [
        f"{label}{seeds}",
        _parameters(results, model),
        _training(results, model),
        _wikitext(results, model),
        *(_score(results, model, name) for name in SETS),
        "" if model == "teacher" else _kept(results, model),
        _generation(results, model),
    ]
    return f"| {' | '.join(cells)} |"


def _parameters(results: Sequence[Result], model: str) -> str:
    own, teacher = (results[0]["models"][name]["parameters"] for name in (model, "teacher"))
    return f"{own / 1e6:.1f} M" + ("" if model == "teacher" else f" ({own / teacher:.0%})")


def _training(results: Sequence[Result], model: str) -> str:
    own = [each["trainings"][model] for each in results if model in each["trainings"]]
    if not own:
        return ""
    tokens = round(statistics.mean(each["tokens"] for each in own))
    return f"{tokens:,} ({statistics.mean(each['seconds'] for each in own) / 60:.0f})"


def _wikitext(results: Sequence[Result], model: str) -> str:
    """The loss on WikiText-2, and how far it is above the teacher's."""
    losses = [_loss(each, model) for each in results]
    mean = f"{statistics.mean(losses):.3f}"
    if model == "teacher":
        return mean
    above = statistics.mean(
        own - _loss(each, "teacher") for own, each in zip(losses, results, strict=True)
    )
    return f"{mean} ({above:+.3f})"


def _loss(result: Result, model: str) -> float:
    (figures,) = result["models"][model]["perplexity_of"].values()
    return math.log(figures["token"])


def _score(results: Sequence[Result], model: str, name: str) -> str:
    if not all(each["zero_shot"] for each in results):
        return ""
    own = [each["zero_shot"]["sets"][name] for each in results]
    return f"{statistics.mean(each['models'][model][each['metric']]['value'] for each in own):.1%}"


def _kept(results: Sequence[Result], model: str) -> str:
    """The share of the teacher's mean gain over chance, by seed, each with its interval."""
    if not all(each["zero_shot"] for each in results):
        return ""
    shares = [each["zero_shot"]["gain_kept"][model] for each in results]
    if None in shares:
        return "teacher at chance"
    return ", ".join(
        f"{each['value']:.0%} ({each['low']:.0%} to {each['high']:.0%})" for each in shares
    )


def _mean_kept(results: Sequence[Result], model: str) -> str:
    """The mean over seeds with their range; of one seed its interval."""
    shares = [each["zero_shot"]["gain_kept"][model] for each in results]
    if len(shares) == 1 or None in shares:
        return _kept(results, model)
    values = [each["value"] for each in shares]
    return f"{statistics.mean(values):.0%} ({min(values):.0%} to {max(values):.0%})"


def _generation(results: Sequence[Result], model: str) -> str:
    """Generation throughput in float32 over the teacher's, the median over seeds."""
    if model not in ("teacher", "student"):
        return ""
    ratios = [
        own / teacher
        for each in results
        if (own := each["models"][model]["speed"]["generate_tokens_per_second"])
        and (teacher := each["models"]["teacher"]["speed"]["generate_tokens_per_second"])
    ]
    return f"{statistics.median(ratios):.2f}x" if ratios else ""
