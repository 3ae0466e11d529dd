"""The result of `compare` in a terminal: a column for each model, with ratios to the first."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from stillhouse import terminal, units
from stillhouse.evaluation.metrics.base import Metric, read
from stillhouse.evaluation.metrics.registry import METRICS
from stillhouse.evaluation.metrics.speed import is_noisy
from stillhouse.wording import counted

NUMBER_WIDTH = 26  # a rate with its ratio
LABEL_WIDTH = 21
Models = Mapping[str, dict[str, Any]]


def print_comparison(result: dict[str, Any]) -> None:
    """Print on stdout; models that do not fit side by side are in tables below each other."""
    models: Models = result["models"]
    first, *others = models
    beside = max(1, (Console().width - LABEL_WIDTH - NUMBER_WIDTH) // NUMBER_WIDTH)
    parts: list[terminal.Part] = [Text(f"On {_text(result)}")]
    parts += [
        _table({name: models[name] for name in [first, *others[start:][:beside]]})
        for start in range(0, max(1, len(others)), beside)
    ]
    parts += [
        Text(
            f"{name}: the loss is not finite, or far above that of a uniform guess: its training "
            "diverged, or its weights are damaged."
        )
        for name, model in models.items()
        if model["diverged"]
    ]
    intervals = [read(model, each.interval) for model in models.values() for each in METRICS]
    if any(map(is_noisy, intervals)):
        parts.append(Text("noisy: the range of the speed ratio; other work ran on the machine."))
    terminal.show(*parts)


def _text(result: dict[str, Any]) -> str:
    """The text, and how it was scored."""
    facts, model = result["protocol"], next(iter(result["models"].values()))
    parts = [result["text"]]
    if "documents" in facts:
        parts.append(counted(facts["documents"], "document"))
    if model["perplexity"]:
        parts.append(f"{counted(model['perplexity']['tokens_scored'], 'token')} of the first model")
    if "perplexity_block" in facts:
        parts.append(f"in blocks of {counted(facts['perplexity_block'], 'token')}")
    else:
        parts.append(f"in masked sequences of {counted(facts['sequence_length'], 'token')}")
    return ", ".join(parts)


def _table(models: Models) -> Table:
    rows = [row for metric in METRICS if metric.compared for row in _rows(metric, models)]
    rows.append(["Loss minus the first", *map(_difference, models.values())])
    rows.append(["State", *("diverged" if each["diverged"] else "" for each in models.values())])
    return terminal.table(["", *models], [row for row in rows if any(row[1:])], wrap=True)


def _rows(metric: Metric, models: Models) -> list[Sequence[str]]:
    """A metric of every model with its ratio to the first, and the range of a noisy ratio."""
    values = [read(model, metric.key) for model in models.values()]
    intervals = [read(model, metric.interval) for model in models.values()]
    return [
        [metric.label, *(_with_ratio(metric, value, values[0]) for value in values)],
        ["", *(_range(each) if is_noisy(each) else "" for each in intervals)],
    ]


def _with_ratio(metric: Metric, value: int | float | None, base: int | float | None) -> str:
    if value is None:
        return ""
    ratio = f" ({value / base:.2f}{units.TIMES})" if base and value is not base else ""
    return metric.unit.show(value) + ratio


def _range(interval: Sequence[float]) -> str:
    low, high = interval
    return f"noisy: {units.between(low, high, units.times)}"


def _difference(model: dict[str, Any]) -> str:
    found = model["loss_minus_first"]
    if found is None or found["value"] is None:
        return ""
    interval = f" ({found['low']:+.3f} to {found['high']:+.3f})" if found["low"] is not None else ""
    return f"{found['value']:+.3f}{interval}"
