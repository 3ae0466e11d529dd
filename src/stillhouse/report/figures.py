"""The figures of a run: every model on one axis of quality, loss over tokens, student minus
control, and each term of the objective.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stillhouse import units
from stillhouse.recipe import Recipe
from stillhouse.report.curves import Figure, figure, lines_of, tick_count
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
from stillhouse.report.svg import Line, ticks


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
        (models, "tokens_per_second", "Tokens per second", tick_count),
    ]
    figures = [_loss_figure(recipe, results), _difference_figure(recipe, results)]
    for shown, key, title, show in small:
        found = [each for model in shown for each in _lines(results, model, key)]
        figures.append(figure(title, found, show=show, wide=False))
    return [each for each in figures if each is not None]


def _lines(
    results: Sequence[SeedResult], model: str, key: str, *, divisor: float = 1.0
) -> list[Line]:
    short = {"control": "Control", "control_same_time": "Same time"}
    logs, label = [result.metrics for result in results], short.get(model, label_of(model))
    return lines_of(logs, model, key, color=model, label=label, divisor=divisor)


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
