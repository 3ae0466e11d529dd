"""The stage race: teacher -> race.json, and candidates/."""

from typing import TYPE_CHECKING

from stillhouse.stages.stage import Stage

if TYPE_CHECKING:
    from stillhouse.recipe import Recipe
    from stillhouse.stages.check import RecipeCheck
    from stillhouse.stages.context import StageContext


def check(check: "RecipeCheck") -> None:
    """There are students of the budget's size that can be distilled as the recipe says, and the
    text that they are cut on is there."""
    from stillhouse.race.candidates import plan_candidates
    from stillhouse.student.calibration import check_text

    recipe = check.recipe
    relation = recipe.distillation.losses.relation
    check.candidates = plan_candidates(check.teacher, recipe.student, relation)
    if check.runs("race"):
        check_text(recipe.student.importance, offline=check.offline)


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
