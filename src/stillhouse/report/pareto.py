"""Quality against size and against speed: the models of a run, and the candidates of its race.

Candidates were compared with their teacher on held-out text, and not scored as the run's models
are, so they have a picture of their own.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stillhouse import units
from stillhouse.evaluation.metrics.base import Key
from stillhouse.recipe import Recipe
from stillhouse.report.curves import tick_count
from stillhouse.report.results import SeedResult, label_of, main_metric, models_of, spread_of
from stillhouse.report.svg import Dot, Scatter
from stillhouse.runs.manifest import facts_of

SHORT = {"control": "Control", "control_same_time": "Same time"}


def pareto_charts(recipe: Recipe, results: Sequence[SeedResult]) -> list[Scatter]:
    """The pictures for which something was measured, medians over the seeds."""
    metric = main_metric(recipe)
    axes: list[tuple[Key, str, bool]] = [
        ("parameters", "parameters", False),
        ("speed.forward_tokens_per_second", "forward tokens/s", True),
        ("speed.generate_tokens_per_second", "generated tokens/s", True),
    ]
    found = [
        _chart(
            f"{metric.label} against {label}",
            _dots(results, metric.key, key),
            label,
            "{:.4g}".format,
            more_is_better=more,
        )
        for key, label, more in axes
    ]
    return [chart for chart in (*found, _race_chart(results[0])) if chart is not None]


def _dots(results: Sequence[SeedResult], quality: Key, key: Key) -> list[Dot]:
    found = []
    for model in models_of(results):
        x, y = (spread_of(results, model, each) for each in (key, quality))
        if x is not None and y is not None:
            found.append(Dot(x.median, y.median, SHORT.get(model, label_of(model)), model))
    return found


def _race_chart(result: SeedResult) -> Scatter | None:
    """The candidates that were distilled, by their row in the table of candidates."""
    race = facts_of(result.run.student_init).get("race")
    if race is None:
        return None
    ranking = race["ranking_after_distillation"]
    raced = [own for own in race["candidates"] if own.get("kl") is not None]
    timed = race.get("speed") is not None
    key, label = (
        ("tokens_per_second", "decoded tokens/s") if timed else ("parameters", "parameters")
    )
    dots = [
        Dot(float(own[key]), own["kl"], _number(own, ranking), _color(own, race)) for own in raced
    ]
    return _chart(
        f"Candidates: KL from the teacher against {label}",
        dots,
        label,
        "{:.3g}".format,
        more_is_better=timed,
    )


def _number(own: Mapping[str, Any], ranking: Sequence[str]) -> str:
    """Its row in the table of candidates: names are too long for a picture."""
    return f"Row {ranking.index(own['name']) + 1}"


def _color(own: Mapping[str, Any], race: Mapping[str, Any]) -> str:
    return "student" if own["name"] == race["winner"] else "other"


def _chart(
    title: str,
    dots: Sequence[Dot],
    x_label: str,
    show_y: Callable[[float], str],
    *,
    more_is_better: bool,
) -> Scatter | None:
    """None for fewer than two dots: there is nothing to compare."""
    if len(dots) < 2:
        return None
    places = "; ".join(f"{dot.label}: {show_y(dot.y)} at {units.count(dot.x)}" for dot in dots)
    better = "right" if more_is_better else "left"
    return Scatter(
        title,
        f"{places}. Better is lower and further to the {better}; the line joins the models that no "
        "other one beats in both.",
        dots,
        x_label,
        tick_count,
        show_y,
        more_is_better=more_is_better,
        identifier="".join(letter if letter.isalnum() else "-" for letter in title.lower()),
    )
