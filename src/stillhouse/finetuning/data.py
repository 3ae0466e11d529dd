"""The examples of a task: read from its files, checked before training for mistakes that make
training or scoring meaningless, and batched.

Axes: B sequences, T tokens, U units, G sequences of a unit.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from transformers import PretrainedConfig

from stillhouse.data.rows import name_of
from stillhouse.errors import DataError, RecipeError
from stillhouse.finetuning.objective import HARD_LABEL
from stillhouse.finetuning.settings import FinetuningRecipe, TaskTrainingRecipe
from stillhouse.tasks.encoded import EncodedExample, TaskBatch, collate
from stillhouse.tasks.labels import listed
from stillhouse.tasks.registry import task_for_training
from stillhouse.tasks.settings import ClassificationTask, TaskRecipe
from stillhouse.tasks.task import Task, check_measurable
from stillhouse.tokens.batches import epoch_order
from stillhouse.training.cost import StepShape
from stillhouse.training.device import micro_batch_sequences, pick_precision
from stillhouse.wording import counted

MAX_DISTINCT = 20  # examples that may all have different labels
UNLABELED = (
    "A student learns from unlabeled examples where losses.hard_label is 0 and every model of "
    "the task has a teacher."
)


@dataclass(frozen=True)
class TaskExamples:
    """A task with its labels, and its training, validation and unlabeled examples.

    `notes` are remarks for the user.
    """

    task: Task
    training: list[Any]
    splits: dict[str, list[Any]]
    unlabeled: list[Any]
    notes: list[str] = field(default_factory=list)


def check_task_data(
    name: str,
    recipe: FinetuningRecipe,
    teachers: Mapping[str, PretrainedConfig],
    paths: Mapping[str, Path],
) -> TaskExamples:
    """Read and check all examples of the task `name`.

    Args:
        teachers: The configurations of teachers that are not models of the task.
        paths: The file of each source, by its key.

    Raises:
        DataError: what cannot be read, with its file and row; too few examples for a step; labels
            that are all the same.
        RecipeError: a teacher for another task or other labels; a step that is no multiple of the
            task's group.
    """
    task = task_for_training(recipe.task, paths["train"], teachers)
    examples = training_examples(recipe, task, paths["train"])
    check_number(name, recipe, len(examples), paths["train"])
    check_training(task, examples, paths["train"])
    notes, splits = [], {}
    for split in recipe.data.splits:
        path = paths[recipe.data.key_of(split)]
        splits[split] = found = task.read(path)
        check_split(task, found, path, examples, paths["train"])
        if shared := num_shared(found, examples):
            notes.append(
                f"{name_of(path)}: {shared:,} of {counted(len(found), 'example')} are also in "
                f"{name_of(paths['train'])}; scores on training examples are too high"
            )
    unlabeled = task.read(paths["unlabeled"], labeled=False) if "unlabeled" in paths else []
    unlabeled = subsample(unlabeled, recipe.data.num_unlabeled)
    return TaskExamples(task, examples, splits, unlabeled, notes)


def num_shared(examples: Sequence[Any], training: Sequence[Any]) -> int:
    """The number of examples whose inputs occur in the training data, whatever their labels."""
    known = {_input_of(example) for example in training}
    return sum(_input_of(example) in known for example in examples)


def _input_of(example: Any) -> tuple[str, ...]:
    return tuple(text for name, text in example.inputs.items() if name != "id")


def training_examples(recipe: FinetuningRecipe, task: Task, path: Path) -> list[Any]:
    """The training examples, without labels where the file has none and no model needs them.

    Raises:
        DataError: what cannot be read, with its file and row.
    """
    is_labeled = task.is_labeled(path)
    examples = task.read_training(path) if is_labeled else task.read(path, labeled=False)
    if not is_labeled and needs_labels(recipe):
        try:
            examples = task.read_training(path)
        except DataError as error:
            raise DataError(f"{error} {UNLABELED}") from error
    return subsample(examples, recipe.data.num_train)


def needs_labels(recipe: FinetuningRecipe) -> bool:
    """Whether a model trains on the labels of the training data."""
    alone = any(model.teacher is None for model in recipe.models.values())
    return alone or HARD_LABEL in recipe.losses.active()


def group_size(recipe: TaskRecipe) -> int:
    """The number of examples that a loss compares with each other."""
    return getattr(recipe, "group", 1)


def check_number(name: str, recipe: FinetuningRecipe, number: int, path: Path) -> None:
    """Refuse a step that is no multiple of the group, and data that does not fill a step."""
    wanted, group = recipe.training.examples_per_step, group_size(recipe.task)
    if wanted % group:
        raise RecipeError(
            f"finetuning.{name}.training.examples_per_step is {wanted}, no multiple of the task's "
            f"group, {group}."
        )
    if number < wanted:
        raise DataError(
            f"{path} gives {number} examples, fewer than a step's {wanted}. Give more, or lower "
            f"finetuning.{name}.training.examples_per_step."
        )


def check_training(task: Task, examples: Sequence[Any], path: Path) -> None:
    """Refuse training data whose labels are all the same, or all different.

    Raises:
        DataError: they are.
    """
    found = task.distinct_labels(examples)
    if isinstance(task.recipe, ClassificationTask) and found and not task.recipe.labels:
        _check_repeated(task, found, examples, path)
    if found is not None and len(found) < 2:
        raise DataError(
            f"{path}: all {len(examples):,} examples "
            f"{task.describe_label(next(iter(found), None))}, so there is nothing to learn from "
            f"them. {task.advice}"
        )


def _check_repeated(
    task: Task, found: Collection[Any], examples: Sequence[Any], path: Path
) -> None:
    if len(found) == len(examples) > MAX_DISTINCT:
        names = listed(sorted(task.label_names(set(found))))
        raise DataError(
            f"{path}: each of the {len(examples):,} examples has a label of its own ({names}), "
            "so there is nothing to learn from them. Name the column of the labels as "
            "columns.target; for numbers use the task regression."
        )


def check_split(
    task: Task, examples: Sequence[Any], path: Path, training: Sequence[Any], train: Path
) -> None:
    """Refuse data on which the task's metric is meaningless: labels that never occur in training,
    or a correlation with constant values.

    Raises:
        DataError: such data.
    """
    check_measurable(task, examples, path)
    ours, known = (task.label_names(task.distinct_labels(each)) for each in (examples, training))
    if ours and known and not ours & known:
        raise DataError(
            f"{path}: none of its labels ({listed(sorted(ours))}) occurs in {train} "
            f"({listed(sorted(known))}). Give validation data of the same task."
        )


class TaskSource:
    """Units of one sequence, or of several that a loss compares, regrouped in each epoch.

    Attributes:
        unit_size: Sequences of a unit.
        num_sequences: The number of complete units; the remainder differs between epochs.
        sequence_length: Tokens of the longest unit.
        mean_length: Real tokens of a unit.
        mean_pairs: Pairs of positions that attend to each other in a unit.
        lengths: Tokens of each unit, where units are fixed.
    """

    def __init__(
        self,
        sequences: Sequence[EncodedExample],
        *,
        pad_token_id: int,
        per_token: bool,
        group: int = 1,
        twice: bool = False,
    ) -> None:
        """Groups of `group` sequences; with `twice` each sequence is followed by its copy."""
        self.sequences = sequences
        self.pad_token_id = pad_token_id
        self.per_token = per_token
        self.group = group
        self.copies = 2 if twice else 1
        self.unit_size = group * self.copies
        self.num_sequences = len(sequences) // group
        lengths = np.array([len(each.input_ids) for each in sequences])
        self.sequence_length = int(lengths.max()) * self.unit_size
        self.mean_length = float(lengths.mean()) * self.unit_size
        self.mean_pairs = float((lengths**2).mean()) * self.unit_size
        self.lengths = lengths if group == 1 else None
        self._groups: dict[tuple[int, int], Int[np.ndarray, "U G"]] = {}

    def batch(
        self, units: Int[np.ndarray, " U"], epochs: Int[np.ndarray, " U"], seed: int
    ) -> TaskBatch:
        """The given units, each in its epoch."""
        chosen = [
            self.sequences[place]
            for unit, epoch in zip(units.tolist(), epochs.tolist(), strict=True)
            for place in self._places(unit, epoch, seed)
            for _ in range(self.copies)
        ]
        return collate(
            chosen,
            pad_token_id=self.pad_token_id,
            per_token=self.per_token,
            unit_size=self.unit_size,
        )

    def _places(self, unit: int, epoch: int, seed: int) -> list[int]:
        if self.group == 1:
            return [unit]
        if (seed, epoch) not in self._groups:
            order = epoch_order(seed + 1, epoch, len(self.sequences))
            whole = order[: self.num_sequences * self.group]
            self._groups = {(seed, epoch): whole.reshape(-1, self.group)}
        return self._groups[seed, epoch][unit].tolist()


def planned_task_step(
    source: TaskSource, units: int, training: TaskTrainingRecipe, device: torch.device, taught: bool
) -> StepShape:
    """A step of `units` units of average length; the cost of task heads is negligible."""
    at_once = micro_batch_sequences(training.micro_batch_tokens, device, source.sequence_length)
    positions = units * source.mean_length
    return StepShape(
        round(positions),
        units * source.mean_pairs,
        read_rows=positions,
        student_rows=0,
        teacher_rows=0 if taught else None,
        micro_batches=-(-units // at_once),
        precision=pick_precision(training.precision, device),
    )


def subsample(examples: Sequence, number: int | None) -> list:
    """A sample of `number` examples in their order, the same for every model and seed; or all."""
    if number is None or number >= len(examples):
        return list(examples)
    chosen = np.random.default_rng(0).choice(len(examples), number, replace=False)
    return [examples[place] for place in sorted(chosen.tolist())]
