"""GPU memory of losses over large vocabularies: ours in chunks of rows compared with full logits.

    python -m benchmarks.gpu_memory --output gpu-memory.json
    python -m benchmarks.gpu_memory --device cpu --tiny    # a dry run; memory is not measured

Features and projections are random from a seed, in the shapes of GPT-2, SmolLM2-135M and Qwen3-0.6B
(hidden size, vocabulary). Values and gradients must be equal first (exit code 1 otherwise). Then
each implementation runs forward and backward; its extra memory is the peak allocation, minus the
allocation before, minus the gradients that remain.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import measure
from benchmarks.equality import Equality, equality
from benchmarks.memory import MIB, Inputs, Shape, make_inputs, outcome, step_of
from stillhouse.objectives.chunks import CHUNK_BYTES

SHAPES = {
    "gpt2": Shape(8192, 768, 50257),
    "smollm2-135m": Shape(8192, 576, 49152),
    "qwen3-0.6b": Shape(8192, 1024, 151936),
}
EQUALITY_ROWS = 256
TINY_ROWS, TINY_VOCABULARY = 64, 1000


@dataclass(frozen=True)
class Result:
    """One shape: equality on a few rows; extra bytes and seconds of both, None on the CPU."""

    name: str
    shape: Shape
    equality: Equality
    extra_bytes: dict[str, int | None]
    seconds: dict[str, list[float]]


def on_device(inputs: Inputs, device: torch.device) -> Inputs:
    """The same tensors on the device, the student's with gradients."""

    def moved(part: Any, *, learns: bool) -> Any:
        features, weight = (
            tensor.detach().to(device).requires_grad_(learns)
            for tensor in (part.features, part.weight)
        )
        return replace(part, features=features, weight=weight)

    return Inputs(
        moved(inputs.student, learns=True),
        moved(inputs.teacher, learns=False),
        inputs.labels.to(device),
    )


def extra_bytes(inputs: Inputs, chunk_mib: int | None, shape: Shape) -> int | None:
    """Peak of one forward and backward pass above the allocation before; None on the CPU."""
    step = step_of(inputs, chunk_mib)
    if inputs.labels.device.type != "cuda":
        step()
        return None
    torch.cuda.synchronize()
    for tensor in inputs.learning.values():
        tensor.grad = None
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before - shape.gradient_bytes


def measure_shape(name: str, shape: Shape, device: torch.device, *, repeats: int) -> Result:
    chunk_mib = CHUNK_BYTES[device.type] // MIB
    few = on_device(make_inputs(replace(shape, rows=min(shape.rows, EQUALITY_ROWS)), 0), device)
    equal = equality(outcome(few, chunk_mib), outcome(few, None))
    inputs = on_device(make_inputs(shape, 0), device)
    ways: dict[str, int | None] = {"fused": chunk_mib, "dense": None}
    memory = {way: extra_bytes(inputs, chunk, shape) for way, chunk in ways.items()}
    steps = {way: step_of(inputs, chunk) for way, chunk in ways.items()}
    seconds = measure.interleaved_seconds(steps, repeats=repeats, device=device)
    return Result(name, shape, equal, memory, seconds)


def result_table(results: Sequence[Result]) -> Table:
    table = Table("shape", "rows", "vocabulary", "fused MB", "dense MB", "of dense", "equal")
    for result in results:
        fused, dense = result.extra_bytes["fused"], result.extra_bytes["dense"]
        cells = [""] * 3
        if fused is not None and dense is not None:
            cells = [f"{fused / 1e6:,.0f}", f"{dense / 1e6:,.0f}", f"{fused / dense:.1%}"]
        shape = result.shape
        equal = "yes" if result.equality.holds() else "NO"
        table.add_row(result.name, f"{shape.rows:,}", f"{shape.vocabulary:,}", *cells, equal)
    return table


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_memory", description=__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="shapes for a dry run")
    parser.add_argument("--repeats", type=int, default=5, help="timed steps of each way")
    parser.add_argument("--output", type=Path, help="a JSON file for every raw number")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("This benchmark needs a CUDA device, and torch finds none here.", file=sys.stderr)
        return 2
    results: list[Result] = []
    for name, full in SHAPES.items():
        tiny = Shape(TINY_ROWS, full.hidden, TINY_VOCABULARY)
        shape = tiny if options.tiny else full
        device = torch.device(options.device)
        results.append(measure_shape(name, shape, device, repeats=options.repeats))
        if options.output is not None:
            content = {
                "command": " ".join(["python -m benchmarks.gpu_memory", *sys.argv[1:]]),
                **measure.environment(),
                "results": [asdict(result) for result in results],
            }
            options.output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    Console().print(result_table(results))
    return 0 if all(result.equality.holds() for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
