"""The stage init: teacher -> student-init/."""

from typing import TYPE_CHECKING

from stillhouse.stages.stage import Stage

if TYPE_CHECKING:
    from stillhouse.stages.check import RecipeCheck
    from stillhouse.stages.context import StageContext


def check(check: "RecipeCheck") -> None:
    """The student follows from the teacher, the weights that it starts from fit, and the text that
    its layers are chosen on is there."""
    from stillhouse.student.calibration import check_text
    from stillhouse.student.initialize import check_initial_weights
    from stillhouse.student.plan import plan_student
    from stillhouse.student.reconstruction import check_reconstruction

    if check.candidates:  # any of them: they are of one family and size
        check.student = check.candidates[0].plan
    else:
        check.student = plan_student(check.teacher, check.recipe.student)
    if check.recipe.student.reconstruct:
        check_reconstruction(check.teacher, check.student.layer_map)
    if check.runs("init") and not check.candidates:
        check_initial_weights(check.recipe.student.weights, check.student)
        if check.student.is_measured:
            check_text(check.recipe.student.importance, check.teacher, offline=check.offline)


def run(context: "StageContext") -> None:
    """Write the initial student."""
    from stillhouse.student.initialize import initialize, initialize_inputs

    teacher = context.models.teacher
    context.once(
        context.run.student_init,
        lambda: initialize_inputs(context, teacher),
        lambda inputs: initialize(context, teacher.folder, inputs),
    )


STAGE = Stage(
    "init",
    "Make the initial student: teacher to student-init/.",
    outputs=lambda run: [run.student_init],
    run=run,
    check=check,
    needs=("prepare",),
    per_seed=True,
)
