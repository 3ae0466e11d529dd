"""Output files: predictions for the rows of a file, and hidden states of a text.

Line n of a file of predictions is a JSON object for row n of the input, with its text and the
model's prediction.
"""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save
from torch import Tensor

from stillhouse.errors import RecipeError
from stillhouse.inference.task_model import TaskModel
from stillhouse.runs.atomic import atomic_file, explained_os_errors, write_atomic
from stillhouse.tasks.task import Task

AT_ONCE = 4_096  # examples whose predictions are in memory
COLUMNS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())


def check_output(path: Path) -> None:
    """Reject an output file that exists, or whose folder does not.

    Raises:
        RecipeError: either of them.
    """
    if path.exists():
        raise RecipeError(f"{path} exists, and nothing is overwritten; give another --output.")
    if not path.absolute().parent.is_dir():
        raise RecipeError(f"--output {path}: there is no folder {path.parent}. Make it first.")


def predict_file(model: TaskModel, source: Path, output: Path) -> tuple[int, int]:
    """Write the prediction for each example of `source`; the file appears when it is complete.

    Returns:
        The number of examples, and of truncated texts.

    Raises:
        DataError: an invalid example, with its file and row.
        ResourceError: the disk is full.
    """
    examples = model.task.read(source, labeled=False)
    num_truncated = 0
    with (
        Progress(*COLUMNS, TimeRemainingColumn(), console=Console(stderr=True)) as progress,
        explained_os_errors(output),
        atomic_file(output) as file,
    ):
        bar = progress.add_task(f"{source.name}", total=len(examples))
        for first in range(0, len(examples), AT_ONCE):
            some = examples[first : first + AT_ONCE]
            predictions, truncated = model.predictions_and_cuts(some)
            num_truncated += truncated
            for example, prediction in zip(some, predictions, strict=True):
                line = example.inputs | _named(model.task, prediction)
                file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
            progress.advance(bar, len(some))
    return len(examples), num_truncated


def _named(task: Task, prediction: Any) -> dict[str, Any]:
    """A prediction as keys and values: several labels, entities and an embedding by their name."""
    result = task.result(prediction)
    if isinstance(result, dict):
        return result
    if task.output_kind == "embeddings":
        return {"embedding": result}
    return {"entities" if task.per_token else "labels": result}


def check_target(path: Path) -> None:
    """Check the name of the output file; see also `check_output`.

    Raises:
        RecipeError: another suffix, a file that exists, or a missing folder.
    """
    if path.suffix not in (".safetensors", ".npy"):
        raise RecipeError(f"--output {path} must end in .safetensors or .npy.")
    check_output(path)


def save_features(states: Float[Tensor, "T D"], path: Path) -> None:
    """Write float32 states; in safetensors under the name `last_hidden_state`."""
    content = io.BytesIO()
    if path.suffix == ".npy":
        np.save(content, states.numpy(), allow_pickle=False)
    else:
        content.write(save({"last_hidden_state": states.contiguous()}))
    with explained_os_errors(path):
        write_atomic(path, content.getvalue())
