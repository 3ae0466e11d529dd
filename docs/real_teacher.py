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


def real_teacher_table() -> str:
    """The table of all recorded results."""
    return table_of(
        [json.loads(file.read_text("utf-8")) for file in sorted(RESULTS.glob("*.json"))]
    )


def table_of(results: Sequence[Result]) -> str:
    """Markdown: the teacher, then each student and its controls, means over its seeds; the largest
    and longest trained student first."""
    students: dict[str, list[Result]] = {}
    for result in sorted(results, key=_size, reverse=True):
        students.setdefault(result["student"], []).append(result)
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


def _size(result: Result) -> tuple[int, int]:
    """What rows are sorted by; seeds of one student keep their order."""
    return result["models"]["student"]["parameters"], result["trainings"]["student"]["tokens"]


def _line(label: str, results: Sequence[Result], model: str) -> str:
    first, size = results[0]["models"][model], results[0]["models"]["teacher"]["parameters"]
    share = "" if model == "teacher" else f" ({first['parameters'] / size:.0%})"
    seeds = f", {len(results)} seeds" if model == "student" and len(results) > 1 else ""
    cells = [
        f"{label}{seeds}",
        f"{first['parameters'] / 1e6:.1f} M{share}",
        _training(results, model),
        _wikitext(results, model),
        *(_score(results, model, name) for name in SETS),
        "" if model == "teacher" else _kept(results, model),
        _generation(results, model),
    ]
    return f"| {' | '.join(cells)} |"


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
