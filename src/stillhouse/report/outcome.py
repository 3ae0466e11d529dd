"""The outcome in words: what the student costs, what it keeps, whether the teacher was worth it.

The teacher's worth is the student's validation loss minus that of its own control, seed by seed,
and nothing is claimed that the interval of that difference does not show.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from stillhouse.recipe import Recipe
from stillhouse.report import units
from stillhouse.report.results import (
    CONTROLS,
    SeedResult,
    differences,
    loss_path,
    models_of,
    noise,
    ratio_of_medians,
    seeds_of,
    spread_of,
)
from stillhouse.report.verdict import Difference, Side, Verdict, judge
from stillhouse.teacher.settings import TeacherRecipe, TunedTeacherRecipe
from stillhouse.wording import counted

FORWARD = "speed.forward_tokens_per_second"
VERDICTS: dict[Side, Verdict] = {
    "below": "better",
    "above": "worse",
    "unclear": "unclear",
    "unknown": "unknown",
}
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

NO_USE = "No finite loss, or one far above a guess among all tokens:"
NAMES = {
    "teacher": "the teacher",
    "student": "the student",
    "control": "the control of the same tokens",
    "control_same_time": "the control of the same time",
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


def summarize_results(recipe: Recipe, results: Sequence[SeedResult]) -> Outcome:
    """Put the results into words; several seeds speak through their medians."""
    controls = [control for control in CONTROLS if control in models_of(results)]
    verdicts: list[Verdict] = [_judge(recipe, results, control) for control in controls]
    sentences = [*_diverged(recipe, results), _cost(results), _quality(recipe, results)]
    sentences += [
        _against(recipe, results, control)
        for control in controls
        if _seeds_diverged(results, "student") is None and _seeds_diverged(results, control) is None
    ]
    sentences += [_confidence(results), _weak_teacher(results)]
    verdict, title = _conclude(verdicts)
    if any(result.has_diverged("student") for result in results):
        verdict, title = "worse", "The student diverged: it cannot be used."
    return Outcome(verdict, title, [sentence for sentence in sentences if sentence])


def _diverged(recipe: Recipe, results: Sequence[SeedResult]) -> list[str]:
    """What is said of models that are worse than a guess, with what to do."""
    students = [
        f"{NAMES.get(model, model)}{_seeds_diverged(results, model)}"
        for model in models_of(results)
        if model != "teacher" and _seeds_diverged(results, model) is not None
    ]
    sentences = []
    if (seeds := _seeds_diverged(results, "teacher")) is not None:
        sentences.append(f"{NO_USE} {NAMES['teacher']}{seeds}: {_teacher_remedy(recipe)}.")
    if students:
        rate = recipe.distillation.optimizer.learning_rate
        sentences.append(
            f"{NO_USE} {', '.join(students)}: training diverged. "
            f"Lower distillation.optimizer.learning_rate (now {rate:g})."
        )
    return sentences


def _seeds_diverged(results: Sequence[SeedResult], model: str) -> str | None:
    """The seeds with which a model diverged, where there are several; None where it did not."""
    seeds = [str(result.seed) for result in results if result.has_diverged(model)]
    if not seeds:
        return None
    return f" (seed {', '.join(seeds)})" if len(results) > 1 else ""


def _teacher_remedy(recipe: Recipe) -> str:
    if isinstance(recipe.teacher, TeacherRecipe | TunedTeacherRecipe):
        rate = recipe.teacher.training.optimizer.learning_rate
        return f"training diverged. Lower teacher.training.optimizer.learning_rate (now {rate:g})"
    return "its weights are damaged, or it knows nothing of this text"


def _judge(recipe: Recipe, results: Sequence[SeedResult], control: str) -> Verdict:
    """The verdict against one control; none where either model diverged."""
    if any(result.has_diverged(each) for result in results for each in ("student", control)):
        return "unknown"
    return VERDICTS[judge(differences(results, control, loss_path(recipe)))]


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


def _cost(results: Sequence[SeedResult]) -> str:
    size = ratio_of_medians(results, "student", "teacher", "parameters")
    speed = ratio_of_medians(results, "student", "teacher", FORWARD)
    parts = []
    if size:
        parts.append(f"has {units.percent(size)} of the teacher's parameters")
    if speed:
        range_ = noise(results, "student", FORWARD)
        noisy = f" (noisy: {units.between(*range_, units.times)})" if range_ else ""
        slower = ", which is slower" if speed < 0.995 and not (range_ and range_[1] >= 1) else ""
        parts.append(f"reads text at {units.times(speed)} the teacher's speed{slower}{noisy}")
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
    seeds = f" (median of {seeds_of(recipe.seeds)})" if len(results) > 1 else ""
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
    known = [each.value for each in paired if each.value is not None]
    if not known:
        return f"{start}."
    middle, side = median(known), judge(paired)
    told = f"{units.signed(middle)} nats per token"
    certainty = _certainty(results, control, paired)
    if side == "unclear":
        return f"{start}: no difference could be shown ({told}, {certainty})."
    ending = {
        "below": f"the student's loss is lower by {abs(middle):.3f} nats per token",
        "above": f"the student is worse, its loss higher by {abs(middle):.3f} nats per token",
        "unknown": f"nothing can be told from a difference of {told}",
    }[side]
    return f"{start}: {ending} ({certainty})."


def _certainty(results: Sequence[SeedResult], control: str, paired: Sequence[Difference]) -> str:
    """How sure a difference is: its interval, or why there is none; of several seeds how many."""
    if len(paired) == 1:
        if interval := paired[0].interval():
            return f"95 % interval {interval}"
        found = (results[0].evaluation.get("intervals") or {}).get(control)
        return "evaluated without intervals" if found is None else "the text is too short"
    lower = sum(1 for each in paired if each.value is not None and each.value < 0)
    clear = sum(each.side in ("below", "above") for each in paired)
    return (
        f"median of {counted(len(paired), 'seed')}; the student has the lower loss in {lower} of "
        f"{len(paired)} seeds, and the 95 % interval leaves out zero in {clear}"
    )


def _weak_teacher(results: Sequence[SeedResult]) -> str:
    """What the evaluation says of a teacher that hardly knows the text."""
    warnings = [(result.evaluation.get("teacher_fit") or {}).get("warning") for result in results]
    return next((str(warning) for warning in warnings if warning), "")


def _confidence(results: Sequence[SeedResult]) -> str:
    if len(results) > 1:
        return ""
    return (
        f"This is one seed ({results[0].seed}): it is no evidence of the spread between seeds, and "
        "an interval is over the text alone."
    )
