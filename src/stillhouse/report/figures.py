"""The figures of a run: every model on one axis of quality, loss over tokens, student minus
control, and each term of the objective.

Long runs are drawn with about 400 points. A bucket keeps its lowest and highest value, so a spike
is never lost; a value that was not finite is marked with a cross and counted in the caption.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from stillhouse import units
from stillhouse.recipe import Recipe
from stillhouse.report.results import (
    CONTROLS,
    SeedResult,
    label_of,
    main_metric,
    models_of,
    scored_text,
    spread,
)
from stillhouse.report.svg import Chart, Line, Point, ticks
from stillhouse.wording import counted

NUM_POINTS = 400
# The frame is fitted to what follows this share of the tokens: the first steps fall from ln(V).
WARM_UP_SHARE = 0.2


@dataclass(frozen=True)
class Series:
    """One quantity of one training over its tokens.

    Attributes:
        color: CSS class of the curve.
        not_finite: Tokens at which the value was not finite.
        shows_value: Whether the label at the curve's end states its last value.
    """

    color: str
    label: str
    points: list[Point]
    not_finite: Sequence[float] = ()
    shows_value: bool = True


@dataclass(frozen=True)
class Figure:
    """A chart with its caption; a wide one has a second drawing for narrow screens, where scaled
    text would be too small."""

    title: str
    caption: str
    chart: Chart
    narrow: Chart | None = None


def training_figures(recipe: Recipe, results: Sequence[SeedResult]) -> list[Figure]:
    """The wide figures of the losses, then a small one for each quantity that was logged."""
    models, losses = ["student", *CONTROLS], recipe.distillation.losses.active()
    small: list[tuple[Sequence[str], str, str, Callable[[float], str]]] = [
        *((models[:1], term, f"{_words(term)}, unweighted", _short) for term in losses),
        (models[:1], "loss", "Weighted sum of the terms", _short),
        (models, "learning_rate", "Learning rate", _short),
        (models, "grad_norm", "Gradient norm", _short),
        (models, "tokens_per_second", "Tokens per second", _tick_count),
    ]
    figures = [_loss_figure(recipe, results), _difference_figure(recipe, results)]
    for shown, key, title, show in small:
        found = [each for model in shown for each in all_series(results, model, key)]
        figures.append(figure(title, found, show=show, wide=False))
    return [each for each in figures if each is not None]


def figure(
    title: str,
    found: Sequence[Series],
    caption: str = "",
    *,
    show: Callable[[float], str] = "{:.4g}".format,
    wide: bool = True,
    zero_line: bool = False,
) -> Figure | None:
    """Curves over tokens; None without any."""
    if not found:
        return None
    lines, labeled = [], set()
    for series in found:
        curve, label = smooth(series.points), ""
        if curve and series.label not in labeled:
            labeled.add(series.label)
            label = f"{series.label}\n{show(curve[-1][1]) if series.shows_value else ''}"
        raw = thin(series.points)
        lines.append(Line(series.color, label, thin(curve), raw, series.not_finite))
    top, cut = _frame_top(lines)
    notes = [caption] if caption else []
    if cut:
        notes.append(f"The first steps are outside the frame, up to {show(cut)}.")
    caption = " ".join([*notes, *_not_finite_notes(found)])
    names = ", ".join(dict.fromkeys(series.label for series in found))
    description = f"{names} over training tokens. {caption}"
    name = "".join(letter if letter.isalnum() else "-" for letter in title.lower())
    chart = Chart(
        title, description, lines, _tick_count, show, top=top, zero_line=zero_line, identifier=name
    )
    if not wide:
        return Figure(title, caption, chart)
    narrow = replace(chart, width=390, height=300, label_width=94, identifier=f"{name}-narrow")
    return Figure(title, caption, replace(chart, width=880, height=320, label_width=120), narrow)


def series_of(
    metrics: Sequence[Mapping[str, Any]],
    model: str,
    key: str,
    *,
    color: str,
    label: str,
    divisor: float = 1.0,
) -> Series:
    """One key of the lines of `metrics.jsonl` that belong to a model."""
    points, not_finite, last = [], [], 0.0
    for line in metrics:
        if line.get("model") != model or key not in line:
            continue
        last = float(line.get("tokens") or last)
        if line[key] is None:
            not_finite.append(last)
        else:
            points.append((last, line[key] / divisor))
    return Series(color, label, points, not_finite)


def all_series(
    results: Sequence[SeedResult], model: str, key: str, *, divisor: float = 1.0
) -> list[Series]:
    """One key of a model for every seed that logged it."""
    short = {"control": "Control", "control_same_time": "Same time"}
    label = short.get(model, label_of(model))
    found = [
        series_of(result.metrics, model, key, color=model, label=label, divisor=divisor)
        for result in results
    ]
    return [series for series in found if series.points or series.not_finite]


def smooth(points: Sequence[Point]) -> list[Point]:
    """Moving average over about a thirtieth of the points, centered, shorter at both ends."""
    half = len(points) // 60
    sums = [0.0, *accumulate(value for _, value in points)]
    found = []
    for index, (place, _) in enumerate(points):
        low, high = max(0, index - half), min(len(points), index + half + 1)
        found.append((place, (sums[high] - sums[low]) / (high - low)))
    return found


def thin(points: Sequence[Point]) -> list[Point]:
    """At most about `NUM_POINTS` points: the first, the last, each bucket's lowest and highest."""
    if len(points) <= NUM_POINTS:
        return list(points)
    num_buckets = NUM_POINTS // 2
    kept = {points[0], points[-1]}
    for index in range(num_buckets):
        first = index * len(points) // num_buckets
        bucket = points[first : (index + 1) * len(points) // num_buckets]
        kept.add(min(bucket, key=lambda point: point[1]))
        kept.add(max(bucket, key=lambda point: point[1]))
    return sorted(kept)


def _loss_series(recipe: Recipe, results: Sequence[SeedResult], model: str) -> list[Series]:
    """The language modeling loss; where it is the sole term it is logged as `loss`, weighted."""
    terms = recipe.distillation.losses.active()
    if model in CONTROLS:
        return all_series(results, model, "loss")
    if list(terms) == ["language_modeling"]:
        weight = terms["language_modeling"].weight
        return all_series(results, model, "loss", divisor=weight)
    return all_series(results, model, "language_modeling")


def _loss_figure(recipe: Recipe, results: Sequence[SeedResult]) -> Figure | None:
    one_seed = len(results) == 1
    found = [
        replace(each, shows_value=one_seed)
        for model in ("student", *CONTROLS)
        for each in _loss_series(recipe, results, model)
    ]
    caption = (
        "Nats per predicted token of the training text. Lines: smoothed"
        f"{'' if one_seed else ', one per seed'}; dots: the steps. "
        "The teacher was not evaluated on this text; losses on "
        f"{scored_text(recipe)}, in the table above, are not comparable with these."
    )
    if "student" not in {series.color for series in found}:
        caption += (
            " The student's objective has no language modeling term, so it has no curve here."
        )
    return figure("Training loss (language modeling) over tokens", found, caption)


def _difference_figure(recipe: Recipe, results: Sequence[SeedResult]) -> Figure | None:
    """Student minus control at the same tokens in the same order, so with little noise."""
    found = []
    for result in results:
        students, controls = (
            _loss_series(recipe, [result], model) for model in ("student", "control")
        )
        if students and controls:
            control = dict(controls[0].points)
            points = [
                (tokens, loss - control[tokens])
                for tokens, loss in students[0].points
                if tokens in control
            ]
            label = f"Seed {result.seed}" if len(results) > 1 else "Student"
            found += [Series("student", label, points)] if points else []
    return figure(
        "Student minus control, training loss (language modeling)",
        found,
        "The same steps on the same tokens. Negative: the student, with its teacher, is ahead; "
        "positive: it is behind.",
        show=_signed,
        zero_line=True,
    )


def _frame_top(lines: Sequence[Line]) -> tuple[float | None, float | None]:
    """The frame's top, and the highest value where that lies far outside; else None."""
    end = max((line.points[-1][0] for line in lines if line.points), default=0.0)
    dots = [point for line in lines for point in (*line.points, *line.raw)]
    later = [value for place, value in dots if place >= end * WARM_UP_SHARE]
    if not later:
        return None, None
    top, highest = max(later), max(value for _, value in dots)
    if highest - min(later) <= 1.5 * (top - min(later)):
        return None, None
    return top, highest


def _not_finite_notes(found: Sequence[Series]) -> list[str]:
    notes = []
    for label in dict.fromkeys(series.label for series in found):
        places = [place for each in found if each.label == label for place in each.not_finite]
        if places:
            notes.append(
                f"{label}: {counted(len(places), 'step')} without a finite value ({units.TIMES}), "
                f"the first at {units.tokens(min(places))}."
            )
    return notes


def _tick_count(value: float) -> str:
    """Round counts, alike along an axis: 2 k and 10 k, not 2,000 and 10.0 k."""
    if 1e3 <= value < 1e6:
        return f"{value / 1e3:.4g} k"
    return units.count(value).replace(".0 ", " ")


def _short(value: float) -> str:
    return f"{value:.3g}"


def _signed(value: float) -> str:
    text = f"{abs(value):.3g}"
    return text if text == "0" else ("+" if value > 0 else units.MINUS) + text


def _words(name: str) -> str:
    return name.replace("_", " ").capitalize()


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
