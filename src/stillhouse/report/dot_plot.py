"""Every model on one axis of quality: a dot per seed, and the median as a bar."""

from collections.abc import Sequence
from dataclasses import dataclass

from stillhouse.recipe import Recipe
from stillhouse.report.results import SeedResult, label_of, main_metric, models_of, spread
from stillhouse.report.svg import ticks


@dataclass(frozen=True)
class Row:
    """One model: the position of each seed's dot, the range, the median and its text."""

    model: str
    y: int
    dots: Sequence[float]
    span: tuple[float, float, float]
    text: str


@dataclass(frozen=True)
class DotPlot:
    """A drawing in SVG units; a narrow one has the models' names above the rows."""

    title: str
    width: int
    start: int
    bottom: int
    ticks: Sequence[tuple[float, str]]
    rows: Sequence[Row]

    @property
    def description(self) -> str:
        return "; ".join(f"{label_of(row.model)}: {row.text}" for row in self.rows)


def dot_plots(recipe: Recipe, results: Sequence[SeedResult]) -> list[DotPlot]:
    """The drawings for wide and for narrow screens; none where nothing is finite."""
    sizes = ((880, 190, 38, 100), (390, 12, 54, 70))
    found = [_plot(recipe, results, *size) for size in sizes]
    return [plot for plot in found if plot is not None]


def _plot(
    recipe: Recipe, results: Sequence[SeedResult], width: int, start: int, height: int, gap: int
) -> DotPlot | None:
    metric, end = main_metric(recipe), width - 84
    values = {
        model: [result.value(model, metric.key) for result in results]
        for model in models_of(results)
    }
    present = [value for found in values.values() for value in found if value is not None]
    if not present:
        return None
    low, high = min(present), max(present)
    pad = (high - low) * 0.12 or abs(high) * 0.1 or 1.0
    low, high = low - pad, high + pad

    def x(value: float) -> float:
        return start + (value - low) / (high - low) * (end - start)

    rows = []
    for index, (model, found) in enumerate(values.items()):
        middle = spread(found)
        span = (x(middle.low), x(middle.median), x(middle.high)) if middle else (0.0, 0.0, 0.0)
        text = metric.unit.show(middle.median) if middle else "no finite value"
        dots = [x(value) for value in found if value is not None]
        rows.append(Row(model, index * height + height - 16, dots, span, text))
    marks = [(x(value), f"{value:.4g}") for value in ticks(low, high, (end - start) // gap)]
    return DotPlot(metric.label, width, start, len(rows) * height + 6, marks, rows)
