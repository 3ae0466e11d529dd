"""What the models of a task cost: parameters, size on disk, and speed, timed side by side."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from transformers import PreTrainedModel

from stillhouse.inference.reference import forward_pass, ratio_to_first, shape_key, timed_turns


def task_costs(
    folders: Mapping[str, Path], models: Mapping[str, PreTrainedModel], length: int
) -> dict[str, dict[str, Any]]:
    """Figures of each model by name; models of one configuration are timed once.

    Args:
        length: Tokens of each of the 8 sequences that a body reads.
    """
    shapes = {name: shape_key(folder) for name, folder in folders.items()}
    works = {}
    for name, shape in shapes.items():
        body = models[name].base_model
        works.setdefault(shape, partial(forward_pass, models[name], body, length))
    rates = timed_turns(works)
    return {
        name: {
            "parameters": models[name].num_parameters(),
            "size_bytes": sum(file.stat().st_size for file in folder.glob("*.safetensors")),
            "forward_tokens_per_second": median(rates[shapes[name]]),
            "ratio_to_first": ratio_to_first(rates, shapes[name]),
        }
        for name, folder in folders.items()
    }
