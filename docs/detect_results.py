"""The tables of measured detection of machine text, from benchmarks/results/detect."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "detect"
SINGLE = {
    "log_rank": "mean log rank",
    "top_10": "tokens of the top 10",
    "log_probability": "mean log-probability",
    "curvature": "curvature (Fast-DetectGPT)",
}
NOTHING = "No run is recorded yet."
LENGTH = "150"  # of the table of single features


def recorded() -> list[Mapping[str, Any]]:
    """All recorded results."""
    return [json.loads(file.read_text("utf-8")) for file in sorted(RESULTS.glob("*.json"))]


def detect_table() -> str:
    """The detector's rates in each test and at each length."""
    return rates_of(recorded())


def single_table() -> str:
    """The rates of single features beside the detector's."""
    return single_of(recorded())


def rates_of(results: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: AUROC with its interval, true and false positives, calibration error."""
    if not results:
        return NOTHING
    columns = ["machine text", "tokens", "texts, human + machine", "AUROC (95 % interval)"]
    columns += ["true positives", "false positives", "calibration error"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for result in results:
        for title, lengths in result["tests"].items():
            for length, own in lengths.items():
                auroc = own["auroc"]
                cells = [
                    title if length == next(iter(lengths)) else "",
                    length,
                    f"{own['num_human']} + {own['num_machine']}",
                    f"{auroc['value']:.3f} ({auroc['low']:.3f} to {auroc['high']:.3f})",
                    _percent(own["true_positives"]),
                    _percent(own["false_positives"]),
                    f"{own['calibration_error']:.3f}",
                ]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def single_of(results: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: AUROC and true positives of the detector and of each feature alone."""
    if not results:
        return NOTHING
    columns = ["machine text", "detector", *SINGLE.values()]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for result in results:
        for title, lengths in result["tests"].items():
            if LENGTH in lengths:
                own = lengths[LENGTH]
                each = [own, *(own["single"][name] for name in SINGLE)]
                cells = [
                    f"{one['auroc']['value']:.3f}, {_percent(one['true_positives'])}"
                    for one in each
                ]
                lines.append(f"| {' | '.join([title, *cells])} |")
    return "\n".join(lines)


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"
