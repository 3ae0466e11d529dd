"""The table of measured mixtures over languages, from benchmarks/results/multilingual."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stillhouse.units import TIMES

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "multilingual"
MODELS = ("teacher", "student", "control")
NOTHING = "No run is recorded yet."


def multilingual_table() -> str:
    """The table of all recorded results, the largest exponent first."""
    found = [json.loads(file.read_text("utf-8")) for file in sorted(RESULTS.glob("*.json"))]
    return table_of(sorted(found, key=lambda each: (-each["exponent"], each["seed"])))


def table_of(results: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: of each exponent and language how it is drawn, how it is tokenized, and the loss of
    each model."""
    if not results:
        return NOTHING
    columns = ["exponent", "language", "training tokens", "drawn", "share", "tokens per word"]
    columns += [f"{model}, bits per byte" for model in MODELS]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for result in results:
        for name, own in result["languages"].items():
            bits = own["bits_per_byte"]
            cells = [
                f"{result['exponent']:g}" if name == next(iter(result["languages"])) else "",
                name,
                f"{own['tokens']:,}",
                f"{own['repeats']:.2f}{TIMES}",
                f"{own['share']:.1%}",
                f"{own['tokens_per_word']:.2f}",
                *(f"{bits[model]:.3f}" if model in bits else "" for model in MODELS),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
