"""What a teacher cache costs, saves and distorts.

    python -m benchmarks.cache --output cache.json

The sample teacher, its three-layer student and the held-out sample text; --teacher, --layers and
--text select others. Two tables:

Bias. The gradient of the soft target with respect to every parameter of the initial student, from
the cached rows compared with the teacher's whole distribution: cosine and norm of one sample, and
of the mean over --draws samples, which converges to 1 for an unbiased sample. In float32.

Time. An optimizer step with the live teacher, from the cache, and without a teacher, alternating;
and the time to write the cache. As in training: precision, temperature, reading from disk.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks import measure
from benchmarks.cached import KIND, SIZE, CachedTeacher, teacher_logits
from stillhouse.allocator import keep_freed_memory
from stillhouse.data.documents import is_validation
from stillhouse.data.sources.sample import sample_documents
from stillhouse.errors import DataError, StillhouseError
from stillhouse.families.base import Family
from stillhouse.models.hub import resolve_folder
from stillhouse.models.load import load_model
from stillhouse.objectives.language_model import (
    LANGUAGE_MODELING_ALONE,
    LanguageModelObjective,
    Teacher,
)
from stillhouse.objectives.settings import LossesRecipe
from stillhouse.student.initialize import student_from_teacher
from stillhouse.student.plan import plan_student
from stillhouse.student.settings import LayerChoice, StudentRecipe
from stillhouse.tokens.batches import IGNORED, Batch
from stillhouse.tokens.settings import CacheKind
from stillhouse.tokens.tokenizer import load_tokenizer, text_encoder
from stillhouse.training.device import autocast, pick_precision
from stillhouse.training.settings import OptimizerRecipe
from stillhouse.training.step import make_optimizer

CPU = measure.CPU
HELD_OUT = 0.05
SIZES = (8, 16, 32, 64, 128)
KINDS: tuple[CacheKind, ...] = ("top_k", "sampled")
SOFT = LossesRecipe.model_validate({"soft_target": {"weight": 1.0}})
BOTH = LossesRecipe.model_validate(
    {"soft_target": {"weight": 5.0}, "language_modeling": {"weight": 2.0}}
)


@dataclass(frozen=True)
class Bias:
    """How one format's gradient compares with the exact one."""

    kind: CacheKind
    size: int
    bytes_per_row: int
    cosine: float
    norm: float
    mean_cosine: float
    mean_norm: float


@dataclass(frozen=True)
class Subject:
    """Teacher, student and their tokens."""

    teacher: Teacher
    student: PreTrainedModel
    family: Family
    batch: Batch
    temperature: float

    def cached(self, kind: CacheKind = KIND, size: int = SIZE, seed: int = 0) -> CachedTeacher:
        return CachedTeacher(
            self.teacher,
            self.batch,
            "all",
            temperature=self.temperature,
            hidden=False,
            kind=kind,
            size=size,
            seed=seed,
        )

    def gradient(self, batch: Batch) -> Tensor:
        """The gradient of the mean soft target with respect to all parameters, as one vector."""
        teacher = self.teacher if batch.teacher is None else "cached"
        objective = LanguageModelObjective(
            self.family, SOFT, teacher=teacher, temperature=self.temperature
        )
        loss, _ = objective(self.student, batch, {"soft_target": 1 / batch.num_rows("all")})
        parameters = list(self.student.parameters())
        return torch.cat([grad.flatten() for grad in torch.autograd.grad(loss, parameters)])


def held_out_tokens(folder: Path, text: Path | None, number: int) -> Iterator[int]:
    """Tokens of held-out sample documents, or of a file, each starting with end-of-text."""
    tokenizer = load_tokenizer(folder)
    documents = (
        (body for name, body in sample_documents() if is_validation(name, HELD_OUT))
        if text is None
        else iter([text.read_text(encoding="utf-8")])
    )
    encode, found = text_encoder(tokenizer), 0
    for body in documents:
        ids = [tokenizer.eos_token_id, *encode([body])[0].tolist()]
        yield from ids[: number - found]
        found += len(ids)
        if found >= number:
            return
    raise DataError(f"The text gives {found} tokens, fewer than the {number} that are needed.")


def make_subject(options: argparse.Namespace) -> Subject:
    folder = resolve_folder(options.teacher, offline=True)
    family, teacher = load_model(folder)
    layers = LayerChoice(layers=options.layers, by="even")
    plan = plan_student(teacher.config, StudentRecipe(layer_map=layers))
    student = student_from_teacher(teacher, plan).float()
    shape = (options.sequences, options.length)
    ids = np.fromiter(held_out_tokens(folder, options.text, shape[0] * shape[1]), np.int64)
    inputs = torch.from_numpy(ids.reshape(shape))
    labels = inputs.roll(-1, dims=1)
    labels[:, -1] = IGNORED
    positions = torch.arange(options.length).expand(shape)
    batch = Batch(inputs, labels, torch.ones_like(inputs), positions, causal=True, uniform=True)
    frozen = Teacher(family, teacher.requires_grad_(False))
    return Subject(frozen, student, plan.family, batch, options.temperature)


def measure_bias(subject: Subject, draws: int) -> list[Bias]:
    """Every kind and size compared with the whole distribution."""
    exact = subject.gradient(subject.batch)
    found = []
    for kind in KINDS:
        for size in SIZES:
            repeats = draws if kind == "sampled" else 1
            total = torch.zeros_like(exact)
            first, bytes_per_row = exact, 0
            for seed in range(repeats):
                cached = subject.cached(kind, size, seed)
                gradient = subject.gradient(cached.batch())
                first = gradient if seed == 0 else first
                total += gradient / repeats
                bytes_per_row = cached.bytes_per_row
            found.append(
                Bias(kind, size, bytes_per_row, *_compared(first, exact), *_compared(total, exact))
            )
    return found


def _compared(found: Tensor, exact: Tensor) -> tuple[float, float]:
    """Cosine, and the norm relative to the exact one."""
    found, exact = found.double(), exact.double()
    norms = found.norm(), exact.norm()
    return float(found @ exact / (norms[0] * norms[1])), float(norms[0] / norms[1])


def measure_time(subject: Subject, repeats: int) -> dict[str, Any]:
    """Seconds of each kind of step, alternating; of writing the cache, and of a teacher pass."""
    precision = pick_precision("auto", CPU)
    if precision == "bf16":
        subject.teacher.model.to(torch.bfloat16)  # pyright: ignore[reportCallIssue, reportArgumentType]
    keep_freed_memory()
    cached = subject.cached()
    optimizer = make_optimizer(subject.student, OptimizerRecipe())
    ways = {
        "live": (BOTH, subject.teacher, lambda: subject.batch),
        "cached": (BOTH, "cached", cached.batch),
        "no teacher": (LANGUAGE_MODELING_ALONE, None, lambda: subject.batch),
    }

    def step(name: str) -> measure.Step:
        losses, teacher, read = ways[name]
        objective = LanguageModelObjective(
            subject.family, losses, teacher=teacher, temperature=subject.temperature
        )

        def take() -> None:
            batch = read()
            shares = {
                name: weight / batch.num_rows("all") for name, weight in objective.weights.items()
            }
            with autocast(CPU, precision):
                loss, _ = objective(subject.student, batch, shares)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return take

    steps = {name: step(name) for name in ways}
    steps["writing"] = lambda: _ignore(subject.cached())
    steps["teacher alone"] = lambda: _ignore(teacher_logits(subject.teacher, subject.batch, "all"))
    seconds = measure.interleaved_seconds(steps, repeats=repeats)
    return {
        "precision": precision,
        "kind": KIND,
        "size": SIZE,
        "tokens": subject.batch.num_rows("all"),
        "seconds": seconds,
        "median_seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "times_no_teacher": {
            name: statistics.median(
                own / alone for own, alone in zip(values, seconds["no teacher"], strict=True)
            )
            for name, values in seconds.items()
        },
    }


def _ignore(_: object) -> None:
    """Discards the result."""


def bias_table(found: list[Bias]) -> Table:
    table = Table("kept", title="gradient of the soft target compared with the exact one")
    for column in ("tokens", "bytes per row", "cosine", "norm", "mean: cosine", "norm"):
        table.add_column(column, justify="right")
    for row in found:
        table.add_row(
            row.kind,
            str(row.size),
            str(row.bytes_per_row),
            *(f"{value:.5f}" for value in (row.cosine, row.norm, row.mean_cosine, row.mean_norm)),
        )
    return table


def time_table(found: dict[str, Any]) -> Table:
    title = f"{found['tokens']} tokens, {found['precision']}, {found['kind']} {found['size']}"
    table = Table("", title=title)
    for column in ("seconds", "tokens/s", "x no teacher"):
        table.add_column(column, justify="right")
    for name, seconds in found["median_seconds"].items():
        rate = found["tokens"] / seconds
        ratio = found["times_no_teacher"][name]
        table.add_row(name, f"{seconds:.3f}", f"{rate:,.0f}", f"{ratio:.2f}")
    return table


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cache", description=__doc__)
    parser.add_argument("--teacher", default="sample", help="a GPT-2 type model folder")
    parser.add_argument("--layers", type=int, default=3, help="layers of the student")
    parser.add_argument("--text", type=Path, help="a text file; by default the sample's")
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--draws", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path, help="a JSON file for every raw number")
    return parser.parse_args()


def main() -> int:
    options, console, started = parse_options(), Console(), time.monotonic()
    try:
        subject = make_subject(options)
    except StillhouseError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    bias = measure_bias(subject, options.draws)
    console.print(bias_table(bias))
    timed = measure_time(subject, options.repeats)
    console.print(time_table(timed))
    if options.output is not None:
        result = {
            "command": " ".join(["python -m benchmarks.cache", *sys.argv[1:]]),
            **measure.environment(),
            "temperature": options.temperature,
            "draws": options.draws,
            "bias": [asdict(row) for row in bias],
            "time": timed,
            "seconds": time.monotonic() - started,
        }
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
