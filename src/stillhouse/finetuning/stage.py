"""The stage finetune: the models and the data of each task -> finetuned/TASK/."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from stillhouse.stages.stage import Stage

if TYPE_CHECKING:
    from pathlib import Path

    from stillhouse.runs.paths import RunFolder
    from stillhouse.stages.check import RecipeCheck
    from stillhouse.stages.context import ModelRef, StageContext


def check(check: "RecipeCheck") -> None:
    """The models of each task fit together, and its examples can be read."""
    if not check.runs("finetune"):
        return
    from stillhouse.finetuning.models import check_task

    _ = check.teacher
    check.tasks = {name: check_task(check, name) for name in check.recipe.finetuning}


def run(context: "StageContext") -> None:
    """Train the models of each task in turn, then score them."""
    for task in context.recipe.finetuning:
        _run_task(context, task)


def _run_task(context: "StageContext", task: str) -> None:
    from stillhouse.finetuning.finetune import Finetuning

    recipe = context.recipe.finetuning[task]
    starts = {name: _model(context, model.start) for name, model in recipe.models.items()}
    teachers = {
        model.teacher: _model(context, model.teacher)
        for model in recipe.models.values()
        if model.teacher is not None and model.teacher not in recipe.models
    }
    finetuning = Finetuning(task, context, teachers)
    context.ranks.on_rank0(lambda: finetuning.check(starts))
    for name, model in recipe.models.items():
        teacher = None
        if model.teacher is not None:
            teacher = teachers.get(model.teacher) or context.models.committed(
                finetuning.folder(model.teacher), "finetune"
            )
        context.once(
            finetuning.folder(name),
            partial(finetuning.inputs, name, starts[name], teacher),
            partial(finetuning.train, name, starts[name], teacher),
            on_all_ranks=True,
        )
    context.once(finetuning.scores, finetuning.scores_inputs, finetuning.score_all)


def _model(context: "StageContext", name: str) -> "ModelRef":
    """The model that a name stands for which is no model of the task."""
    stages = {"student": "distill", "student_init": "init", "control": "distill"}
    if name == "teacher":
        return context.models.teacher
    if name in stages:
        return context.models.committed(context.run.model(name), stages[name])
    return context.models.named(name)


def _outputs(run: "RunFolder") -> Sequence["Path"]:
    return sorted([*run.finetuned("").glob("*/*/"), *run.finetuned("").glob("*/scores.json")])


STAGE = Stage(
    "finetune",
    "Train the recipe's models of tasks, alone or under a teacher, and score them.\n\n"
    "Reads the models and the data of `finetuning`, writes finetuned/TASK/MODEL/ and scores.json.",
    outputs=_outputs,
    run=run,
    check=check,
    applies=lambda recipe: bool(recipe.finetuning),
    per_seed=True,
)
