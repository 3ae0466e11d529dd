"""Checks of task distillation, on the user's own models and examples.

The reference side runs transformers' own model on one sequence at a time, without padding, and
states each loss again in float64.

Axes: T tokens of a sequence, C classes, D hidden size.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from stillhouse.data.rows import fetch, path_of
from stillhouse.errors import RecipeError
from stillhouse.finetuning.data import TaskSource, group_size, training_examples
from stillhouse.finetuning.models import layer_map_of, load_start, load_trained
from stillhouse.finetuning.objective import HARD_LABEL, TERMS, TaskObjective
from stillhouse.finetuning.settings import MODELS_OF_A_RUN, FinetuningRecipe, TaskLossesRecipe
from stillhouse.models.folder_check import load_config, reads_token_types
from stillhouse.models.hub import resolve_folder
from stillhouse.models.task_models import task_model_with_num_layers
from stillhouse.objectives.divergences.hidden_cosine import hidden_cosine_reference
from stillhouse.objectives.divergences.soft_target import soft_target_reference
from stillhouse.objectives.float64 import Row, log_softmax, mean_square
from stillhouse.objectives.projection import add_projection, projection_of
from stillhouse.recipe import Recipe
from stillhouse.tasks.encoded import EncodedExample, TaskBatch, collate
from stillhouse.tasks.registry import task_for_training
from stillhouse.tasks.task import Task
from stillhouse.tokens.batches import IGNORED
from stillhouse.tokens.tokenizer import load_tokenizer
from stillhouse.training.device import pick_device
from stillhouse.verification.checks import (
    EXACT,
    SEQUENCES,
    Check,
    copy_check,
    means_of,
    relative,
    split_check,
    worst,
)

MOST_COMPARED = 4  # of a group of texts that are compared with each other
CONTRAST_TEMPERATURE = 0.05  # Gao et al. 2021, section 3


@dataclass(frozen=True)
class TaskCase:
    """A student and its teacher in float32 without dropout, and encoded examples.

    `group` sequences that follow one another are compared with each other; 1 where none are.
    """

    task: Task
    recipe: FinetuningRecipe
    student: PreTrainedModel
    teacher: PreTrainedModel
    sequences: Sequence[EncodedExample]
    group: int

    def batch(self, sequences: Sequence[EncodedExample]) -> TaskBatch:
        return collate(
            sequences,
            pad_token_id=self.student.config.pad_token_id or 0,
            per_token=self.task.per_token,
            unit_size=self.group,
        ).to(self.student.device)

    def losses(self) -> TaskLossesRecipe:
        """Every term of this kind of task, each with weight 1, and the recipe's relation."""
        terms: dict[str, Any] = {"hard_label": 0.0, "soft_target": 0.0}
        terms |= dict.fromkeys(TERMS[self.task.output_kind], 1.0)
        return TaskLossesRecipe.model_validate({**terms, "relation": self.recipe.losses.relation})

    def objective(self, losses: TaskLossesRecipe | None = None) -> TaskObjective:
        """The objective of these terms; by default of every term."""
        return TaskObjective(
            self.task,
            losses or self.losses(),
            teacher=self.teacher,
            temperature=self.recipe.temperature,
        )


def task_case(
    name: str, settings: FinetuningRecipe, recipe: Recipe, folder: Path, *, offline: bool
) -> TaskCase:
    """The task's first student with a teacher, and the task's first examples.

    A model that the recipe trains before (its own student, a teacher fine-tuned on the task) is
    taken as it starts: the checks do not depend on how good it is.
    """
    for key, source in settings.data.sources.items():
        where = f"finetuning.{name}.data.{key}"
        fetch(source, folder, where, lambda _: None, offline=offline)
    chosen = next(
        (m for m, own in settings.models.items() if own.teacher), next(iter(settings.models))
    )
    taught_by = settings.models[chosen].teacher or chosen
    start, teacher_start = (
        resolve_folder(_origin(model, settings, recipe), offline=offline)
        for model in (chosen, taught_by)
    )
    path = path_of(settings.data.train, folder)
    from_elsewhere = taught_by not in settings.models
    configs = {str(teacher_start): load_config(teacher_start)} if from_elsewhere else {}
    task = task_for_training(settings.task, path, configs)
    student = load_start(task, start, seed=0)
    teacher = (
        load_trained(task, teacher_start)
        if from_elsewhere
        else load_start(task, teacher_start, seed=1)  # not the student's head
    )
    layers = layer_map_of(name, settings, chosen, student.config)
    if layers is not None:
        student = task_model_with_num_layers(student, layers)
    if task.output_kind == "embeddings":
        add_projection(student, teacher.config)
    for model in (student, teacher):
        model.eval().to(pick_device())  # pyright: ignore[reportArgumentType]
    group = min(MOST_COMPARED, group_size(settings.task))
    examples = training_examples(settings, task, path)[: SEQUENCES * group + 1]
    encoded = [each for own in task.encode(examples, load_tokenizer(start)) for each in own]
    whole = len(encoded) // group * group
    return TaskCase(task, settings, student, teacher.requires_grad_(False), encoded[:whole], group)


def _origin(model: str, settings: FinetuningRecipe, recipe: Recipe) -> str:
    """The name or folder that a model of a task starts from in the end."""
    if model in settings.models:
        model = settings.models[model].start
    if model in MODELS_OF_A_RUN:
        if recipe.named_model is None:
            raise RecipeError(
                f"The task's model starts from {model}, which this recipe trains from random "
                "weights. Run the recipe, then verify it with `teacher:` set to the folder of its "
                "student."
            )
        return recipe.named_model
    return model


def task_checks(case: TaskCase, folder: Path) -> Iterator[Check]:
    """All checks, one after the other; `folder` is for temporary files."""
    batch = case.batch(case.sequences)
    yield copy_check(case.objective(), case.teacher, [batch], labels=HARD_LABEL)
    source = TaskSource(
        case.sequences,
        pad_token_id=case.student.config.pad_token_id or 0,
        per_token=case.task.per_token,
        group=case.group,
        twice=case.task.output_kind == "embeddings",
    )
    objective = case.objective(case.recipe.losses)
    yield split_check(case.recipe.training, case.student, objective, source, folder)
    yield batched_check(case)
    yield from reference_checks(case)


def batched_check(case: TaskCase) -> Check:
    """Sequences side by side with padding, and each unit alone: the same losses."""
    objective, size = case.objective(), case.group
    units = [case.sequences[at : at + size] for at in range(0, len(case.sequences), size)]
    together = means_of(objective, case.student, [case.batch(case.sequences)])
    alone = means_of(objective, case.student, [case.batch(unit) for unit in units])
    name, apart = worst(together, alone)
    what = "examples" if size == 1 else f"groups of {size}"
    compared = f"{len(units)} {what}, each alone ({name})"
    return Check("batched vs alone", compared, apart, EXACT, "rel.")


def reference_checks(case: TaskCase) -> Iterator[Check]:
    """Each loss in float64, from what transformers computes for one sequence at a time."""
    found = means_of(case.objective(), case.student, [case.batch(case.sequences)])
    ours = [plain_output(case, case.student, each) for each in case.sequences]
    theirs = [plain_output(case, case.teacher, each) for each in case.sequences]
    for name, values in expected_values(case, ours, theirs).items():
        if name in found and values:
            compared = f"float64 loop, {len(values)} rows"
            apart = relative(found[name], math.fsum(values) / len(values))
            yield Check(name, compared, apart, EXACT, "rel.")


@torch.inference_mode()
def plain_output(case: TaskCase, model: PreTrainedModel, sequence: EncodedExample) -> np.ndarray:
    """Logits (C), (T, C) or (2, T), a value (1), or a vector of length 1 (D), in float64."""
    inputs = {"input_ids": sequence.input_ids}
    if reads_token_types(model.config):
        inputs["token_type_ids"] = sequence.token_type_ids
    tensors = {
        name: torch.from_numpy(np.ascontiguousarray(ids))[None].to(model.device)
        for name, ids in inputs.items()
    }
    output: Any = model(**tensors)
    if case.task.output_kind == "embeddings":
        hidden = _float64(output.last_hidden_state)
        pooled = hidden[0] if getattr(case.task.recipe, "pooling", "") == "cls" else hidden.mean(0)
        return pooled / math.sqrt(float(pooled @ pooled))
    if case.task.head == "QuestionAnswering":
        return np.stack([_float64(output.start_logits), _float64(output.end_logits)])
    return _float64(output.logits)


def _float64(tensor: Tensor) -> np.ndarray:
    return tensor[0].double().cpu().numpy()


def expected_values(
    case: TaskCase, ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]
) -> Mapping[str, list[float]]:
    """The value of each term in each of its rows."""
    if case.task.output_kind == "embeddings":
        return _vector_values(case, ours, theirs)
    values: dict[str, list[float]] = {HARD_LABEL: [], "soft_target": []}
    for sequence, student, teacher in zip(case.sequences, ours, theirs, strict=True):
        for row, target in _rows_of(case, sequence, student, teacher):
            values["soft_target"].append(_soft(case, *row))
            if sequence.is_labeled:
                values[HARD_LABEL].append(_hard(case, row[0], target))
    return values


def _rows_of(
    case: TaskCase, sequence: EncodedExample, student: np.ndarray, teacher: np.ndarray
) -> Iterator[tuple[tuple[np.ndarray, np.ndarray], Any]]:
    """The rows of a sequence that are asked for: both sides' logits or numbers, and the target. A
    label that holds or not is a class of two, the other of which has logit 0."""
    target = sequence.target
    if case.task.head == "QuestionAnswering":
        assert sequence.output_mask is not None
        places = np.flatnonzero(sequence.output_mask)
        for edge in (0, 1):
            if target[edge] != IGNORED:
                pair = (student[edge][places], teacher[edge][places])
                yield pair, int(np.flatnonzero(places == target[edge])[0])
    elif case.task.per_token:
        for at in np.flatnonzero(target != IGNORED).tolist():
            yield (student[at], teacher[at]), int(target[at])
    elif case.task.output_kind == "classes":
        yield (student, teacher), int(np.atleast_1d(target)[0])
    elif case.task.output_kind == "labels":
        for s, t, value in zip(student, teacher, target.tolist(), strict=True):
            yield (np.array([0.0, s]), np.array([0.0, t])), int(value)
    else:
        yield (student, teacher), float(np.atleast_1d(target)[0])


def _hard(case: TaskCase, row: np.ndarray, target: Any) -> float:
    if case.task.output_kind == "regression":
        return float(row[0] - target) ** 2
    return cross_entropy(row, target)


def _soft(case: TaskCase, student: np.ndarray, teacher: np.ndarray) -> float:
    if case.task.output_kind == "regression":
        return float(student[0] - teacher[0]) ** 2
    return soft_target_reference(student, teacher, temperature=case.recipe.temperature)


def cross_entropy(logits: Row, label: int) -> float:
    """-log softmax(logits)[label] in nats."""
    return -float(log_softmax(logits)[label])


def _vector_values(
    case: TaskCase, ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]
) -> Mapping[str, list[float]]:
    """Of vectors: each with the teacher's, and each with the others of its group."""
    student, teacher = np.stack(ours), np.stack(theirs)
    similarity, contrast = [], []
    for start in range(0, len(student), case.group):
        part = slice(start, start + case.group)
        own, other = student[part], teacher[part]
        for i in range(len(own)):
            rest = [j for j in range(len(own)) if j != i]
            squares = [float(own[i] @ own[j] - other[i] @ other[j]) ** 2 for j in rest]
            similarity.append(math.fsum(squares) / max(1, len(rest)))
        # Rows 0 and 1, 2 and 3, ... are partners; each is compared with all of the other side.
        first, second = own[0::2], own[1::2]
        for left, right in ((first, second), (second, first)):
            for i, vector in enumerate(left):
                scores = np.array([vector @ each for each in right]) / CONTRAST_TEMPERATURE
                contrast.append(cross_entropy(scores, i))
    values = {"similarity": similarity, HARD_LABEL: contrast}
    if (projection := projection_of(case.student)) is not None:
        student = student @ projection.get_parameter("weight").detach().double().cpu().numpy().T
    pairs = list(zip(student, teacher, strict=True))
    values["embedding_cosine"] = [hidden_cosine_reference(*pair) for pair in pairs]
    values["embedding_mse"] = [mean_square(*pair) for pair in pairs]
    return values
