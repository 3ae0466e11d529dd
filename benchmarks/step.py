"""One distillation step of Stillhouse against that of 2019: equal first, then timed and weighed.

    python -m benchmarks.step --output step.json

Reads nothing; models have random weights from a seed. Writes a table, and with --output every raw
number. Exits with 1 where losses or gradients of the two are not equal in float32.

Both take the same sequences, grouped by length as in 2019, so there is next to no padding to spare.
Dropout is that of the models' configurations, for both. On a machine that others use as well,
`--clock processor --threads 1` is the steadier measure.
"""

import argparse
import functools
import json
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import measure, reference_2019
from benchmarks.ours import (
    CPU,
    PAIRS,
    Equality,
    Pair,
    build_batch,
    build_models,
    compare,
    multiply_adds,
    our_step,
    variants,
)
from stillhouse.recipe import Rows
from stillhouse.training.device import has_bf16, pick_precision

REFERENCE = "2019"
ROWS: tuple[Rows, ...] = ("all", "predicted")


def step_of_2019(pair: Pair, seed: int, rows: Rows) -> measure.Step:
    """The reference's models, and its step on them."""
    models = build_models(pair, seed)
    models.student.train()
    batch = reference_2019.PaddedBatch.of(build_batch(pair, seed))
    optimizer = reference_2019.reference_optimizer(models.student)
    return functools.partial(
        reference_2019.reference_step, models.student, models.teacher, batch, rows, optimizer
    )


def prepare_step(pair: str, seed: int, name: str, rows: Rows) -> measure.Step:
    """The step of a variant of ours, or of the reference."""
    if name == REFERENCE:
        return step_of_2019(PAIRS[pair], seed, rows)
    return our_step(PAIRS[pair], seed, variants()[name], rows)


def memory_of(pair: str, seed: int, name: str, rows: Rows) -> measure.PeakMemory:
    """What a fresh process runs."""
    return measure.peak_memory(functools.partial(prepare_step, pair, seed, name, rows))


@dataclass(frozen=True)
class Settings:
    """How to measure."""

    seed: int
    repeats: int
    clock: measure.Clock
    variants: list[str]


@dataclass(frozen=True)
class Result:
    """Everything measured of one pair and row set; the last four by variant or precision."""

    pair: str
    rows: Rows
    layer_map: list[int]
    num_tokens: int
    num_rows: int
    equality: Equality
    multiply_adds: int
    multiply_adds_per_second: dict[str, float]
    memory: dict[str, measure.PeakMemory]
    seconds: dict[str, list[float]]

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def ratio(self, name: str) -> float:
        """How many times as fast as the reference: the median over rounds, each with both."""
        pairs = zip(self.seconds[REFERENCE], self.seconds[name], strict=True)
        return statistics.median(theirs / ours for theirs, ours in pairs)

    def floor_share(self, name: str) -> float:
        """The part of the step that its needed matrix products would take at full speed."""
        precision = "fp32" if name == REFERENCE else variants()[name].precision
        return self.multiply_adds / self.multiply_adds_per_second[precision] / self.median(name)


def measure_pair(pair: str, rows: Rows, settings: Settings) -> Result:
    """Equality, then memory in fresh processes, then the timings in turns."""
    seed, clock, names = settings.seed, settings.clock, [REFERENCE, *settings.variants]
    models, batch = build_models(PAIRS[pair], seed), build_batch(PAIRS[pair], seed)
    hidden = models.student.config.hidden_size
    shape = (batch.input_ids.numel(), hidden, 4 * hidden)
    dtypes = {"fp32": torch.float32} | ({"bf16": torch.bfloat16} if has_bf16(CPU) else {})
    equality, needed = compare(models, batch, rows), multiply_adds(models, batch, rows)
    layer_map = models.layer_map
    del models
    memory = {name: measure.in_fresh_process(memory_of, pair, seed, name, rows) for name in names}
    steps = {name: prepare_step(pair, seed, name, rows) for name in names}
    return Result(
        pair,
        rows,
        layer_map,
        num_tokens=batch.num_rows("all"),
        num_rows=batch.num_rows(rows),
        equality=equality,
        multiply_adds=needed,
        multiply_adds_per_second={
            name: measure.multiply_adds_per_second(shape, dtype, clock=clock)
            for name, dtype in dtypes.items()
        },
        memory=memory,
        seconds=measure.interleaved_seconds(steps, repeats=settings.repeats, clock=clock),
    )


def comparison_table(result: Result) -> Table:
    """One line per variant: time, speed, ratio, memory, share of the floor."""
    title = f"{result.pair}, {result.rows} rows: {result.num_rows} of {result.num_tokens} tokens"
    table = Table("step", title=title)
    for column in ("seconds", "fastest", "tokens/s", "x 2019", "GB before", "GB more", "floor"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, seconds in result.seconds.items():
        memory = result.memory[name]
        table.add_row(
            f"{name} (default)" if name == default_variant() else name,
            f"{result.median(name):.2f}",
            f"{min(seconds):.2f}",
            f"{result.num_tokens / result.median(name):,.0f}",
            f"{result.ratio(name):.2f}",
            f"{memory.models_bytes / 1e9:.2f}",
            f"{memory.step_bytes / 1e9:.2f}",
            f"{result.floor_share(name):.0%}",
        )
    return table


def default_variant() -> str:
    """What `precision: auto` means on this processor, where `compile: auto` compiles nothing."""
    return pick_precision("auto", CPU)


def report(results: Sequence[Result], settings: Settings, load: Any) -> dict[str, Any]:
    """Every raw number, and what it was measured with."""
    return {
        "command": " ".join(["python -m benchmarks.step", *sys.argv[1:]]),
        "settings": asdict(settings),
        **measure.environment(),
        "load_average": {"before": load, "after": os.getloadavg()},
        "default_variant": default_variant(),
        "results": [
            asdict(result)
            | {
                "median_seconds": {name: result.median(name) for name in result.seconds},
                "times_2019": {name: result.ratio(name) for name in result.seconds},
                "floor_share": {name: result.floor_share(name) for name in result.seconds},
            }
            for result in results
        ],
    }


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=__doc__)
    parser.add_argument("--pair", choices=[*PAIRS, "both"], default="both")
    parser.add_argument("--rows", choices=ROWS, nargs="+", default=list(ROWS))
    parser.add_argument("--repeats", type=int, default=5, help="timed steps of each variant")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clock", choices=measure.CLOCKS, default="wall")
    parser.add_argument("--threads", type=int, help="threads of the processor; by default torch's")
    parser.add_argument("--variants", choices=variants(), nargs="+", default=list(variants()))
    parser.add_argument("--output", type=Path, help="a JSON file for every raw number")
    return parser.parse_args()


def main() -> int:
    options, load, console = parse_options(), os.getloadavg(), Console()
    settings = Settings(options.seed, options.repeats, options.clock, options.variants)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    pairs = list(PAIRS) if options.pair == "both" else [options.pair]
    results = []
    for pair in pairs:
        for rows in options.rows:
            results.append(measure_pair(pair, rows, settings))
            console.print(comparison_table(results[-1]))
            verdict = "equal" if results[-1].equality.holds() else "NOT EQUAL"
            console.print(f"In float32 {verdict} to 2019: {results[-1].equality}")
    if options.output is not None:
        text = json.dumps(report(results, settings, load), indent=1)
        options.output.write_text(text + "\n", encoding="utf-8")
    return 0 if all(result.equality.holds() for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
