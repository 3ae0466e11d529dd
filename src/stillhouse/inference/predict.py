"""A file of examples to a file of predictions: line n is a JSON object for row n of the input, with
its text and what the model says of it."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from stillhouse.errors import RecipeError
from stillhouse.inference.task_model import TaskModel
from stillhouse.runs.atomic import explained_os_errors, fsync_path, temporary_path
from stillhouse.tasks.last_word import Passage
from stillhouse.tasks.squad import Question
from stillhouse.tasks.task import Task
from stillhouse.tasks.texts import TextExample
from stillhouse.tasks.token_classification import Words

AT_ONCE = 4_096  # examples whose predictions are in memory


def check_output(path: Path) -> None:
    """Refuse a file that exists, or one in a folder that does not.

    Raises:
        RecipeError: either of them.
    """
    if path.exists():
        raise RecipeError(f"{path} exists, and nothing is overwritten; give another --output.")
    if not path.absolute().parent.is_dir():
        raise RecipeError(f"--output {path}: there is no folder {path.parent}. Make it first.")


def predict_file(model: TaskModel, source: Path, output: Path) -> tuple[int, int]:
    """Write the prediction for each example of `source`; the file appears when it is whole.

    Returns:
        How many there are, and of how many texts the end was not read.

    Raises:
        DataError: what cannot be read, with its file and row.
        ResourceError: the disk is full.
    """
    examples = model.task.read(source, targets=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with (
        Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress,
        explained_os_errors(output),
    ):
        bar = progress.add_task(f"{source.name}", total=len(examples))
        num_cut = 0
        temporary = temporary_path(output, os.getpid())
        try:
            with temporary.open("w", encoding="utf-8") as file:
                for results, cut in _results(model, examples):
                    num_cut += cut
                    file.writelines(json.dumps(each, ensure_ascii=False) + "\n" for each in results)
                    progress.advance(bar, len(results))
            fsync_path(temporary)
            temporary.replace(output)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    return len(examples), num_cut


def _results(model: TaskModel, examples: list[Any]) -> Iterator[tuple[list[Any], int]]:
    for first in range(0, len(examples), AT_ONCE):
        some = examples[first : first + AT_ONCE]
        found, num_cut = model.predictions_and_cuts(some)
        results = [
            {**_text_of(example), **_named(model.task, model.task.result(prediction))}
            for example, prediction in zip(some, found, strict=True)
        ]
        yield results, num_cut


def _text_of(example: Any) -> dict[str, str]:
    """What the model was given."""
    match example:
        case TextExample():
            pair = {} if example.pair is None else {"text_pair": example.pair}
            return {"text": example.text, **pair}
        case Question():
            return {"id": example.id, "question": example.question, "context": example.context}
        case Words():
            return {"text": example.text}
        case Passage():
            return {"text": example.before + example.last}
        case _:
            raise AssertionError(example)


def _named(task: Task, result: Any) -> dict[str, Any]:
    """An answer as keys and values: several labels, entities and a vector by their name."""
    if isinstance(result, dict):
        return result
    if task.says == "vectors":
        return {"embedding": result}
    return {"entities" if task.per_token else "labels": result}
