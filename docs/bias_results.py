"""The table of measured bias, from benchmarks/results/bias."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stillhouse.report.bias import verdict
from stillhouse.tasks.metrics import metric_label
from stillhouse.units import MINUS

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "bias"
MODELS = ("teacher", "student", "control")


def bias_table() -> str:
    """The table of all recorded results."""
    return table_of(
        [json.loads(file.read_text("utf-8")) for file in sorted(RESULTS.glob("*.json"))]
    )


def table_of(results: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: for each student the metrics of each set without kinds of bias, with the 95 %
    interval of the change."""
    columns = ["set, metric", "ideal", *MODELS, "student further from ideal by"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for result in results:
        lines.append(f"| **{result['title']}** |" + " |" * (len(columns) - 1))
        for name, own in result["bias"].items():
            for metric, ideal in own["ideal"].items():
                if "/" not in metric:
                    lines.append(_line(name, metric, ideal, own))
    return "\n".join(lines)


def _line(name: str, metric: str, ideal: float, own: Mapping[str, Any]) -> str:
    values = [own["models"].get(model, {}).get(metric) for model in MODELS]
    digits = 3 if all(abs(each["value"]) <= 1 for each in values if each) else 1
    change = own["bias_change"][metric]
    cells = [
        f"{name}, {metric_label(metric)}",
        f"{ideal:g}",
        *(_number(each["value"], digits) if each else "" for each in values),
        f"{_number(change['value'], digits, sign='+')} ({_number(change['low'], digits, sign='+')} "
        f"to {_number(change['high'], digits, sign='+')}): {verdict(change)}",
    ]
    return f"| {' | '.join(cells)} |"


def _number(value: float, digits: int, *, sign: str = "") -> str:
    return f"{value:{sign}.{digits}f}".replace("-", MINUS)
