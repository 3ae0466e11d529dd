"""What a training step costs, per token, counted from configurations alone.

FLOPs are 2 x MACs. A position costs two per weight of the layers' matrices, and four times the
hidden size for each position that it attends to, in every layer; what follows attention in the last
layer is computed only for rows that a loss reads. A row that reaches the head costs two per weight
of the projection and of the transform before it. The student does all of this three times (forward,
gradients of inputs, gradients of weights), the teacher once, or not at all where its outputs are
cached. A row of the relation term is compared with all T positions, in three kinds of vectors,
three times for the student and once for the teacher. A causal position attends to (T + 1) / 2
others on average, a masked one to T: documents packed into one sequence are not counted apart. Not
counted: norms, activations, softmaxes, losses, embeddings.

Bytes, to and from memory. AdamW reads weight, gradient and both moments and writes all but the
gradient, in float32. A gradient is written by the first micro-batch, read and written by each
other one, and read once for its norm. The matrices are read by each micro-batch in the precision
of the products, twice for the student, once for the teacher. Not counted, since caches may hold
them: activations, chunks of logits, copies of weights in lower precision. So this is a lower bound,
except for frozen embeddings, which are counted as if they were trained.

Axes: T positions of a sequence.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PretrainedConfig

from stillhouse.families.base import attention_widths
from stillhouse.families.registry import family_of
from stillhouse.models.load import count_parameters, empty_model
from stillhouse.objectives.fused import LOGIT_TERMS, TEACHER_TERMS
from stillhouse.objectives.settings import LossesRecipe
from stillhouse.section import Rows
from stillhouse.tokens.settings import TokensRecipe
from stillhouse.training.device import Precision, micro_batch_sequences, pick_precision
from stillhouse.training.settings import PretrainingRecipe

STUDENT_PASSES = 3
OPTIMIZER_BYTES = 7 * 4  # of one parameter: four values read, three written
BYTES_OF = {"fp32": 4, "bf16": 2}


@dataclass(frozen=True)
class StepShape:
    """The sizes of one optimizer step that its cost depends on.

    A pair is a position and one that it attends to; rows are the positions that reach a head.
    `teacher_rows` is None where no term uses the teacher.
    """

    positions: int
    pairs: int | float
    read_rows: int | float  # whose last hidden state a term reads
    student_rows: int | float
    teacher_rows: int | float | None
    micro_batches: int
    precision: Precision
    relation_pairs: int | float = 0  # rows of the relation term times positions


@dataclass(frozen=True)
class StepCost:
    """FLOPs and bytes of one token, by part, and a typical matrix product.

    `product` is (rows, inner, columns): a micro-batch through the first half of a feed-forward
    layer of the student.
    """

    flops: dict[str, float]
    bytes_moved: dict[str, float]
    product: tuple[int, int, int]
    precision: Precision

    @property
    def flops_per_token(self) -> float:
        return sum(self.flops.values())


@dataclass(frozen=True)
class _Matrices:
    """Weights that multiply every position, those that multiply a row of the head, and widths."""

    body: int
    position_wise: int  # of the body: applied only to rows that are read
    head: int
    attention: int  # MACs of a pair
    hidden_size: int
    parameters: int


def planned_step(
    losses: LossesRecipe,
    tokens: TokensRecipe,
    training: PretrainingRecipe,
    device: torch.device,
) -> StepShape:
    """The step of a recipe, with the expected number of masked positions."""
    length = tokens.sequence_length
    sequences = sequences_per_step(training, length)
    at_once = micro_batch_sequences(training.micro_batch_tokens, device, length)
    positions = sequences * length
    causal = tokens.language_modeling == "causal"
    predicted = positions if causal else tokens.masking.fraction * positions
    counts: dict[Rows, int | float] = {"all": positions, "predicted": predicted}
    student_rows, teacher_rows = head_rows(losses, counts)
    return StepShape(
        positions,
        positions * ((length + 1) / 2 if causal else length),
        read_rows(losses, counts),
        student_rows,
        teacher_rows,
        micro_batches=-(-sequences // at_once),
        precision=pick_precision(training.precision, device),
        relation_pairs=length * _relation_rows(losses, counts),
    )


def read_rows(losses: LossesRecipe, counts: Mapping[Rows, int | float]) -> int | float:
    """Rows whose last hidden state a term reads, given the number of rows of each kind."""
    terms = losses.active()
    kinds: set[Rows] = {term.rows for name, term in terms.items() if name != "relation"}
    return counts["all" if "all" in kinds else "predicted"]


def head_rows(
    losses: LossesRecipe, counts: Mapping[Rows, int | float]
) -> tuple[int | float, int | float | None]:
    """Rows that reach the student's head and the teacher's, given the number of each kind.

    None for the teacher where no term uses it.
    """
    terms = losses.active()

    def rows(names: tuple[str, ...]) -> int | float:
        return max((counts[term.rows] for name, term in terms.items() if name in names), default=0)

    asks_teacher = set(terms) != {"language_modeling"}
    return rows(LOGIT_TERMS), rows(TEACHER_TERMS) if asks_teacher else None


def _relation_rows(losses: LossesRecipe, counts: Mapping[Rows, int | float]) -> int | float:
    term = losses.active().get("relation")
    return 0 if term is None else counts[term.rows]


def sequences_per_step(training: PretrainingRecipe, sequence_length: int) -> int:
    """Whole sequences of one optimizer step."""
    return max(1, training.tokens_per_step // sequence_length)


def count_flops(
    step: StepShape, student: PretrainedConfig, teacher: PretrainedConfig | None
) -> StepCost:
    """The cost of each token of a step; `teacher` is None where it does not run."""
    ours = _matrices(student)
    parameters, repeats, width = ours.parameters, step.micro_batches, BYTES_OF[step.precision]
    macs = {
        "student_body": STUDENT_PASSES * _body(ours, step),
        "student_head": STUDENT_PASSES * ours.head * step.student_rows,
    }
    bytes_moved = {
        "optimizer": OPTIMIZER_BYTES * parameters,
        "gradients": 8 * repeats * parameters,
        "student_weights": 2 * repeats * width * _used(ours, step.student_rows),
    }
    if teacher is not None and step.teacher_rows is not None:
        theirs = _matrices(teacher)
        macs["teacher_body"] = _body(theirs, step)
        macs["teacher_head"] = theirs.head * step.teacher_rows
        if step.relation_pairs:
            widths = STUDENT_PASSES * ours.hidden_size + theirs.hidden_size
            macs["relation"] = 3 * widths * step.relation_pairs
        bytes_moved["teacher_weights"] = repeats * width * _used(theirs, step.teacher_rows)
    return StepCost(
        {name: 2 * number / step.positions for name, number in macs.items()},
        {name: number / step.positions for name, number in bytes_moved.items()},
        (-(-step.positions // repeats), ours.hidden_size, 4 * ours.hidden_size),
        step.precision,
    )


def forward_flops(step: StepShape, config: PretrainedConfig) -> float:
    """FLOPs per token of a model's forward pass, with the head for `teacher_rows`."""
    flops = count_flops(step, config, config).flops
    return flops["teacher_body"] + flops["teacher_head"]


def _matrices(config: PretrainedConfig) -> _Matrices:
    model, family = empty_model(config), family_of(config)
    body = model.get_submodule(family.body)
    projection = family.head(model).weight
    inside = {id(parameter) for parameter in body.parameters()} | {id(projection)}
    transform = [p.numel() for p in model.parameters() if p.ndim == 2 and id(p) not in inside]
    layers = family.layers_of(model)
    return _Matrices(
        body=_weights([layers]),
        position_wise=_weights(family.last_position_wise(model)),
        head=projection.numel() + sum(transform),
        attention=2 * attention_widths(config)[0] * config.num_hidden_layers,
        hidden_size=config.hidden_size,
        parameters=count_parameters(model)[0],
    )


def _weights(modules: Iterable[nn.Module]) -> int:
    """The number of weights in matrices."""
    return sum(p.numel() for module in modules for p in module.parameters() if p.ndim == 2)


def _body(matrices: _Matrices, step: StepShape) -> int | float:
    """Forward MACs of the layers."""
    everywhere = (matrices.body - matrices.position_wise) * step.positions
    return everywhere + matrices.position_wise * step.read_rows + matrices.attention * step.pairs


def _used(matrices: _Matrices, rows: int | float) -> int:
    """Weights in matrix products; those of the head only where a row reaches it."""
    return matrices.body + (matrices.head if rows else 0)
