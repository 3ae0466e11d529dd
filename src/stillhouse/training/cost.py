"""What a training step costs per token, counted from configurations, and the machine's roofline.

FLOPs are 2 x MACs. A position costs two per weight of the layers' matrices, and four times the
hidden size for each position that it attends to, in every layer; what follows attention in the last
layer is computed only for rows that a loss reads. Where attention scores relative positions apart,
as in DeBERTa, each layer projects a table of them once a micro-batch, and compares it with each
position. A row that reaches the head costs two per weight of the projection and of the transform
before it. The student does all of this three times (forward, gradients of inputs, gradients of
weights), the teacher once, or not at all where its outputs are cached. A row of the relation term
is compared with all T positions, in three kinds of vectors, three times for the student and once
for the teacher. Where hidden states are projected, each row of a loss that compares them costs two
per weight of the projection, three times. A causal position attends to (T + 1) / 2 others on
average, a masked one to T: documents packed into one sequence are not counted apart. Not counted:
norms, activations, softmaxes, losses, embeddings.

Bytes, to and from memory. AdamW reads weight, gradient and both moments and writes all but the
gradient, in float32. A gradient is written by the first micro-batch, read and written by each
other one, and read once for its norm. The matrices are read by each micro-batch in the precision
of the products, twice for the student, once for the teacher. Not counted, since caches may hold
them: activations, chunks of logits, copies of weights in lower precision. So this is a lower bound,
except for frozen embeddings, which are counted as if they were trained.

The roofline is the cost of a token over the rates measured here. A token takes at least its FLOPs
at the rate of a matrix product, and at least its bytes at the rate of a copy: the larger of the two
times is the roofline (Williams, Waterman and Patterson 2009, section 3). A training's speed is
stated as its model FLOPs utilization (MFU): FLOPs per second over the rate of a matrix product
(Chowdhery et al. 2022, appendix B).

Axes: T positions of a sequence.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PretrainedConfig

from stillhouse.families.base import attention_widths
from stillhouse.families.registry import family_of
from stillhouse.models.load import count_parameters, empty_model
from stillhouse.objectives.fused import LOGIT_TERMS, TEACHER_TERMS
from stillhouse.objectives.language_model import HIDDEN_TERMS, needs_hidden
from stillhouse.objectives.projection import projection_shape
from stillhouse.objectives.settings import LossesRecipe
from stillhouse.section import Rows
from stillhouse.tokens.settings import TokensRecipe
from stillhouse.training.device import Precision, micro_batch_sequences, pick_precision
from stillhouse.training.settings import PretrainingRecipe

STUDENT_PASSES = 3
OPTIMIZER_BYTES = 7 * 4  # of one parameter: four values read, three written
BYTES_OF = {"fp32": 4, "bf16": 2}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
COPY_BYTES = {"cpu": 128 * 2**20, "cuda": 512 * 2**20}  # of one buffer, larger than caches
ROWS_ON_A_PROCESSOR = 1024  # more of them take longer and are no faster
MEASURING_SECONDS = 0.1  # for each rate, beside the warm-up
MOST_REPEATS = 50
Clock = Callable[[], float]


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
    hidden_rows: int | float = 0  # rows of each term that compares hidden states


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
    relative: tuple[int, int]  # MACs for relative positions: of a position, of a forward pass
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
    relation = losses.active().get("relation")
    return StepShape(
        positions,
        positions * ((length + 1) / 2 if causal else length),
        read_rows(losses, counts),
        student_rows,
        teacher_rows,
        micro_batches=-(-sequences // at_once),
        precision=pick_precision(training.precision, device),
        relation_pairs=length * (counts[relation.rows] if relation else 0),
        hidden_rows=sum(
            counts[term.rows] for name, term in losses.active().items() if name in HIDDEN_TERMS
        ),
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


def sequences_per_step(training: PretrainingRecipe, sequence_length: int) -> int:
    """Whole sequences of one optimizer step."""
    return max(1, training.tokens_per_step // sequence_length)


def projection_size(
    losses: LossesRecipe, student: PretrainedConfig, teacher: PretrainedConfig | None
) -> int:
    """The weights of the projection of hidden states; 0 where no term has or needs one."""
    if teacher is None or not needs_hidden(losses):
        return 0
    return math.prod(projection_shape(student, teacher) or [0])


def count_flops(
    step: StepShape,
    student: PretrainedConfig,
    teacher: PretrainedConfig | None,
    *,
    projection: int = 0,
) -> StepCost:
    """The cost of each token of a step.

    Args:
        teacher: None where it does not run.
        projection: Weights of the projection of hidden states.
    """
    ours = _matrices(student)
    repeats, width = step.micro_batches, BYTES_OF[step.precision]
    parameters = ours.parameters + projection
    macs = {
        "student_body": STUDENT_PASSES * _body(ours, step),
        "student_head": STUDENT_PASSES * ours.head * step.student_rows,
    }
    bytes_moved = {
        "optimizer": OPTIMIZER_BYTES * parameters,
        "gradients": 8 * repeats * parameters,
        "student_weights": 2 * repeats * width * (_used(ours, step.student_rows) + projection),
    }
    if projection:
        macs["hidden_projection"] = STUDENT_PASSES * projection * step.hidden_rows
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
    of_position, of_pass = family.relative_macs(config)
    return _Matrices(
        body=_weights([layers, *_between(body, layers)]),
        position_wise=_weights(family.last_position_wise(model)),
        head=projection.numel() + sum(transform),
        attention=2 * attention_widths(config)[0] * config.num_hidden_layers,
        relative=(of_position * config.num_hidden_layers, of_pass * config.num_hidden_layers),
        hidden_size=config.hidden_size,
        parameters=count_parameters(model)[0],
    )


def _between(body: nn.Module, layers: nn.Module) -> list[nn.Module]:
    """Projections of a body outside of its layers: from embeddings of another size."""
    inside = {*layers.modules()}
    return [m for m in body.modules() if isinstance(m, nn.Linear) and m not in inside]


def _weights(modules: Iterable[nn.Module]) -> int:
    """The number of weights in matrices."""
    return sum(p.numel() for module in modules for p in module.parameters() if p.ndim == 2)


def _body(matrices: _Matrices, step: StepShape) -> int | float:
    """Forward MACs of the layers."""
    everywhere = (matrices.body - matrices.position_wise) * step.positions
    of_position, of_pass = matrices.relative
    relative = of_position * step.positions + of_pass * step.micro_batches
    rows, pairs = matrices.position_wise * step.read_rows, matrices.attention * step.pairs
    return everywhere + rows + pairs + relative


def _used(matrices: _Matrices, rows: int | float) -> int:
    """Weights in matrix products; those of the head only where a row reaches it."""
    return matrices.body + (matrices.head if rows else 0)


@dataclass(frozen=True)
class Rates:
    """Measured peaks of a device: FLOP/s of a matrix product, bytes/s read and written."""

    flops_per_second: float
    bytes_per_second: float


@dataclass(frozen=True)
class Roofline:
    """The cost of a token, and the peak rates of the device."""

    cost: StepCost
    rates: Rates

    @property
    def tokens_per_second(self) -> float:
        """The highest speed that the measured rates allow."""
        computing = self.cost.flops_per_token / self.rates.flops_per_second
        moving = sum(self.cost.bytes_moved.values()) / self.rates.bytes_per_second
        return 1 / max(computing, moving)

    def mfu(self, tokens_per_second: float) -> float:
        """Model FLOPs utilization of a measured speed, from 0 to 1."""
        return tokens_per_second * self.cost.flops_per_token / self.rates.flops_per_second

    def facts(self, tokens_per_second: float) -> dict[str, float]:
        """The speed of a finished training, for its manifest."""
        return {
            "roofline_tokens_per_second": self.tokens_per_second,
            "mfu": self.mfu(tokens_per_second),
        }

    def __str__(self) -> str:
        return (
            f"{self.cost.flops_per_token / 1e6:,.2f} MFLOPs and "
            f"{sum(self.cost.bytes_moved.values()) / 1e3:,.2f} kB per token; peaks measured in "
            f"{self.cost.precision}: {self.rates.flops_per_second / 1e9:,.1f} GFLOP/s and "
            f"{self.rates.bytes_per_second / 1e9:,.1f} GB/s; roofline "
            f"{self.tokens_per_second:,.0f} tokens/s"
        )


def measure_roofline(cost: StepCost, device: torch.device) -> Roofline:
    """The roofline on this device, in the precision of the cost and this process's threads.

    Takes about half a second, and draws nothing from the global random generators.
    """
    return Roofline(cost, measure_rates(cost.product, DTYPES[cost.precision], device))


def measure_rates(
    product: tuple[int, int, int],
    dtype: torch.dtype,
    device: torch.device,
    *,
    clock: Clock = time.perf_counter,
) -> Rates:
    """Both peak rates, each the fastest of several repeats; on CUDA timed by events."""
    return Rates(matmul_rate(product, dtype, device, clock=clock), copy_rate(device, clock=clock))


def matmul_rate(
    product: tuple[int, int, int],
    dtype: torch.dtype,
    device: torch.device,
    *,
    clock: Clock = time.perf_counter,
) -> float:
    """FLOP/s of (rows x inner) @ (inner x columns)."""
    rows, inner, columns = product
    rows = min(rows, ROWS_ON_A_PROCESSOR) if device.type == "cpu" else rows
    generator = torch.Generator(device).manual_seed(0)
    left, right = (
        torch.randn(shape, device=device, generator=generator).to(dtype)
        for shape in ((rows, inner), (columns, inner))
    )
    out = torch.empty(rows, columns, dtype=dtype, device=device)
    seconds = fastest_seconds(lambda: torch.mm(left, right.T, out=out), device, clock)
    return 2 * rows * inner * columns / seconds


def copy_rate(device: torch.device, *, clock: Clock = time.perf_counter) -> float:
    """Bytes per second, read and written, of a copy between two buffers larger than any cache."""
    size = COPY_BYTES[device.type]
    source, target = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
    return 2 * size / fastest_seconds(lambda: target.copy_(source), device, clock)


def fastest_seconds(
    run: Callable[[], object],
    device: torch.device,
    clock: Clock = time.perf_counter,
    *,
    at_least: int = 1,
) -> float:
    """Seconds of the fastest of several calls, after a warm-up."""
    run()
    seconds: list[float] = []
    while len(seconds) < at_least or (
        sum(seconds) < MEASURING_SECONDS and len(seconds) < MOST_REPEATS
    ):
        seconds.append(seconds_of(run, device, clock))
    return min(seconds)


def seconds_of(run: Callable[[], object], device: torch.device, clock: Clock) -> float:
    """Seconds of one call, until the device has finished it."""
    if device.type != "cuda":
        started = clock()
        run()
        return clock() - started
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / 1e3
