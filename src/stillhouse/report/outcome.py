"""The outcome in words: what the student costs, what it keeps, whether the teacher was worth it.

The teacher's worth is the student's validation loss minus that of its own control, seed by seed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from stillhouse.recipe import Recipe
from stillhouse.report import units
from stillhouse.report.results import (
    CONTROLS,
    SeedResult,
    differences,
    loss_path,
    models_of,
    ratios,
    spread,
    spread_of,
)

# Below this the difference is zero at the third decimal that the report shows.
SMALLEST_DIFFERENCE_NATS = 0.0005

Verdict = Literal["better", "worse", "unclear", "unknown"]
TITLES: dict[Verdict, str] = {
    "better": "The student is better than its control: the teacher helped.",
    "worse": "The student is worse than its control: the teacher did not help.",
    "unclear": "The student and its control do not clearly differ.",
    "unknown": "Whether the teacher helped is not known.",
}

AGAINST: dict[Verdict, str] = {
    "better": "better than",
    "worse": "worse than",
    "unclear": "not clearly different from",
    "unknown": "not comparable with",
}


@dataclass(frozen=True)
class Outcome:
    """The verdict against the control, one title, and sentences with the figures."""

    verdict: Verdict
    title: str
    sentences: list[str]

    @property
    def text(self) -> str:
        return " ".join(self.sentences)


def state_outcome(recipe: Recipe, results: Sequence[SeedResult]) -> Outcome:
    """Put the results into words; several seeds speak through their medians."""
    controls = [control for control in CONTROLS if control in models_of(results)]
    verdicts: list[Verdict] = [
        judge(differences(results, each, loss_path(recipe))) for each in controls
    ]
    sentences = [_cost(results), _quality(recipe, results)]
    sentences += [_against(recipe, results, control) for control in controls]
    sentences.append(_confidence(results))
    verdict, title = _conclude(verdicts)
    return Outcome(verdict, title, [sentence for sentence in sentences if sentence])


def _conclude(verdicts: Sequence[Verdict]) -> tuple[Verdict, str]:
    """One verdict and title; two controls that say different things are both named."""
    if not verdicts:
        return "unknown", f"No control was trained. {TITLES['unknown']}"
    if len(set(verdicts)) == 1:
        return verdicts[0], TITLES[verdicts[0]]
    tokens, time = (AGAINST[verdict] for verdict in verdicts)
    return "unclear", (
        f"The student is {tokens} its control of the same tokens, "
        f"and {time} its control of the same time."
    )


def judge(paired: Sequence[float | None]) -> Verdict:
    """The verdict of the seeds' differences student minus control; all must agree to count."""
    if any(difference is None for difference in paired):
        return "unknown"
    present = [difference for difference in paired if difference is not None]
    if all(difference < -SMALLEST_DIFFERENCE_NATS for difference in present):
        return "better"
    if all(difference > SMALLEST_DIFFERENCE_NATS for difference in present):
        return "worse"
    return "unclear"


def _cost(results: Sequence[SeedResult]) -> str:
    size = spread(ratios(results, "student", "teacher", "parameters"))
    speed = spread(ratios(results, "student", "teacher", "speed.forward_tokens_per_second"))
    parts = []
    if size:
        parts.append(f"has {units.percent(size.median)} of the teacher's parameters")
    if speed:
        slower = ", which is slower" if speed.median < 0.995 else ""
        parts.append(f"reads text at {units.times(speed.median)} the teacher's speed{slower}")
    return f"The student {' and '.join(parts)}." if parts else ""


def _quality_measure(recipe: Recipe) -> tuple[str, str]:
    if recipe.tokens.language_modeling == "causal":
        return "perplexity.token", "perplexity"
    return "masked_loss", "masked loss"


def _show(recipe: Recipe, value: float) -> str:
    causal = recipe.tokens.language_modeling == "causal"
    return units.perplexity(value) if causal else units.nats(value)


def _quality(recipe: Recipe, results: Sequence[SeedResult]) -> str:
    path, name = _quality_measure(recipe)
    student, teacher = (spread_of(results, model, path) for model in ("student", "teacher"))
    if student is None:
        return f"The student's {name} is not a finite number: it cannot be used."
    seeds = f" (median of {len(results)} seeds)" if len(results) > 1 else ""
    reached = f"Its {name} is {_show(recipe, student.median)}{seeds}"
    if teacher is None:
        return f"{reached}; the teacher's is not a finite number."
    return f"{reached} against the teacher's {_show(recipe, teacher.median)}; lower is better."


def _against(recipe: Recipe, results: Sequence[SeedResult], control: str) -> str:
    path, name = _quality_measure(recipe)
    budget = "for the same tokens" if control == "control" else "for the same time"
    reached = spread_of(results, control, path)
    paired = differences(results, control, loss_path(recipe))
    if reached is None:
        return f"The control trained {budget} has no finite {name}, so it shows nothing."
    start = (
        f"The same student trained {budget} without the teacher reaches "
        f"{_show(recipe, reached.median)}"
    )
    middle = spread(paired)
    if middle is None:
        return f"{start}."
    nats = f"{abs(middle.median):.3f} nats"
    num_lower = sum(1 for each in paired if each is not None and each < 0)
    ending = {
        "better": f": the student's loss is lower by {nats} per token.",
        "worse": f": the student is worse, its loss higher by {nats} per token.",
        "unclear": f": no clear difference ({units.signed(middle.median)} nats per token).",
        "unknown": f"; the seeds with a finite loss differ by {units.signed(middle.median)} nats.",
    }[judge(paired)]
    if len(results) > 1:
        ending = (
            f"{ending[:-1]}; the student has the lower loss in {num_lower} of {len(results)} seeds."
        )
    return start + ending


def _confidence(results: Sequence[SeedResult]) -> str:
    if len(results) > 1:
        return ""
    return "This is one seed: it is no evidence of the spread between seeds."
