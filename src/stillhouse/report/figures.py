"""The figures of a run: every model on one axis of quality, loss over tokens, student minus
control, and each term of the objective.

Long runs are drawn with about 400 points. A bucket keeps its lowest and highest value, so a spike
is never lost; a value that was not finite is marked with a cross and counted in the caption.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from stillhouse import units
from stillhouse.recipe import Recipe
from stillhouse.report.render import words
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
class Figure:
    """A chart with its caption; a wide one has a second drawing for narrow screens, where scaled
    text would be too small."""

    caption: str
    chart: Chart
    narrow: Chart | None = None


def training_figures(recipe: Recipe, results: Sequence[SeedResult]) -> list[Figure]:
    """The wide figures of the losses, then a small one for each quantity that was logged."""
    models, short = ["student", *CONTROLS], "{:.3g}".format
    small: list[tuple[Sequence[str], str, str, Callable[[float], str]]] = [
        *(
            (models[:1], term, f"{words(term)}, unweighted", short)
            for term in recipe.distillation.losses.active()
        ),
        (models[:1], "loss", "Weighted sum of the terms", short),
        (models, "learning_rate", "Learning rate", short),
        (models, "grad_norm", "Gradient norm", short),
        (models, "tokens_per_second", "Tokens per second", _tick_count),
    ]
    figures = [_loss_figure(recipe, results), _difference_figure(recipe, results)]
    for shown, key, title, show in small:
        found = [each for model in shown for each in _lines(results, model, key)]
        figures.append(figure(title, found, show=show, wide=False))
    return [each for each in figures if each is not None]


def figure(
    title: str,
    found: Sequence[Line],
    caption: str = "",
    *,
    show: Callable[[float], str] = "{:.4g}".format,
    wide: bool = True,
    zero_line: bool = False,
) -> Figure | None:
    """Curves over tokens; None without any. A label that several curves share is written once,
    without a value; one of a training without a finite value is in the caption alone."""
    if not found:
        return None
    lines: list[Line] = []
    sharing = Counter(line.label for line in found if line.raw)
    for line in found:
        curve, label, value = smooth(line.raw), "", ""
        if curve and line.label not in {each.label for each in lines}:
            label, value = line.label, show(curve[-1][1]) if sharing[line.label] == 1 else ""
        lines.append(
            replace(line, label=label, raw=thin(line.raw), points=thin(curve), value=value)
        )
    top, cut = _frame_top(lines)
    notes = [caption] if caption else []
    if cut:
        notes.append(f"The first steps are outside the frame, up to {show(cut)}.")
    caption = " ".join([*notes, *_not_finite_notes(found)])
    names = ", ".join(dict.fromkeys(line.label for line in found))
    description = f"{names} over training tokens. {caption}"
    name = "".join(letter if letter.isalnum() else "-" for letter in title.lower())
    chart = Chart(
        title, description, lines, _tick_count, show, top=top, zero_line=zero_line, identifier=name
    )
    if not wide:
        return Figure(caption, chart)
    narrow = replace(chart, width=390, height=300, label_width=94, identifier=f"{name}-narrow")
    return Figure(caption, replace(chart, width=880, height=320, label_width=120), narrow)


def lines_of(
    logs: Sequence[Sequence[Mapping[str, Any]]],
    model: str,
    key: str,
    *,
    color: str,
    label: str,
    divisor: float = 1.0,
) -> list[Line]:
    """One key of a model in the `metrics.jsonl` of each seed that logged it."""
    found = []
    for log in logs:
        points, not_finite, tokens = [], [], 0.0
        for line in log:
            if line.get("model") == model and key in line:
                tokens = float(line.get("tokens") or tokens)
                if line[key] is None:
                    not_finite.append(tokens)
                else:
                    points.append((tokens, line[key] / divisor))
        if points or not_finite:
            found.append(Line(color, label, points, not_finite))
    return found


def _lines(
    results: Sequence[SeedResult], model: str, key: str, *, divisor: float = 1.0
) -> list[Line]:
    short = {"control": "Control", "control_same_time": "Same time"}
    logs, label = [result.metrics for result in results], short.get(model, label_of(model))
    return lines_of(logs, model, key, color=model, label=label, divisor=divisor)


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


def _loss_lines(recipe: Recipe, results: Sequence[SeedResult], model: str) -> list[Line]:
    """The language modeling loss; where it is the sole term it is logged as `loss`, weighted."""
    terms = recipe.distillation.losses.active()
    if model == "student" and list(terms) == ["language_modeling"]:
        return _lines(results, model, "loss", divisor=terms["language_modeling"].weight)
    return _lines(results, model, "loss" if model in CONTROLS else "language_modeling")


def _loss_figure(recipe: Recipe, results: Sequence[SeedResult]) -> Figure | None:
    models = ("student", *CONTROLS)
    found = [each for model in models for each in _loss_lines(recipe, results, model)]
    caption = (
        "Nats per predicted token of the training text. Lines: smoothed"
        f"{'' if len(results) == 1 else ', one per seed'}; dots: the steps. "
        "The teacher was not evaluated on this text; losses on "
        f"{scored_text(recipe)}, in the table above, are not comparable with these."
    )
    if "student" not in {line.color for line in found}:
        caption += (
            " The student's objective has no language modeling term, so it has no curve here."
        )
    return figure("Training loss (language modeling) over tokens", found, caption)


def _difference_figure(recipe: Recipe, results: Sequence[SeedResult]) -> Figure | None:
    """Student minus control at the same tokens in the same order, so with little noise."""
    found = []
    for result in results:
        curves = [_loss_lines(recipe, [result], model) for model in ("student", "control")]
        student, control = (dict(lines[0].raw) if lines else {} for lines in curves)
        points = [
            (tokens, loss - control[tokens])
            for tokens, loss in student.items()
            if tokens in control
        ]
        if points:
            label = f"Seed {result.seed}" if len(results) > 1 else "Student"
            found.append(Line("student", label, points))
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


def _not_finite_notes(found: Sequence[Line]) -> list[str]:
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


def _signed(value: float) -> str:
    text = f"{abs(value):.3g}"
    return text if text == "0" else ("+" if value > 0 else units.MINUS) + text


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
