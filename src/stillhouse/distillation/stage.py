"""The stage distill: tokens/ and student-init/ -> student/ and control/."""

from typing import TYPE_CHECKING

from stillhouse.stages.stage import Stage

if TYPE_CHECKING:
    from stillhouse.stages.check import RecipeCheck
    from stillhouse.stages.context import StageContext


def check(check: "RecipeCheck") -> None:
    """Student and teacher have what the losses compare, and what is frozen."""
    from stillhouse.distillation.distill import check_frozen
    from stillhouse.objectives.relation import check_relation

    recipe, student = check.recipe, check.student
    check_relation(recipe.distillation.losses.relation, student.config, check.teacher)
    check_frozen(student.family, recipe.student.freeze)


def run(context: "StageContext") -> None:
    """Write the teacher cache where the recipe has one, then train student and controls."""
    from stillhouse.distillation.distill import Distillation

    distillation = Distillation(context)
    for model in context.recipe.distillation.models:
        distillation.make(model)


STAGE = Stage(
    "distill",
    "Train the student, then its control.\n\n"
    "Reads tokens/ and student-init/, writes student/ and control/.",
    outputs=lambda run: [run.student, run.control, run.control_same_time, run.teacher_cache],
    run=run,
    check=check,
    needs=("prepare", "init"),
    per_seed=True,
)
