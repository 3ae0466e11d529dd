"""Where each model stands on one axis of quality: a dot per seed, the median as a bar."""

from collections.abc import Sequence
from html import escape

from stillhouse.recipe import Recipe
from stillhouse.report import units
from stillhouse.report.results import SeedResult, label_of, models_of, spread, spread_of
from stillhouse.report.svg import ticks

ROW = 38
AXIS = 44


def draw_standing(recipe: Recipe, results: Sequence[SeedResult]) -> str:
    """The figure as HTML, for wide and for narrow screens; empty where nothing is finite."""
    causal = recipe.tokens.language_modeling == "causal"
    path, name = (
        ("perplexity.token", "Perplexity per token")
        if causal
        else ("masked_loss", "Masked loss in nats")
    )
    if all(spread_of(results, model, path) is None for model in models_of(results)):
        return ""
    title = f"{name}, validation split: lower is better"
    wide = _strip(results, path, title, width=880, left=190, causal=causal)
    narrow = _strip(results, path, title, width=390, left=4, causal=causal)
    dots = "; a dot is one seed, the bar their median" if len(results) > 1 else ""
    return (
        f"<figure><figcaption><b>{escape(name)}</b><small>Lower is better, so left is better"
        f'{dots}.</small></figcaption><div class="wide">{wide}</div><div '
        f'class="narrow">{narrow}</div></figure>'
    )


def _strip(
    results: Sequence[SeedResult], path: str, title: str, *, width: int, left: int, causal: bool
) -> str:
    models = models_of(results)
    values = {model: [result.value(model, path) for result in results] for model in models}
    present = [value for row in values.values() for value in row if value is not None]
    low, high = min(present), max(present)
    pad = (high - low) * 0.12 or abs(high) * 0.1 or 1.0
    low, high = low - pad, high + pad
    right = width - 84
    # On a narrow screen the names stand above their rows instead of left of them.
    row = ROW if left > 100 else ROW + 16
    show = units.perplexity if causal else units.nats
    start = left if left > 100 else 12
    floor = len(models) * row + 6

    def place(value: float) -> float:
        return start + (value - low) / (high - low) * (right - start)

    parts = []
    for value in ticks(low, high, (right - start) // 100):
        x = place(value)
        parts.append(f'<path class="grid" d="M{x:.1f} 6V{floor}"/>')
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{floor + 20}" '
            f'text-anchor="middle">{value:.4g}</text>'
        )
    for index, model in enumerate(models):
        y = index * row + row - 16
        parts.append(
            _row(model, values[model], place, y, label_x=(0, y + 5) if left > 100 else (0, y - 17))
        )
        found = spread(values[model])
        text = show(found.median) if found else "not finite"
        x = place(found.median) + 14 if found else start
        if found:
            x = max(place(value) for value in values[model] if value is not None) + 14
        parts.append(f'<text class="value" x="{x:.1f}" y="{y + 5}">{escape(text)}</text>')
    identifier = f"standing-{width}"
    described = ", ".join(
        f"{label_of(model)} "
        f"{show(found.median) if (found := spread(values[model])) else 'not finite'}"
        for model in models
    )
    return (
        f'<svg viewBox="0 0 {width} {floor + AXIS - 14}" role="img" '
        f'aria-labelledby="{identifier}-title {identifier}-desc">'
        f'<title id="{identifier}-title">{escape(title)}</title>'
        f'<desc id="{identifier}-desc">{escape(described)}</desc>{"".join(parts)}</svg>'
    )


def _row(model, values, place, y, *, label_x) -> str:
    present = [value for value in values if value is not None]
    css = model if model.isidentifier() else "other"
    parts = [
        f'<text class="label {css}" x="{label_x[0]}" '
        f'y="{label_x[1]}">{escape(label_of(model))}</text>'
    ]
    if len(present) > 1:
        found = spread(values)
        assert found is not None
        parts.append(
            f'<path class="span {css}" d="M{place(found.low):.1f} {y}H{place(found.high):.1f}"/>'
            f'<path class="median {css}" d="M{place(found.median):.1f} {y - 11}v22"/>'
        )
    parts += [f'<circle class="dot {css}" cx="{place(v):.1f}" cy="{y}" r="6"/>' for v in present]
    return "".join(parts)
