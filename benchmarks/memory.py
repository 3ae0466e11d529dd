"""Memory of losses over a vocabulary: ours in chunks of rows compared with full logits of both
models.

    python -m benchmarks.memory --output memory.json

Reads nothing; features and projections are random from a seed. Values and gradients must be equal
first (exit code 1 otherwise). Then each implementation runs forward and backward in a fresh
process. Its extra memory is the peak resident memory, minus the memory before (both models'
features and projections, the labels), minus the gradients that remain (of the student's features
and projection). The losses are those of 2019: soft targets and language modeling.

The dense implementation computes full logits in float32 with autograd; it needs about eight times
the size of one model's logits.

Axes: N rows, V vocabulary, D hidden size.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks import measure
from benchmarks.equality import Equality, Outcome, equality
from benchmarks.reference_2019 import TEMPERATURE, WEIGHTS
from stillhouse.errors import ResourceError, StillhouseError
from stillhouse.objectives.chunks import CHUNK_BYTES, CHUNK_TENSORS
from stillhouse.objectives.divergences.soft_target import soft_target_loss
from stillhouse.objectives.fused import LogitTerm, Projection, fused_losses
from stillhouse.objectives.language_model import language_modeling_loss

DENSE = "dense"
DENSE_TENSORS = 9  # of (N, V), at most, that the dense way has at once
MIB = 2**20


@dataclass(frozen=True)
class Shape:
    """The projection of both models: rows, hidden size, vocabulary."""

    rows: int
    hidden: int
    vocabulary: int

    @property
    def gradient_bytes(self) -> int:
        """The gradients of the student's features and projection, in float32."""
        return 4 * self.hidden * (self.rows + self.vocabulary)

    @property
    def logits_bytes(self) -> int:
        """One model's full logits."""
        return 4 * self.rows * self.vocabulary


@dataclass(frozen=True)
class Inputs:
    """Inputs of the losses: the student's tensors need gradients."""

    student: Projection
    teacher: Projection
    labels: Tensor

    @property
    def learning(self) -> dict[str, Tensor]:
        return {"features": self.student.features, "weight": self.student.weight}


def make_inputs(shape: Shape, seed: int) -> Inputs:
    """Random features and projections whose logits spread by about two."""
    generator = torch.Generator().manual_seed(seed)

    def projection() -> Projection:
        features = torch.randn(shape.rows, shape.hidden, generator=generator)
        weight = torch.randn(shape.vocabulary, shape.hidden, generator=generator)
        return Projection(features, weight.mul_(2 / shape.hidden**0.5), None)

    student, teacher = projection(), projection()
    labels = torch.randint(shape.vocabulary, (shape.rows,), generator=generator)
    student.features.requires_grad_(True)
    student.weight.requires_grad_(True)
    return Inputs(student, teacher, labels)


def losses_of(inputs: Inputs, chunk_mib: int | None) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted loss and its terms, as means over rows; with full logits without a chunk."""
    num_rows = len(inputs.labels)
    if chunk_mib is None:
        student_logits = inputs.student.features @ inputs.student.weight.T
        teacher_logits = inputs.teacher.features @ inputs.teacher.weight.T
        sums = {
            "soft_target": soft_target_loss(
                student_logits, teacher_logits, temperature=TEMPERATURE
            ),
            "language_modeling": language_modeling_loss(student_logits, inputs.labels),
        }
        total = torch.stack([WEIGHTS[name] / num_rows * value for name, value in sums.items()])
        return total.sum(), {name: value / num_rows for name, value in sums.items()}
    terms = {
        name: LogitTerm(WEIGHTS[name] / num_rows) for name in ("soft_target", "language_modeling")
    }
    row_bytes = 4 * CHUNK_TENSORS["cpu"] * len(inputs.student.weight)
    total, sums = fused_losses(
        inputs.student,
        inputs.teacher,
        inputs.labels,
        terms,
        temperature=TEMPERATURE,
        chunk_rows=max(16, chunk_mib * MIB // row_bytes),
    )
    return total, {name: value / num_rows for name, value in sums.items()}


def outcome(inputs: Inputs, chunk_mib: int | None) -> Outcome:
    """Values, and the gradients of trainable tensors."""
    loss, terms = losses_of(inputs, chunk_mib)
    gradients = torch.autograd.grad(loss, list(inputs.learning.values()))
    values = {name: value.detach() for name, value in terms.items()}
    return Outcome(loss.detach(), values, dict(zip(inputs.learning, gradients, strict=True)))


def compare(shape: Shape, seed: int, chunk_mib: int) -> Equality:
    """Ours compared with the dense implementation."""
    inputs = make_inputs(shape, seed)
    return equality(outcome(inputs, chunk_mib), outcome(inputs, None))


def step_of(inputs: Inputs, chunk_mib: int | None) -> measure.Step:
    """Forward and backward; gradients of the previous step are dropped first, as in training."""

    def step() -> None:
        for tensor in inputs.learning.values():
            tensor.grad = None
        losses_of(inputs, chunk_mib)[0].backward()

    return step


def memory_of(shape: Shape, seed: int, chunk_mib: int | None) -> measure.PeakMemory:
    """Runs in a fresh process."""
    return measure.peak_memory(lambda: step_of(make_inputs(shape, seed), chunk_mib))


@dataclass(frozen=True)
class Result:
    """All measurements of one vocabulary, keyed by `dense` or the MiB of a chunk."""

    shape: Shape
    equality: Equality
    memory: dict[str, measure.PeakMemory]
    seconds: dict[str, list[float]]

    def extra_bytes(self, way: str) -> int:
        return self.memory[way].step_bytes - self.shape.gradient_bytes

    def share(self, way: str) -> float:
        """Relative to the extra memory of the dense implementation."""
        return self.extra_bytes(way) / self.extra_bytes(DENSE)

    def median(self, way: str) -> float:
        return statistics.median(self.seconds[way])


def measure_memory(shape: Shape, chunks: Sequence[int], *, seed: int, repeats: int) -> Result:
    """Equality at the first chunk size, memory in fresh processes, then alternating timings.

    Memory is independent of other load: without repeats only memory is measured.

    Raises:
        ResourceError: the machine has too little memory left for the dense implementation.
    """
    check_room(shape)
    ways: dict[str, int | None] = {DENSE: None} | {f"{chunk} MiB": chunk for chunk in chunks}
    found = measure.in_fresh_process(compare, shape, seed, chunks[0])
    memory = {
        name: measure.in_fresh_process(memory_of, shape, seed, chunk)
        for name, chunk in ways.items()
    }
    seconds: dict[str, list[float]] = {}
    if repeats:
        inputs = make_inputs(shape, seed)
        steps = {name: step_of(inputs, chunk) for name, chunk in ways.items()}
        seconds = measure.interleaved_seconds(steps, repeats=repeats)
    return Result(shape, found, memory, seconds)


def check_room(shape: Shape) -> None:
    needed = DENSE_TENSORS * shape.logits_bytes + 4 * shape.gradient_bytes
    available = measure.available_bytes()
    if needed > available:
        raise ResourceError(
            f"The dense way needs about {needed / 1e9:.0f} GB at a vocabulary of "
            f"{shape.vocabulary}; {available / 1e9:.0f} GB are free. "
            "Lower --vocabularies or --rows."
        )


def result_table(result: Result) -> Table:
    """One line per implementation."""
    shape = result.shape
    table = Table(
        "logits at once",
        title=f"{shape.rows} rows x {shape.hidden}, vocabulary {shape.vocabulary}",
    )
    timings = ("seconds", "x dense") if result.seconds else ()
    for column in ("extra MB", "of dense", *timings):
        table.add_column(column, justify="right", no_wrap=True)
    default = f"{CHUNK_BYTES['cpu'] // MIB} MiB"
    for way in result.memory:
        cells = [f"{result.extra_bytes(way) / 1e6:,.0f}", f"{result.share(way):.1%}"]
        if result.seconds:
            cells.append(f"{result.median(way):.2f}")
            cells.append(f"{result.median(DENSE) / result.median(way):.2f}")
        table.add_row(f"{way} (default)" if way == default else way, *cells)
    return table


def report(results: Sequence[Result], options: argparse.Namespace) -> dict[str, Any]:
    """Every raw number, and how it was measured."""
    return {
        "command": " ".join(["python -m benchmarks.memory", *sys.argv[1:]]),
        "seed": options.seed,
        **measure.environment(),
        "default_chunk_bytes": CHUNK_BYTES["cpu"],
        "results": [
            asdict(result)
            | {
                "gradient_bytes": result.shape.gradient_bytes,
                "extra_bytes": {way: result.extra_bytes(way) for way in result.memory},
                "share_of_dense": {way: result.share(way) for way in result.memory},
                "median_seconds": {way: result.median(way) for way in result.seconds},
            }
            for result in results
        ],
    }


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[30522, 50257, 128256])
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--hidden", type=int, default=768)
    default = CHUNK_BYTES["cpu"] // MIB
    parser.add_argument(
        "--chunk-mib",
        type=int,
        nargs="+",
        default=[default, default // 2, default // 4, default // 8],
        help="logits of a chunk, of both models together",
    )
    parser.add_argument(
        "--repeats", type=int, default=5, help="timed steps of each way; 0: memory alone"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="a JSON file for every raw number")
    return parser.parse_args()


def main() -> int:
    options, console = parse_options(), Console()
    results = []
    for vocabulary in options.vocabularies:
        shape = Shape(options.rows, options.hidden, vocabulary)
        chunks, seed, repeats = options.chunk_mib, options.seed, options.repeats
        result = measure_memory(shape, chunks, seed=seed, repeats=repeats)
        results.append(result)
        console.print(result_table(result))
        verdict = "Equal" if result.equality.holds() else "NOT EQUAL"
        console.print(f"{verdict} to dense: {result.equality}")
    if options.output is not None:
        text = json.dumps(report(results, options), indent=1)
        options.output.write_text(text + "\n", encoding="utf-8")
    return 0 if all(result.equality.holds() for result in results) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except StillhouseError as error:
        sys.exit(str(error))
