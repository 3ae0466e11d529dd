"""The stage race: teacher -> race.json, and candidates/."""

from typing import TYPE_CHECKING

from stillhouse.stages.stage import Stage

if TYPE_CHECKING:
    from stillhouse.race.candidates import Candidate
    from stillhouse.recipe import Recipe
    from stillhouse.stages.check import RecipeCheck
    from stillhouse.stages.context import ModelRef, StageContext


def check(check: "RecipeCheck") -> None:
    """There are students of the budget's size that can be distilled as the recipe says, and the
    text that they are cut on is there."""
    from stillhouse.race.candidates import plan_candidates
    from stillhouse.race.speed import decoding_times
    from stillhouse.student.calibration import check_text

    recipe = check.recipe
    assert recipe.student.budget is not None
    if recipe.student.budget.tokens_per_second is not None:
        if not check.runs("race"):  # other stages do not pay for times
            check.candidates = [_any_candidate(check)]
            return
        saved = check.run and check.run.decoding_times
        check.times = decoding_times(check.teacher, _trained_teacher(check), saved)
    relation = recipe.distillation.losses.relation
    check.candidates = plan_candidates(check.teacher, recipe.student, relation, check.times)
    if check.runs("race"):
        check_text(recipe.student.importance, check.teacher, offline=check.offline)


def _any_candidate(check: "RecipeCheck") -> "Candidate":
    """A student of all layers, which stands for those that the race will choose from."""
    from stillhouse.race.candidates import candidate_of

    every = {"budget": None, "layer_map": check.teacher.num_hidden_layers}
    return candidate_of(check.teacher, check.recipe.student.model_copy(update=every))


def _trained_teacher(check: "RecipeCheck") -> "ModelRef | None":
    """The teacher, where its weights are there already; before the run has made it, the model that
    it is made from."""
    from stillhouse.runs.manifest import fingerprint_of
    from stillhouse.stages.context import ModelRef, folder_fingerprint

    recipe = check.recipe
    if recipe.makes_its_teacher and check.run is not None:
        made = fingerprint_of(check.run.teacher)
        if made:
            return ModelRef(check.run.teacher, made)
    if recipe.trains_its_teacher:
        return None
    assert recipe.named_model is not None
    folder = check.resolve(recipe.named_model)
    if not check.has_weights(recipe.named_model, folder):
        return None
    return ModelRef(folder, folder_fingerprint(folder))


def run(context: "StageContext") -> None:
    """Race the candidates of the budget."""
    from stillhouse.race.race import Race

    race = Race(context)
    context.once(context.run.race, race.inputs, race.hold, on_all_ranks=True)
    race.restore_winner()


def has_budget(recipe: "Recipe") -> bool:
    """Whether the student's shape is chosen by a race."""
    return recipe.corpus is not None and recipe.student.budget is not None


STAGE = Stage(
    "race",
    "Choose the student's shape under a budget.\n\n"
    "Reads the teacher and tokens/, writes candidates/ and race.json.",
    outputs=lambda run: [run.race],
    run=run,
    check=check,
    applies=has_budget,
    needs=("prepare",),
)
