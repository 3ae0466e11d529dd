"""Two ranks with one thread each compared with one rank with two: the same cores, the same work.

    python -m benchmarks.scaling --output scaling.json

GPT-2 to DistilGPT2, 4 x 256 tokens per micro-batch, random tokens and weights from a seed, with the
unmodified `stillhouse.training.engine`; torchrun starts the ranks. Both alternate, in fresh
processes each time; the first step of each is excluded. Besides tokens per second: the bytes that
the ranks exchanged, from the kernel's counter of the loopback interface, compared with theory: one
all-reduce of the student's gradients per step, of which each rank sends 2 (N - 1) / N times their
bytes. Writes a table, and with --output every raw number. Reads nothing.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import GPT2Config

from benchmarks import measure
from benchmarks.ours import Pair, build_models
from stillhouse.distillation.settings import DistillationRecipe
from stillhouse.objectives.language_model import LanguageModelObjective
from stillhouse.runs.manifest import Inputs
from stillhouse.tokens.batches import Batch
from stillhouse.tokens.settings import TokensRecipe
from stillhouse.training.checkpoint import Checkpoints
from stillhouse.training.cost import count_flops, measure_roofline, planned_step
from stillhouse.training.engine import train
from stillhouse.training.job import TrainingJob, plan_batches
from stillhouse.training.metrics import MetricsFile
from stillhouse.training.progress import QuietReporter
from stillhouse.training.ranks import init_distributed

LENGTH = 256
STEPS = 3  # of which the first warms up
LAYOUTS = {1: 2, 2: 1}  # ranks, and threads of each


class RandomSequences:
    """Sequences of tokens that are functions of their number."""

    num_sequences = 10_000
    sequence_length = LENGTH

    @property
    def parts(self) -> Mapping[str, range]:
        return {}

    def batch(self, sequences: np.ndarray, epochs: np.ndarray, seed: int) -> Batch:
        rows = [np.random.default_rng(int(n)).integers(0, 50_257, LENGTH) for n in sequences]
        ids = torch.from_numpy(np.stack(rows))
        labels = torch.cat([ids[:, 1:], torch.full((len(ids), 1), -100)], 1)
        positions = torch.arange(LENGTH).expand_as(ids)
        return Batch(ids, labels, torch.ones_like(ids), positions, causal=True, uniform=True)


class Counting(QuietReporter):
    """Reads the counter of the loopback interface after each step."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def step(self, step: int, values: dict[str, int | float]) -> None:
        self.counts.append(loopback_bytes())


def work(folder: Path, tokens_per_step: int) -> None:
    """Runs on each rank: some steps of training, their metrics, and the bytes on the loopback."""
    recipe = DistillationRecipe.model_validate(
        {
            "tokens_per_step": tokens_per_step,
            "max_tokens": STEPS * tokens_per_step,
            "micro_batch_tokens": 4 * LENGTH,
        }
    )
    device = torch.device("cpu")
    models = build_models(Pair(GPT2Config, 4, LENGTH), 0)
    models.teacher.to(torch.bfloat16)  # pyright: ignore[reportArgumentType, reportCallIssue]
    step = planned_step(recipe.losses, TokensRecipe(sequence_length=LENGTH), recipe, device)
    with init_distributed() as ranks:
        reporter = Counting()
        job = TrainingJob(
            "student",
            models.student,
            LanguageModelObjective(
                models.student_family,
                recipe.losses,
                teacher=models.live_teacher,
                temperature=recipe.temperature,
            ),
            plan_batches(RandomSequences(), recipe, seed=0),
            recipe,
            Checkpoints(
                folder / "checkpoints",
                Inputs("bench", {}, {}),
                recipe.checkpoint,
                reporter.say,
                ranks,
            ),
            MetricsFile(folder / "metrics.jsonl", folder),
            device,
            measure_roofline(
                count_flops(step, models.student.config, models.teacher.config), device
            ),
            ranks,
        )
        train(job, reporter)
    if ranks.is_first:
        learning = sum(p.numel() for p in models.student.parameters() if p.requires_grad)
        sent = (reporter.counts[-1] - reporter.counts[0]) / (STEPS - 1)
        facts = {"loopback_bytes": sent, "gradient_bytes": 4 * learning}
        (folder / "facts.json").write_text(json.dumps(facts))


def loopback_bytes() -> int:
    """Bytes sent over the loopback interface."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.strip().startswith("lo:"))


def measured(ranks: int, options: argparse.Namespace) -> dict:
    """One training in fresh processes: seconds of each step after the first, and bytes sent."""
    environment = os.environ | {"OMP_NUM_THREADS": str(LAYOUTS[ranks])}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc-per-node={ranks}", "-m", "benchmarks.scaling", "--worker", folder]
        command += ["--tokens-per-step", str(options.tokens_per_step)]
        subprocess.run(command, env=environment, check=True, stdout=sys.stderr)
        lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
        totals = [json.loads(line)["seconds"] for line in lines]
        facts = json.loads((Path(folder) / "facts.json").read_text())
    return {"seconds": [b - a for a, b in itertools.pairwise(totals)], **facts}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--tokens-per-step", type=int, default=8_192)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, help="a JSON file for every raw number")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker, options.tokens_per_step)
        return
    rounds = [{n: measured(n, options) for n in LAYOUTS} for _ in range(options.repeats)]
    seconds = {n: [s for each in rounds for s in each[n]["seconds"]] for n in LAYOUTS}
    ratio = statistics.median(one / two for one, two in zip(seconds[1], seconds[2], strict=True))
    sent = rounds[0][2]["loopback_bytes"]
    theory = 2 * rounds[0][2]["gradient_bytes"]  # of both ranks: each sends them once
    table = Table(title=f"GPT-2 to DistilGPT2, {options.tokens_per_step:,} tokens per step")
    for column in ("ranks x threads", "seconds per step", "tokens/s"):
        table.add_column(column)
    for n, threads in LAYOUTS.items():
        median = statistics.median(seconds[n])
        rate = options.tokens_per_step / median
        table.add_row(f"{n} x {threads}", f"{median:.2f}", f"{rate:,.0f}")
    console = Console()
    console.print(table)
    console.print(
        f"Two ranks reach {ratio:.1%} of one. Bytes on the loopback a step: {sent / 1e6:,.0f} MB; "
        f"one all-reduce of the gradients: {theory / 1e6:,.0f} MB."
    )
    if options.output:
        facts = {"command": " ".join(["python -m benchmarks.scaling", *sys.argv[1:]])}
        facts |= {"settings": {"tokens_per_step": options.tokens_per_step}, "rounds": rounds}
        facts |= {"throughput_ratio": ratio, "sent_bytes": sent, "theory_bytes": theory}
        options.output.write_text(json.dumps(facts | measure.environment(), indent=1) + "\n")


if __name__ == "__main__":
    main()
