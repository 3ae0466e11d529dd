"""The distillation step on one CUDA device: tokens per second, the device's use, memory.

    python -m benchmarks.gpu --output gpu.json
    python -m benchmarks.gpu --device cpu --tiny    # a dry run: the script itself, on any machine

GPT-2 to DistilGPT2 at 1,024 tokens, BERT-base to DistilBERT at 512: whole sequences of random
tokens, as packing gives them; random weights from a seed; the configurations' own dropout. Ours in
bfloat16, eager and compiled, beside the step of 2019 in float32 and in bfloat16, where it fits.
Equal in float32 on two sequences first, then warmed up and timed in turns by the device's events.
Reads nothing; writes a table, and with --output every raw number, after each case. Exits with 1
where losses or gradients of the two are not equal, with 2 where there is no such device.

Utilization is that of model FLOPs (MFU): FLOPs over the vendor's dense bfloat16
peak. The roofline is that of `stillhouse.training.cost`, from bfloat16 rates measured on this
device. Memory is the highest that was allocated in a step, with the step's own models and
optimizer; on the CPU it is not measured.
"""

import argparse
import functools
import gc
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import BertConfig, GPT2Config

from benchmarks import measure, reference_2019
from benchmarks.equality import Equality, equality
from benchmarks.ours import (
    Models,
    Pair,
    Variant,
    build_batch,
    build_models,
    classic_losses,
    our_outcome,
    our_step,
    step_shape,
)
from stillhouse.section import Rows
from stillhouse.training.cost import Roofline, count_flops, measure_roofline
from stillhouse.training.device import Precision

PAIRS = {
    "gpt2": Pair(GPT2Config, 16, 1024, ragged=False),
    "bert": Pair(BertConfig, 32, 512, ragged=False),
}
TINY = {"n_layer": 2, "n_embd": 64, "n_head": 2, "n_positions": 64, "vocab_size": 500}
TINY_BERT = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 64,
    "vocab_size": 500,
}
TINY_PAIRS = {
    "gpt2": Pair(functools.partial(GPT2Config, **TINY), 2, 64, ragged=False),
    "bert": Pair(functools.partial(BertConfig, **TINY_BERT), 2, 64, ragged=False),
}
ROWS: dict[str, list[Rows]] = {"gpt2": ["all"], "bert": ["all", "predicted"]}
OURS = {"ours": Variant("bf16"), "ours-compiled": Variant("bf16", compiled=True)}
REFERENCES: dict[str, Precision] = {"2019": "fp32", "2019-bf16": "bf16"}
WARM_UP_STEPS = 3
EQUALITY_SEQUENCES = 2
# Dense bfloat16 operations per second, by a part of the device's name; vendor's figures.
PEAKS = {"H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12}


@dataclass(frozen=True)
class Case:
    """A pair of models and a batch that are measured together."""

    name: str
    pair: Pair
    rows: Rows
    seed: int
    device: torch.device

    def models(self) -> Models:
        models = build_models(self.pair, self.seed)
        for model in (models.teacher, models.student):
            model.to(self.device)  # pyright: ignore[reportArgumentType]
        return models

    def prepare(self, step: str) -> measure.Step:
        return self.step_on(self.models(), step)

    def step_on(self, models: Models, step: str) -> measure.Step:
        """A step of ours, or of 2019's, that trains the student."""
        batch = build_batch(self.pair, self.seed).to(self.device)
        if step in OURS:
            return our_step(models, batch, classic_losses(self.rows), OURS[step])
        models.student.train()
        optimizer = reference_2019.reference_optimizer(models.student)
        return functools.partial(
            reference_2019.reference_step,
            models.student,
            models.teacher,
            [reference_2019.PaddedBatch.of(batch)],
            self.rows,
            optimizer,
            REFERENCES[step],
        )


@dataclass(frozen=True)
class Result:
    """All measurements of one case; mappings are keyed by step."""

    case: str
    rows: Rows
    num_tokens: int
    equality: Equality
    roofline: Roofline
    peak_flops: float | None
    memory_bytes: dict[str, int | None]
    seconds: dict[str, list[float]]

    def tokens_per_second(self, step: str) -> float:
        return self.num_tokens / statistics.median(self.seconds[step])

    def utilization(self, step: str) -> float | None:
        """Model FLOPs over the device's peak; None where no peak is known."""
        if self.peak_flops is None:
            return None
        flops = self.roofline.cost.flops_per_token
        return flops * self.tokens_per_second(step) / self.peak_flops

    def summary(self) -> dict[str, dict[str, float | None]]:
        return {
            step: {
                "median_seconds": statistics.median(seconds),
                "tokens_per_second": self.tokens_per_second(step),
                "utilization": self.utilization(step),
                "roofline_share": self.tokens_per_second(step) / self.roofline.tokens_per_second,
            }
            for step, seconds in self.seconds.items()
        }


def measure_case(case: Case, repeats: int, peak_flops: float | None) -> Result:
    """Equality, then the memory of each step, then alternating timings."""
    found = equal_in_float32(case)
    models, batch = build_models(case.pair, case.seed), build_batch(case.pair, case.seed)
    shape = step_shape(batch, classic_losses(case.rows), "bf16")
    work = count_flops(shape, models.student.config, models.teacher.config)
    del models
    steps: dict[str, measure.Step] = {}
    memory: dict[str, int | None] = {}
    for name in (*OURS, *REFERENCES):
        step, memory[name] = warmed_up(functools.partial(case.prepare, name), case.device)
        if step is not None:
            steps[name] = step
    return Result(
        case.name,
        case.rows,
        batch.num_rows("all"),
        found,
        measure_roofline(work, case.device),
        peak_flops,
        memory,
        measure.interleaved_seconds(steps, repeats=repeats, device=case.device),
    )


def equal_in_float32(case: Case) -> Equality:
    """Ours compared with 2019 on this device, on a few of the sequences, without dropout."""
    few = replace(case, pair=replace(case.pair, sequences=EQUALITY_SEQUENCES))
    models, batch = few.models(), build_batch(few.pair, few.seed).to(few.device)
    padded = [reference_2019.PaddedBatch.of(batch)]
    expected = reference_2019.reference_outcome(models.student, models.teacher, padded, few.rows)
    return equality(our_outcome(models, batch, classic_losses(few.rows)), expected)


def warmed_up(
    prepare: Callable[[], measure.Step], device: torch.device
) -> tuple[measure.Step | None, int | None]:
    """A step after its first runs, and its peak allocation in one more; None if out of memory."""
    gc.collect()
    on_gpu = device.type == "cuda"
    before = 0
    if on_gpu:
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
    try:
        step = prepare()
        for _ in range(WARM_UP_STEPS):
            step()
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        step()
    except torch.OutOfMemoryError:
        return None, None
    return step, torch.cuda.max_memory_allocated() - before if on_gpu else None


def known_peak(name: str) -> float | None:
    return next((peak for part, peak in PEAKS.items() if part in name), None)


def case_table(result: Result) -> Table:
    """One line per step."""
    table = Table("step", title=f"{result.case}, {result.rows} rows: {result.num_tokens} tokens")
    for column in ("ms", "tokens/s", "MFU", "roofline", "GB"):
        table.add_column(column, justify="right", no_wrap=True)
    for step, memory in result.memory_bytes.items():
        if step not in result.seconds:
            table.add_row(step, "does not fit", "", "", "", "")
            continue
        speed, used = result.tokens_per_second(step), result.utilization(step)
        table.add_row(
            step,
            f"{1e3 * statistics.median(result.seconds[step]):.1f}",
            f"{speed:,.0f}",
            "unknown peak" if used is None else f"{used:.0%}",
            f"{speed / result.roofline.tokens_per_second:.0%}",
            "" if memory is None else f"{memory / 1e9:.2f}",
        )
    return table


def report(results: Sequence[Result], options: argparse.Namespace) -> dict[str, Any]:
    """Every raw number, and how it was measured."""
    return {
        "command": " ".join(["python -m benchmarks.gpu", *sys.argv[1:]]),
        "settings": {"seed": options.seed, "repeats": options.repeats, "warm_up": WARM_UP_STEPS},
        **measure.environment(),
        "device": describe_device(torch.device(options.device)),
        "results": [asdict(result) | {"summary": result.summary()} for result in results],
    }


def describe_device(device: torch.device) -> dict[str, Any]:
    """The measured device; for the CPU `environment` has the details."""
    if device.type == "cpu":
        return {"name": "cpu"}
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "capability": [properties.major, properties.minor],
        "cuda": torch.version.cuda,
        "float32_products": torch.get_float32_matmul_precision(),
    }


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="shapes for a dry run")
    parser.add_argument("--pair", choices=PAIRS, nargs="+", default=list(PAIRS))
    parser.add_argument(
        "--sequences", type=int, help="sequences of a batch; by default 16,384 tokens"
    )
    parser.add_argument("--repeats", type=int, default=20, help="timed steps of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--peak-tflops", type=float, help="dense bfloat16 peak, if not known here")
    parser.add_argument("--output", type=Path, help="a JSON file for every raw number")
    return parser.parse_args()


def main() -> int:
    options, console = parse_options(), Console()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("This benchmark needs a CUDA device, and torch finds none here.", file=sys.stderr)
        return 2
    device, pairs = torch.device(options.device), TINY_PAIRS if options.tiny else PAIRS
    peak = 1e12 * options.peak_tflops if options.peak_tflops else None
    if peak is None and device.type == "cuda":
        peak = known_peak(torch.cuda.get_device_name(device))
    results = []
    for name in options.pair:
        pair = replace(pairs[name], sequences=options.sequences or pairs[name].sequences)
        for rows in ROWS[name]:
            case = Case(name, pair, rows, options.seed, device)
            results.append(measure_case(case, options.repeats, peak))
            print_result(console, results[-1])
            if options.output is not None:
                text = json.dumps(report(results, options), indent=1)
                options.output.write_text(text + "\n", encoding="utf-8")
            torch._dynamo.reset()
    return 0 if all(result.equality.holds() for result in results) else 1


def print_result(console: Console, result: Result) -> None:
    console.print(case_table(result))
    verdict = "equal" if result.equality.holds() else "NOT EQUAL"
    console.print(f"In float32 {verdict} to 2019: {result.equality}")
    console.print(f"{result.roofline}", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
