"""Where each model stands on one axis of quality: a dot per seed, and the median as a bar."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from stillhouse.recipe import Recipe
from stillhouse.report import units
from stillhouse.report.results import (
    SeedResult,
    label_of,
    models_of,
    scored_text,
    spread,
    spread_of,
)
from stillhouse.report.svg import ticks


@dataclass(frozen=True)
class _Strip:
    """The drawing's measures in SVG units. A narrow one has its names above the rows."""

    width: int
    start: int
    row: int
    low: float
    high: float
    causal: bool

    @property
    def right(self) -> int:
        return self.width - 84

    @property
    def names_above(self) -> bool:
        return self.start < 100

    def x(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.right - self.start)

    def show(self, value: float) -> str:
        return units.perplexity(value) if self.causal else units.nats(value)


def dot_plot(recipe: Recipe, results: Sequence[SeedResult]) -> str:
    """The figure as HTML, for wide and for narrow screens; empty where nothing is finite."""
    causal = recipe.tokens.language_modeling == "causal"
    path = "perplexity.token" if causal else "masked_loss"
    name = "Perplexity per token" if causal else "Masked loss per token, in nats"
    models = models_of(results)
    present = [found for model in models if (found := spread_of(results, model, path))]
    if not present:
        return ""
    low, high = min(each.low for each in present), max(each.high for each in present)
    pad = (high - low) * 0.12 or abs(high) * 0.1 or 1.0
    wide = _Strip(880, 190, 38, low - pad, high + pad, causal)
    narrow = _Strip(390, 12, 54, low - pad, high + pad, causal)
    seeds = " Each dot is one seed, the bar their median." if len(results) > 1 else ""
    return (
        f"<figure><figcaption><b>{name}</b><small>On {escape(scored_text(recipe))}. Lower is "
        f"better, so left is better.{seeds}</small></figcaption>"
        f'<div class="wide">{_draw(wide, results, path, name)}</div>'
        f'<div class="narrow">{_draw(narrow, results, path, name)}</div></figure>'
    )


def _draw(strip: _Strip, results: Sequence[SeedResult], path: str, name: str) -> str:
    models = models_of(results)
    floor = len(models) * strip.row + 6
    parts, described = [], []
    for value in ticks(
        strip.low, strip.high, (strip.right - strip.start) // (70 if strip.names_above else 100)
    ):
        x = strip.x(value)
        parts.append(
            f'<path class="grid" d="M{x:.1f} 6V{floor}"/><text class="tick" x="{x:.1f}" '
            f'y="{floor + 20}" text-anchor="middle">{value:.4g}</text>'
        )
    for index, model in enumerate(models):
        values = [result.value(model, path) for result in results]
        parts.append(_row(strip, model, values, index * strip.row + strip.row - 16))
        found = spread(values)
        shown = strip.show(found.median) if found else "no finite value"
        described.append(f"{label_of(model)}: {shown}")
    identifier = f"standing-{strip.width}"
    return (
        f'<svg viewBox="0 0 {strip.width} {floor + 30}" role="img" '
        f'aria-labelledby="{identifier}-title {identifier}-desc">'
        f'<title id="{identifier}-title">{escape(name)}: lower is better</title>'
        f'<desc id="{identifier}-desc">{escape("; ".join(described))}</desc>{"".join(parts)}</svg>'
    )


def _row(strip: _Strip, model: str, values: Sequence[float | None], y: int) -> str:
    css = escape(model)
    name_x, name_y = (0, y - 17) if strip.names_above else (0, y + 5)
    parts = [
        f'<text class="label {css}" x="{name_x}" y="{name_y}">{escape(label_of(model))}</text>'
    ]
    found = spread(values)
    if found is None:
        parts.append(f'<text class="tick" x="{strip.start}" y="{y + 5}">no finite value</text>')
        return "".join(parts)
    if found.low < found.high:
        parts.append(
            f'<path class="span {css}" d="M{strip.x(found.low):.1f} {y}'
            f'H{strip.x(found.high):.1f}"/>'
            f'<path class="median {css}" d="M{strip.x(found.median):.1f} {y - 11}v22"/>'
        )
    parts += [
        f'<circle class="dot {css}" cx="{strip.x(value):.1f}" cy="{y}" r="6"/>'
        for value in values
        if value is not None
    ]
    parts.append(
        f'<text class="value" x="{strip.x(found.high) + 14:.1f}" y="{y + 5}">'
        f"{escape(strip.show(found.median))}</text>"
    )
    return "".join(parts)
