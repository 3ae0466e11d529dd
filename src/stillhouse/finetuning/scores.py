"""What the models of a task are worth, each by itself and against the one that had no teacher.

Schema 2: `splits` has the metrics of each model with their intervals, and under `differences` the
effect of a teacher: the model with a teacher minus the one with the same initial weights and none,
on the same examples, with the paired interval.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from stillhouse.finetuning.settings import FinetuningRecipe
from stillhouse.section import recipe_part
from stillhouse.tasks.metrics import MetricSamples

Measures = Mapping[str, Mapping[str, MetricSamples]]  # by split, then by metric


def task_scores(recipe: FinetuningRecipe, measured: Mapping[str, Measures]) -> dict[str, Any]:
    """The scores of one seed.

    Args:
        measured: For each model, also for a teacher from elsewhere.
    """
    return {
        "schema": 2,
        "task": recipe_part(recipe.task),
        "data": recipe_part(recipe.data),
        "metric": recipe.task.metric,
        "splits": {
            split: {
                "models": {
                    model: {name: asdict(each.interval()) for name, each in found[split].items()}
                    for model, found in measured.items()
                },
                "differences": {
                    f"{taught} minus {alone}": {
                        name: asdict(each.minus(measured[alone][split][name]))
                        for name, each in measured[taught][split].items()
                    }
                    for taught, alone in pairs(recipe)
                },
            }
            for split in recipe.data.splits
        },
    }


def pairs(recipe: FinetuningRecipe) -> list[tuple[str, str]]:
    """Each model that had a teacher, with each one from the same start that had none."""
    return [
        (taught, alone)
        for taught, with_teacher in recipe.models.items()
        if with_teacher.teacher is not None
        for alone, without in recipe.models.items()
        if without.teacher is None
        and (without.start, without.layer_map) == (with_teacher.start, with_teacher.layer_map)
    ]
