"""What the models of a task are worth, each by itself and against the one that had no teacher.

Schema 2: `splits` has the metrics of each model with their intervals, and under `differences` the
effect of a teacher: the model with a teacher minus the one with the same initial weights and none,
on the same examples, with the paired interval.
"""

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from transformers import PreTrainedModel

from stillhouse.finetuning.settings import FinetuningRecipe
from stillhouse.inference.reference import forward_pass, ratio_to_first, shape_key, timed_turns
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
    """Each model with a teacher, with each one from the same start without."""
    return [
        (taught, alone)
        for taught, with_teacher in recipe.models.items()
        if with_teacher.teacher is not None
        for alone, without in recipe.models.items()
        if without.teacher is None
        and (without.start, without.layer_map) == (with_teacher.start, with_teacher.layer_map)
    ]


def task_costs(
    folders: Mapping[str, Path], models: Mapping[str, PreTrainedModel], length: int
) -> dict[str, dict[str, Any]]:
    """Parameters, size on disk and speed of each model, timed in turns; models of one configuration
    are timed once.

    Args:
        length: Tokens of each of the 8 sequences in a forward pass.
    """
    shapes = {name: shape_key(folder) for name, folder in folders.items()}
    passes = {}
    for name, shape in shapes.items():
        body = models[name].base_model
        passes.setdefault(shape, partial(forward_pass, models[name], body, length))
    rates = timed_turns(passes)
    return {
        name: {
            "parameters": models[name].num_parameters(),
            "size_bytes": sum(file.stat().st_size for file in folder.glob("*.safetensors")),
            "forward_tokens_per_second": median(rates[shapes[name]]),
            "ratio_to_first": ratio_to_first(rates, shapes[name]),
        }
        for name, folder in folders.items()
    }
