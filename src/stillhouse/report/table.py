"""The comparison: one row per measure, one column per model; the page and the card show the same.

With several seeds a cell is the median, with the smallest and largest value beside it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from stillhouse.recipe import Recipe
from stillhouse.report import units
from stillhouse.report.results import (
    CONTROLS,
    SeedResult,
    Spread,
    differences,
    label_of,
    loss_path,
    models_of,
    noise,
    ratio_of_medians,
    spread,
    spread_of,
)
from stillhouse.report.verdict import Difference

NOT_MEASURED = "not measured"
NOT_FINITE = "no finite value"
NOT_TRAINED = "not trained here"


@dataclass(frozen=True)
class Measure:
    """One row: where its number is, how it is written, how it is held against the teacher."""

    label: str
    path: str | tuple[str, ...]
    show: Callable[[float], str]
    ratio: Callable[[float], str] | None = None
    missing: str = NOT_MEASURED


@dataclass(frozen=True)
class Cell:
    """One number as text: the median, min to max (several seeds) or an interval, the ratio to the
    teacher."""

    text: str
    range: str = ""
    ratio: str = ""
    is_missing: bool = False


@dataclass(frozen=True)
class Table:
    """Column titles, and rows of a label and cells."""

    columns: list[str]
    rows: list[tuple[str, list[Cell]]]


COSTS = [
    Measure("Parameters", "parameters", units.count, units.percent),
    Measure("Parameters without the head", "body_parameters", units.count, units.percent),
    Measure("Size on disk", "size_bytes", units.size_bytes, units.percent),
    Measure(
        "Reading speed (forward)",
        "speed.forward_tokens_per_second",
        units.tokens_per_second,
        units.times,
    ),
]
GENERATION = Measure(
    "Writing speed (generate)",
    "speed.generate_tokens_per_second",
    units.tokens_per_second,
    units.times,
)
MEMORY = Measure("Peak memory", "peak_memory_bytes", units.size_bytes, units.percent)
AGREEMENT = [
    Measure("Drafts the teacher would accept", "agreement.acceptance", units.percent),
    Measure("Same first choice as the teacher", "agreement.same_choice", units.percent),
]
TRAINING = [
    Measure("Training tokens", "training.tokens", units.tokens, missing=NOT_TRAINED),
    Measure("Training steps", "training.steps", units.count, missing=NOT_TRAINED),
    Measure("Training time", "training.seconds", units.seconds, missing=NOT_TRAINED),
    Measure(
        "Training speed, of what this machine allows",
        "training.floor_share",
        units.percent,
    ),
]


def measures(recipe: Recipe, stride: int | None = None) -> list[Measure]:
    """The rows that make sense for this kind of language modeling."""
    if recipe.tokens.language_modeling == "masked":
        loss = Measure("Masked loss per token", "masked_loss", units.nats, units.times, NOT_FINITE)
        return [*COSTS, MEMORY, loss, *AGREEMENT, *TRAINING]
    overlap = f", stride {stride}" if stride else ", overlapping windows"
    quality = [
        ("Validation loss per token", "validation_loss", units.nats),
        ("Perplexity per token", "perplexity.token", units.perplexity),
        (f"Perplexity per token{overlap}", "perplexity.token_s512", units.perplexity),
        ("Perplexity per word", "perplexity.word", units.perplexity),
        ("Bits per byte", "perplexity.bits_per_byte", units.bits),
    ]
    rows = [Measure(label, path, show, units.times, NOT_FINITE) for label, path, show in quality]
    rows += [
        Measure(
            f"Perplexity per token, {Path(text).name}",
            ("perplexity_of", text, "token"),
            units.perplexity,
            units.times,
            NOT_FINITE,
        )
        for text in recipe.evaluation.perplexity[1:]
    ]
    return [*COSTS, GENERATION, MEMORY, *rows, *AGREEMENT, *TRAINING]


def comparison(recipe: Recipe, results: Sequence[SeedResult]) -> Table:
    """Every measure of every model, medians over the seeds."""
    models = models_of(results)
    stride = results[0].evaluation.get("protocol", {}).get("stride_s512")
    return Table(
        [label_of(model) for model in models],
        [
            (measure.label, [_cell(results, model, measure) for model in models])
            for measure in measures(recipe, stride)
        ],
    )


def by_seed(recipe: Recipe, results: Sequence[SeedResult]) -> Table:
    """Every seed's validation loss per model, and the paired differences student minus control,
    each with its 95 % interval."""
    path = loss_path(recipe)
    models = models_of(results)
    controls = [model for model in CONTROLS if model in models]
    rows = [
        (
            f"Seed {result.seed}",
            [
                *(_number(result.value(model, path), units.nats) for model in models),
                *(_difference(result.minus(name, path)) for name in controls),
            ],
        )
        for result in results
    ]
    if len(results) > 1:
        summaries = [spread_of(results, model, path) for model in models]
        summaries += [
            spread([each.value for each in differences(results, control, path)])
            for control in controls
        ]
        shows = [units.nats] * len(models) + [_signed_nats] * len(controls)
        medians = [
            _number(each.median if each else None, show, _range(each, show) if each else "")
            for each, show in zip(summaries, shows, strict=True)
        ]
        rows.append(("Median", medians))
    titles = [f"Student {units.MINUS} {label_of(control).lower()}" for control in controls]
    return Table([*(label_of(model) for model in models), *titles], rows)


def _difference(found: Difference) -> Cell:
    return _number(found.value, _signed_nats, found.interval())


def _signed_nats(value: float) -> str:
    return f"{units.signed(value)} nats"


def _number(value: float | None, show: Callable[[float], str], spread_text: str = "") -> Cell:
    return Cell(NOT_FINITE, is_missing=True) if value is None else Cell(show(value), spread_text)


def _range(each: Spread, show: Callable[[float], str]) -> str:
    parts = []
    if show(each.low) != show(each.high):
        parts.append(units.between(each.low, each.high, show))
    if each.num_missing:
        seeds = "seed has" if each.num_missing == 1 else "seeds have"
        parts.append(f"{each.num_missing} {seeds} no value")
    return "; ".join(parts)


def _to_teacher(ratio: str) -> str:
    """60% of teacher; 1.60 times (the sign) teacher."""
    return f"{ratio} of teacher" if ratio.endswith("%") else f"{ratio} teacher"


def _cell(results: Sequence[SeedResult], model: str, measure: Measure) -> Cell:
    found = spread_of(results, model, measure.path)
    if found is None:
        return Cell(measure.missing, is_missing=True)
    ratio = None
    if measure.ratio and model != "teacher":
        ratio = ratio_of_medians(results, model, "teacher", measure.path)
    shown = _to_teacher(measure.ratio(ratio)) if measure.ratio and ratio else ""
    if isinstance(measure.path, str) and (range_ := noise(results, model, measure.path)):
        shown += f", noisy: {units.between(*range_, units.times)}"
    return Cell(measure.show(found.median), _range(found, measure.show), shown)
