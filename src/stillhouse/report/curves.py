"""The curves of a run: loss over tokens, student against control, and each term of the objective.

Long runs are drawn with about 400 points. A bucket keeps its lowest and highest value, so a spike
is never lost; a value that was not finite is marked with a cross and counted in the caption."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import accumulate
from typing import Any

from stillhouse.recipe import Recipe
from stillhouse.report import units
from stillhouse.report.results import CONTROLS, SeedResult, label_of, scored_text
from stillhouse.report.svg import Chart, Line, Point, draw
from stillhouse.wording import counted

NUM_POINTS = 400
# The frame is fitted to what follows this share of the tokens: the first steps fall from ln(V).
WARM_UP_SHARE = 0.2


@dataclass(frozen=True)
class Series:
    """One quantity of one training over its tokens; `not_finite` are the places without a value.

    `model` gives its color, and its name where it has no `label`.
    """

    model: str
    points: list[Point]
    not_finite: list[float]
    label: str = ""

    @property
    def name(self) -> str:
        return self.label or _short(self.model)


def draw_curves(recipe: Recipe, results: Sequence[SeedResult]) -> str:
    """All figures as HTML; a sentence where nothing was logged."""
    if not any(result.metrics for result in results):
        return "<p>There is no metrics.jsonl in this run, so there are no curves.</p>"
    figures = [_loss_figure(recipe, results), _difference_figure(recipe, results)]
    small = [
        *(
            _small_figure(results, ["student"], term, f"{_words(term)}, unweighted", ".3g")
            for term in recipe.distillation.losses.active()
        ),
        _small_figure(results, ["student"], "loss", "Weighted sum of the terms", ".3g"),
        _small_figure(results, ["student", *CONTROLS], "learning_rate", "Learning rate", ".2g"),
        _small_figure(results, ["student", *CONTROLS], "grad_norm", "Gradient norm", ".3g"),
        _small_figure(
            results, ["student", *CONTROLS], "tokens_per_second", "Tokens per second", ",.0f"
        ),
    ]
    return f'{"".join(figures)}<div class="multiples">{"".join(small)}</div>'


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


def _series(result: SeedResult, model: str, read: Callable[[Mapping[str, Any]], Any]) -> Series:
    points, not_finite, last = [], [], 0.0
    for line in result.metrics:
        if line.get("model") != model:
            continue
        last = float(line.get("tokens") or last)
        value = read(line)
        if value is None:
            not_finite.append(last)
        elif isinstance(value, (int, float)):
            points.append((last, float(value)))
    return Series(model, points, not_finite)


def _language_modeling(recipe: Recipe) -> Callable[[Mapping[str, Any]], Any]:
    """Reads the language modeling loss from a line; a sole term is logged as `loss`, weighted."""
    terms = recipe.distillation.losses.active()

    def read(line: Mapping[str, Any]) -> Any:
        if line["model"] in CONTROLS:
            return line.get("loss", "absent")
        if list(terms) == ["language_modeling"]:
            loss = line.get("loss", "absent")
            return (
                loss / terms["language_modeling"].weight if isinstance(loss, (int, float)) else loss
            )
        return line.get("language_modeling", "absent")

    return read


def _all_series(
    results: Sequence[SeedResult], models: Sequence[str], read: Callable[[Mapping[str, Any]], Any]
) -> list[Series]:
    found = [_series(result, model, read) for model in models for result in results]
    return [series for series in found if series.points or series.not_finite]


def _loss_figure(recipe: Recipe, results: Sequence[SeedResult]) -> str:
    found = _all_series(results, ["student", *CONTROLS], _language_modeling(recipe))
    lines, labeled = [], set()
    for series in found:
        curve = smooth(series.points)
        label = ""
        if curve and series.model not in labeled:
            labeled.add(series.model)
            value = f"\n{curve[-1][1]:.3f}" if len(results) == 1 else "\n"
            label = f"{_short(series.model)}{value}"
        lines.append(Line(series.model, label, thin(curve), thin(series.points), series.not_finite))
    top, cut = _frame_top(lines)
    caption = (
        "Nats per predicted token of the training text. Lines: smoothed"
        f"{'' if len(results) == 1 else ', one per seed'}; dots: the steps. "
        "The teacher was not measured on this text; losses on "
        f"{scored_text(recipe)}, in the table above, are not to be compared with these."
    )
    if "student" not in {series.model for series in found}:
        caption += (
            " The student's objective has no language modeling term, so it has no curve here."
        )
    if cut:
        caption += f" The first steps start above the frame, at {cut:.2f}."
    caption += _not_finite_words(found)
    title = "Training loss (language modeling) over tokens"
    return _wide(title, caption, lines, top=top, show_y=lambda value: f"{value:.4g}")


def loss_figure(title: str, found: Sequence[Series]) -> str:
    """The losses of several trainings over their tokens; nothing where none was logged."""
    if not found:
        return ""
    lines, labeled = [], set()
    for series in found:
        curve = smooth(series.points)
        label = "" if series.name in labeled or not curve else f"{series.name}\n{curve[-1][1]:.3g}"
        labeled.add(series.name)
        lines.append(Line(series.model, label, thin(curve), thin(series.points), series.not_finite))
    top, cut = _frame_top(lines)
    caption = "Lines: smoothed training loss; dots: the steps."
    if cut:
        caption += f" The first steps start above the frame, at {cut:.3g}."
    caption += _not_finite_words(found)
    return _wide(title, caption, lines, top=top, show_y=lambda value: f"{value:.4g}")


def _frame_top(lines: Sequence[Line]) -> tuple[float | None, float | None]:
    """Where the frame ends above, and the highest value when that lies far outside; else None."""
    end = max((line.points[-1][0] for line in lines if line.points), default=0.0)
    dots = [point for line in lines for point in (*line.points, *line.raw)]
    later = [value for place, value in dots if place >= end * WARM_UP_SHARE]
    if not later:
        return None, None
    top, highest = max(later), max(value for _, value in dots)
    if highest - min(later) <= 1.5 * (top - min(later)):
        return None, None
    return top, highest


def _difference_figure(recipe: Recipe, results: Sequence[SeedResult]) -> str:
    """Student minus control at the same step: the same tokens in the same order, so little
    noise."""
    read = _language_modeling(recipe)
    lines = []
    for result in results:
        student, control = (
            {
                line["step"]: (float(line.get("tokens") or 0), read(line))
                for line in result.metrics
                if line.get("model") == model and isinstance(read(line), (int, float))
            }
            for model in ("student", "control")
        )
        steps = sorted(set(student) & set(control))
        points = [(student[step][0], student[step][1] - control[step][1]) for step in steps]
        if points:
            curve = smooth(points)
            label = f"{_seed_name(results, result)}\n{units.signed(curve[-1][1])}"
            lines.append(Line("student", label, thin(curve), thin(points)))
    if not lines:
        return ""
    top, cut = _frame_top(lines)
    caption = (
        "The same steps on the same tokens. Below zero the student, with its teacher, is ahead; "
        "above zero it is behind."
    )
    if cut:
        caption += f" The first steps lie outside the frame, up to {units.signed(cut)}."
    return _wide(
        "Student minus control, training loss (language modeling)",
        caption,
        lines,
        top=top,
        show_y=_signed_tick,
        zero_line=True,
    )


def _small_figure(
    results: Sequence[SeedResult], models: Sequence[str], key: str, title: str, form: str
) -> str:
    found = _all_series(results, models, lambda line: line.get(key, "absent"))
    if not found:
        return ""
    lines = [
        Line(series.model, "", thin(smooth(series.points)), thin(series.points), series.not_finite)
        for series in found
    ]
    top, cut = _frame_top(lines)
    shown = list(dict.fromkeys(_short(series.model) for series in found))
    notes = [f"Up to {cut:{form}} in the first steps, above the frame."] if cut else []
    notes += [_not_finite_words(found).strip()]
    chart = Chart(
        title,
        f"{title} of {', '.join(shown)} over training tokens. {' '.join(notes)}",
        lines,
        _tick_count,
        lambda value: f"{value:{form}}",
        top=top,
        identifier=f"small-{key.replace('_', '-')}",
    )
    text = " ".join(note for note in notes if note)
    note = f"<small>{escape(text)}</small>" if text else ""
    return f"<figure><figcaption><b>{escape(title)}</b>{note}</figcaption>{draw(chart)}</figure>"


def _wide(
    title: str,
    caption: str,
    lines: list[Line],
    *,
    top: float | None,
    show_y: Callable[[float], str],
    zero_line: bool = False,
) -> str:
    """A figure drawn twice, for wide and for narrow screens: scaled text would be too small."""
    chart = Chart(
        title, caption, lines, _tick_count, show_y, 880, 320, 120, top, zero_line, _slug(title)
    )
    narrow = replace(
        chart, width=390, height=300, label_width=94, identifier=f"{_slug(title)}-narrow"
    )
    return (
        f"<figure><figcaption><b>{escape(title)}</b><small>{escape(caption)}</small></figcaption>"
        f'<div class="wide">{draw(chart)}</div><div class="narrow">{draw(narrow)}</div></figure>'
    )


def _not_finite_words(found: Sequence[Series]) -> str:
    parts = []
    for name in dict.fromkeys(series.name for series in found):
        places = [place for series in found if series.name == name for place in series.not_finite]
        if places:
            steps = counted(len(places), "step")
            first = units.tokens(min(places))
            parts.append(
                f" {name}: {steps} without a finite value (\N{MULTIPLICATION SIGN}), the "
                f"first at {first}."
            )
    return "".join(parts)


def _short(model: str) -> str:
    return {"control": "Control", "control_same_time": "Same time"}.get(model, label_of(model))


def _seed_name(results: Sequence[SeedResult], result: SeedResult) -> str:
    return f"Seed {result.seed}" if len(results) > 1 else "Student"


def _tick_count(value: float) -> str:
    """Ticks are round, and alike along an axis: 2 k and 10 k, not 2,000 and 10.0 k."""
    if 1e3 <= value < 1e6:
        return f"{value / 1e3:g} k"
    return units.count(value).replace(".0 ", " ")


def _signed_tick(value: float) -> str:
    text = f"{abs(value):.4g}"
    return text if text == "0" else ("+" if value > 0 else units.MINUS) + text


def _words(name: str) -> str:
    return name.replace("_", " ").capitalize()


def _slug(title: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in title.lower())
