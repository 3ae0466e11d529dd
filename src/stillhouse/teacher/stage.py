"""The stage teacher: tokens/ -> teacher/."""

from typing import TYPE_CHECKING

from stillhouse.stages.stage import Stage

if TYPE_CHECKING:
    from stillhouse.stages.context import StageContext


def run(context: "StageContext") -> None:
    """Train the teacher, or write the named one with the student's vocabulary; where neither is to
    be done, nothing."""
    from stillhouse.teacher.train import teacher_inputs, train_teacher
    from stillhouse.teacher.vocabulary import trim_teacher, trimmed_inputs

    recipe = context.recipe
    if not recipe.makes_its_teacher:
        return
    start = None if recipe.named_model is None else context.models.named(recipe.named_model)
    if start is not None and not recipe.trains_its_teacher:
        context.once(
            context.run.teacher,
            lambda: trimmed_inputs(context.run, start),
            lambda inputs: trim_teacher(context, start, inputs),
        )
        return
    context.once(
        context.run.teacher,
        lambda: teacher_inputs(recipe, context.run, start),
        lambda inputs: train_teacher(context, start, inputs),
        on_all_ranks=True,
    )


STAGE = Stage(
    "teacher",
    "Train the recipe's own teacher: tokens/ to teacher/.\n\n"
    "A recipe that names a teacher has nothing to do here, unless the student has a vocabulary of "
    "its own: then the teacher's rows of these tokens are written.",
    outputs=lambda run: [run.teacher],
    run=run,
    check=lambda check: check.teacher,
)
