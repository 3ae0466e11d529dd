"""The outcome in words: the student's cost, its quality, and the effect of its teacher.

The effect is the student's validation loss minus that of its control, seed by seed; no claim goes
beyond the interval of that difference.
"""

from collections.abc import Sequence
from statistics import median

from stillhouse import units
from stillhouse.evaluation.metrics.registry import METRICS
from stillhouse.recipe import Recipe
from stillhouse.report.results import (
    CONTROLS,
    Difference,
    Outcome,
    SeedResult,
    Verdict,
    differences,
    judge,
    main_metric,
    models_of,
    noise,
    ratio_to_teacher,
    seeds_of,
    spread_of,
)
from stillhouse.teacher.settings import TeacherRecipe, TunedTeacherRecipe
from stillhouse.wording import counted

TITLES: dict[Verdict, str] = {
    "better": "The student is better than its control: the teacher helped.",
    "worse": "The student is worse than its control: the teacher did not help.",
    "unclear": "The student and its control do not differ significantly.",
    "unknown": "The effect of the teacher is unknown.",
}
COMPARED: dict[Verdict, str] = {
    "better": "better than",
    "worse": "worse than",
    "unclear": "not significantly different from",
    "unknown": "not comparable with",
}
DIVERGED = "The loss is not finite, or far above that of a uniform guess, for"
NAMES = {
    "teacher": "the teacher",
    "student": "the student",
    "control": "the control of the same tokens",
    "control_same_time": "the control of the same time",
}


def summarize_results(recipe: Recipe, results: Sequence[SeedResult]) -> Outcome:
    """The results as sentences; several seeds are represented by their medians."""
    controls = [control for control in CONTROLS if control in models_of(results)]
    broken = {
        model: [str(result.seed) for result in results if result.has_diverged(model)]
        for model in models_of(results)
    }
    verdicts: list[Verdict] = [
        "unknown"
        if broken["student"] or broken[control]
        else judge(differences(results, control), lower_is_better=True)
        for control in controls
    ]
    sentences = [
        *_diverged(recipe, results, broken),
        _cost(results),
        _quality(recipe, results),
        *(
            _against(recipe, results, control, verdict)
            for control, verdict in zip(controls, verdicts, strict=True)
            if not (broken["student"] or broken[control])
        ),
    ]
    if len(results) == 1:
        sentences.append(
            f"This is one seed ({results[0].seed}): the spread between seeds is unknown, and "
            "intervals cover the text alone."
        )
    warnings = [(result.evaluation.get("teacher_fit") or {}).get("warning") for result in results]
    sentences += [str(warning) for warning in warnings if warning][:1]
    verdict, title = _conclude(verdicts)
    if broken["student"]:
        verdict, title = "worse", "The student diverged: it cannot be used."
    return Outcome(verdict, title, [sentence for sentence in sentences if sentence])


def _diverged(
    recipe: Recipe, results: Sequence[SeedResult], broken: dict[str, list[str]]
) -> list[str]:
    """The models that diverged, and what to do."""
    named = {
        model: NAMES.get(model, model) + (f" (seed {', '.join(seeds)})" if results[1:] else "")
        for model, seeds in broken.items()
        if seeds
    }
    sentences = []
    if teacher := named.pop("teacher", None):
        sentences.append(f"{DIVERGED} {teacher}: {_teacher_remedy(recipe)}.")
    if named:
        rate = recipe.distillation.optimizer.learning_rate
        sentences.append(
            f"{DIVERGED} {', '.join(named.values())}: training diverged. "
            f"Lower distillation.optimizer.learning_rate (now {rate:g})."
        )
    return sentences


def _teacher_remedy(recipe: Recipe) -> str:
    if isinstance(recipe.teacher, TeacherRecipe | TunedTeacherRecipe):
        rate = recipe.teacher.training.optimizer.learning_rate
        return f"training diverged. Lower teacher.training.optimizer.learning_rate (now {rate:g})"
    return "its weights are damaged, or it was trained on very different text"


def _conclude(verdicts: Sequence[Verdict]) -> tuple[Verdict, str]:
    """One verdict and title; two controls with different verdicts are both named."""
    if not verdicts:
        return "unknown", f"No control was trained. {TITLES['unknown']}"
    if len(set(verdicts)) == 1:
        return verdicts[0], TITLES[verdicts[0]]
    tokens, time = (COMPARED[verdict] for verdict in verdicts)
    return "unclear", (
        f"The student is {tokens} its control of the same tokens, "
        f"and {time} its control of the same time."
    )


def _cost(results: Sequence[SeedResult]) -> str:
    forward = next(metric for metric in METRICS if metric.short == "forward")
    size = ratio_to_teacher(results, "student", "parameters")
    speed = ratio_to_teacher(results, "student", forward.key)
    parts = [f"{units.percent(size)} of the teacher's parameters"] if size else []
    if speed:
        range_ = noise(results, "student", forward)
        noisy = f" (noisy: {units.between(*range_, units.times)})" if range_ else ""
        slower = ", which is slower" if speed < 0.995 and not (range_ and range_[1] >= 1) else ""
        parts.append(f"{units.times(speed)} its forward throughput{slower}{noisy}")
    return f"The student has {' and '.join(parts)}." if parts else ""


def _quality(recipe: Recipe, results: Sequence[SeedResult]) -> str:
    metric = main_metric(recipe)
    name, show = _name(recipe), metric.unit.show
    student, teacher = (spread_of(results, model, metric.key) for model in ("student", "teacher"))
    if student is None:
        return f"The student's {name} is not a finite number: it cannot be used."
    seeds = f" (median of {seeds_of(recipe.seeds)})" if len(results) > 1 else ""
    reached = f"Its {name} is {show(student.median)}{seeds}"
    if teacher is None:
        return f"{reached}; the teacher's is not a finite number."
    return f"{reached}, compared with the teacher's {show(teacher.median)}; lower is better."


def _name(recipe: Recipe) -> str:
    return "perplexity" if recipe.tokens.language_modeling == "causal" else "masked loss"


def _against(recipe: Recipe, results: Sequence[SeedResult], control: str, verdict: Verdict) -> str:
    metric = main_metric(recipe)
    budget = "for the same tokens" if control == "control" else "for the same time"
    reached = spread_of(results, control, metric.key)
    if reached is None:
        return f"The control trained {budget} has no finite {_name(recipe)}."
    start = (
        f"The same student trained {budget} without the teacher reaches "
        f"{metric.unit.show(reached.median)}"
    )
    paired = differences(results, control)
    known = [each.value for each in paired if each.value is not None]
    if not known:
        return f"{start}."
    middle = median(known)
    gap, size = f"{units.signed(middle)} nats per token", f"{abs(middle):.3f} nats per token"
    certainty = _certainty(results, control, paired, verdict)
    if verdict == "unclear":
        return f"{start}: no significant difference ({gap}, {certainty})."
    ending = {
        "better": f"the student's loss is lower by {size}",
        "worse": f"the student is worse, its loss higher by {size}",
        "unknown": f"the difference of {gap} is inconclusive",
    }[verdict]
    return f"{start}: {ending} ({certainty})."


def _certainty(
    results: Sequence[SeedResult], control: str, paired: Sequence[Difference], verdict: Verdict
) -> str:
    """The interval of a difference, or why there is none; of several seeds, how many agree."""
    if len(paired) == 1:
        (only,) = paired
        sided = verdict in ("better", "worse")
        if interval := only.size_interval() if sided else only.interval():
            return f"95 % interval {interval}"
        found = (results[0].evaluation.get("intervals") or {}).get(control)
        return "evaluated without intervals" if found is None else "the text is too short"
    lower = sum(1 for each in paired if each.value is not None and each.value < 0)
    verdicts = [each.verdict(lower_is_better=True) for each in paired]
    clear = sum(verdict in ("better", "worse") for verdict in verdicts)
    return (
        f"median of {counted(len(paired), 'seed')}; the student has the lower loss in {lower} of "
        f"{len(paired)} seeds, and the 95 % interval excludes zero in {clear}"
    )
