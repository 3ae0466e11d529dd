"""The stage teacher: tokens/ -> teacher/."""

from typing import TYPE_CHECKING

from stillhouse.stages.stage import Stage

if TYPE_CHECKING:
    from stillhouse.stages.context import StageContext


def run(context: "StageContext") -> None:
    """Train the teacher, where the recipe does not name one."""
    from stillhouse.teacher.train import teacher_inputs, train_teacher

    recipe = context.recipe
    if not recipe.trains_its_teacher:
        return
    start = None if recipe.named_model is None else context.models.named(recipe.named_model)
    context.once(
        context.run.teacher,
        lambda: teacher_inputs(recipe, context.run, start),
        lambda inputs: train_teacher(context, start, inputs),
        on_all_ranks=True,
    )


STAGE = Stage(
    "teacher",
    "Train the recipe's own teacher: tokens/ to teacher/.\n\n"
    "A recipe that names a teacher has nothing to train here.",
    outputs=lambda run: [run.teacher],
    run=run,
    check=lambda check: check.teacher,
)
