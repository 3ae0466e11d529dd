"""The comparison of `compare` as a table in a terminal: a column a model, ratios to the first."""

from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table

from stillhouse.evaluation.speed import is_noisy
from stillhouse.wording import counted

NUMBER_WIDTH = 26  # a rate with its ratio
LABEL_WIDTH = 21
Model = dict[str, Any]


def print_comparison(result: dict[str, Any]) -> None:
    """Print on stdout; models that do not fit side by side stand in tables below each other."""
    console = Console()
    models = result["models"]
    console.print(f"On {_text(result)}", markup=False, soft_wrap=False)
    first, *others = models
    beside = max(1, (console.width - LABEL_WIDTH - NUMBER_WIDTH) // NUMBER_WIDTH)
    for start in range(0, max(1, len(others)), beside):
        shown = [first, *others[start : start + beside]]
        console.print(_table({name: models[name] for name in shown}))
    for name, model in models.items():
        if model["diverged"]:
            console.print(
                f"{name}: its loss is not finite, or far above a guess among all tokens: its "
                "training diverged, or its weights are damaged.",
                markup=False,
            )
    if any(_noise(model, key) for model in models.values() for key in ("forward", "generate")):
        console.print(
            "noisy: how far the ratio of the speeds varied; other work was running beside."
        )


def _text(result: dict[str, Any]) -> str:
    """The text, and how it was read."""
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


def _table(models: dict[str, Model]) -> Table:
    table = Table("", *models)
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.justify, column.overflow = "right", "fold"
    first = next(iter(models.values()))
    for label, read, show in _MEASURES:
        values = [read(model) for model in models.values()]
        if any(value is not None for value in values):
            table.add_row(label, *(_against(value, values[0], show) for value in values))
        noise = [_noise(model, _NOISY.get(label, "")) for model in models.values()]
        if any(noise):
            table.add_row("", *noise)
    if any(model["loss_minus_first"] for model in models.values() if model is not first):
        table.add_row("loss less the first's", *map(_difference, models.values()))
    if any(model["diverged"] for model in models.values()):
        states = ["diverged" if model["diverged"] else "" for model in models.values()]
        table.add_row("state", *states)
    return table


def _quality(key: str) -> Callable[[Model], float | None]:
    return lambda model: model["perplexity"][key] if model["perplexity"] else None


def _rate(value: float) -> str:
    """Three digits at least: ratios are read from them."""
    return f"{value:,.0f} tokens/s" if value >= 100 else f"{value:.3g} tokens/s"


_MEASURES: list[tuple[str, Callable[[Model], float | None], Callable[[float], str]]] = [
    ("parameters", lambda model: model["parameters"] / 1e6, "{:.1f} M".format),
    ("size on disk", lambda model: model["size_bytes"] / 1e6, "{:.1f} MB".format),
    ("reads", lambda model: model["speed"]["forward_tokens_per_second"], _rate),
    ("writes", lambda model: model["speed"]["generate_tokens_per_second"], _rate),
    (
        "peak memory",
        lambda model: (model["peak_memory_bytes"] or 0) / 1e6 or None,
        "{:.0f} MB".format,
    ),
    ("masked loss", lambda model: model["masked_loss"], "{:.3f} nats".format),
    ("perplexity per token", _quality("token"), "{:.2f}".format),
    ("perplexity per word", _quality("word"), "{:,.1f}".format),
    ("bits per byte", _quality("bits_per_byte"), "{:.3f}".format),
]
_NOISY = {"reads": "forward", "writes": "generate"}


def _against(value: float | None, base: float | None, show: Callable[[float], str]) -> str:
    if value is None:
        return ""
    ratio = f" ({value / base:.2f}x)" if base and value is not base else ""
    return show(value) + ratio


def _noise(model: Model, key: str) -> str:
    """The range of a ratio that is not well known."""
    interval = model["speed"]["ratio_to_first"].get(key)
    return f"noisy: {interval[0]:.2f}x to {interval[1]:.2f}x" if is_noisy(interval) else ""


def _difference(model: Model) -> str:
    found = model["loss_minus_first"]
    if found is None or found["value"] is None:
        return ""
    interval = f" ({found['low']:+.3f} to {found['high']:+.3f})" if found["low"] is not None else ""
    return f"{found['value']:+.3f}{interval}"
