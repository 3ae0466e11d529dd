"""One distillation step of Stillhouse compared with others: verified equal, then timed.

    python -m benchmarks.step --output step.json
    python -m benchmarks.step --text --output sentences.json
    python -m benchmarks.step --peers --output peers.json

Each step runs in a separate process, and they alternate. The comparison with 2019 reads nothing;
--text uses real sentences of mixed length; --peers compares with the toolkits in `peers.py` instead
of 2019. Models have random weights from a seed. Writes a table, and with --output every raw number.
Exits with 1 if losses or gradients of two steps are not equal in float32.

Dropout is that of the models' configurations for both, except in the variants without it, as
`preset: fast` trains. On a machine with other load, `--clock cpu --threads 1` is the steadier
measure.
"""

import argparse
import functools
import json
import os
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import PretrainedConfig

from benchmarks import measure, sentences
from benchmarks.comparison import Against2019, Against2019OnSentences, Comparison, compare
from benchmarks.equality import Equality
from benchmarks.ours import (
    CPU,
    PAIRS,
    build_models,
    our_step,
    step_shape,
    variants,
)
from stillhouse.errors import RecipeError, StillhouseError
from stillhouse.section import Rows
from stillhouse.training.cost import DTYPES, Roofline, count_flops, measure_rates
from stillhouse.training.device import Precision, pick_precision

ROWS: tuple[Rows, ...] = ("all", "predicted")


def prepare_step(comparison: Comparison, name: str) -> measure.Step:
    """The step of a variant of ours, or of the reference."""
    models = build_models(comparison.pair, comparison.seed)
    if name in comparison.references:
        return comparison.reference_step(name, models)
    return our_step(models, comparison.batch(), comparison.losses, variants()[name])


def memory_of(comparison: Comparison, name: str) -> measure.PeakMemory:
    """Runs in a fresh process."""
    return measure.peak_memory(functools.partial(prepare_step, comparison, name))


@dataclass(frozen=True)
class Settings:
    """How to measure."""

    repeats: int
    clock: measure.Clock
    variants: list[str]


@dataclass(frozen=True)
class Result:
    """All measurements of one comparison; mappings are keyed by step, or by precision."""

    title: str
    pair: str
    rows: Rows
    seed: int
    layer_map: list[int]
    num_tokens: int
    num_rows: int
    precisions: dict[str, Precision]
    references: list[str]
    equality: dict[str, Equality]
    rooflines: dict[str, Roofline]
    memory: dict[str, measure.PeakMemory]
    seconds: dict[str, list[float]]

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def ratio(self, name: str, reference: str) -> float:
        """The speedup over the reference: the median over rounds that contain both."""
        pairs = zip(self.seconds[reference], self.seconds[name], strict=True)
        return statistics.median(theirs / ours for theirs, ours in pairs)

    def roofline_share(self, name: str) -> float:
        """The part of the step that what it needs would take at full speed."""
        return self.num_tokens / self.median(name) / self.rooflines[name].tokens_per_second

    def is_equal(self) -> bool:
        return all(equality.holds() for equality in self.equality.values())


def measure_steps(comparison: Comparison, settings: Settings) -> Result:
    """Equality, then memory in fresh processes, then alternating timings."""
    equality, batch = compare(comparison), comparison.batch()
    models = build_models(comparison.pair, comparison.seed)
    configs, layer_map = (models.student.config, models.teacher.config), models.layer_map
    del models
    ours: dict[str, Precision] = {name: variants()[name].precision for name in settings.variants}
    precisions: dict[str, Precision] = {**comparison.references, **ours}
    memory = {name: measure.in_fresh_process(memory_of, comparison, name) for name in precisions}
    steps = {name: functools.partial(prepare_step, comparison, name) for name in precisions}
    return Result(
        comparison.title,
        comparison.pair.name,
        comparison.rows,
        comparison.seed,
        layer_map,
        num_tokens=batch.num_rows("all"),
        num_rows=batch.num_rows(comparison.rows),
        precisions=precisions,
        references=list(comparison.references),
        equality=equality,
        rooflines={
            name: roofline(comparison, configs, precision, _is_cached(name), settings.clock)
            for name, precision in precisions.items()
        },
        memory=memory,
        seconds=measure.seconds_in_turns(steps, repeats=settings.repeats, clock=settings.clock),
    )


def _is_cached(name: str) -> bool:
    return name in variants() and variants()[name].cached


def roofline(
    comparison: Comparison,
    configs: tuple[PretrainedConfig, PretrainedConfig],
    precision: Precision,
    cached: bool,
    clock: measure.Clock,
) -> Roofline:
    """The roofline of our step on this CPU, with a live teacher or a cached one."""
    student, teacher = configs
    shape = step_shape(comparison.batch(), comparison.losses, precision)
    cost = count_flops(shape, student, None if cached else teacher)
    tick = measure.CLOCKS[clock]
    return Roofline(cost, measure_rates(cost.product, DTYPES[precision], CPU, clock=tick))


def comparison_table(result: Result) -> Table:
    """One line per step: time, speed, memory, share of the roofline."""
    title = f"{result.title}, {result.rows} rows: {result.num_rows} of {result.num_tokens} tokens"
    table = Table("step", title=title)
    for column in ("seconds", "fastest", "tokens/s", "GB before", "GB more", "roofline"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, seconds in result.seconds.items():
        memory = result.memory[name]
        table.add_row(
            f"{name} (default)" if name == default_variant() else name,
            f"{result.median(name):.2f}",
            f"{min(seconds):.2f}",
            f"{result.num_tokens / result.median(name):,.0f}",
            f"{memory.models_bytes / 1e9:.2f}",
            f"{memory.step_bytes / 1e9:.2f}",
            f"{result.roofline_share(name):.0%}",
        )
    return table


def verdicts(result: Result) -> Iterator[str]:
    """The speedup of each of our steps over each reference, and the equality that was found."""
    for reference in result.references:
        ratios = [
            f"{name} {result.ratio(name, reference):.2f}"
            for name in result.seconds
            if name not in result.references
        ]
        yield f"Speedup over {reference}: {', '.join(ratios)}"
    for name, equality in result.equality.items():
        yield f"In float32 {'equal' if equality.holds() else 'NOT EQUAL'} to {name}: {equality}"


def default_variant() -> str:
    """What `precision: auto` means on this CPU, where `compile: auto` compiles nothing."""
    return pick_precision("auto", CPU)


def report(results: Sequence[Result], settings: Settings, load: Any) -> dict[str, Any]:
    """Every raw number, and how it was measured."""
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
                "times_as_fast": {
                    reference: {name: result.ratio(name, reference) for name in result.seconds}
                    for reference in result.references
                },
                "roofline_share": {name: result.roofline_share(name) for name in result.seconds},
            }
            for result in results
        ],
    }


def comparisons(options: argparse.Namespace) -> list[Comparison]:
    """The comparisons that the options select."""
    seed = options.seed
    if options.peers:
        try:
            from benchmarks.peers import AgainstTextBrewer, AgainstTrl
        except ModuleNotFoundError as error:
            raise RecipeError(
                f"--peers needs {error.name}, which is not installed: "
                "pip install --constraint constraints.txt --requirement benchmarks/peers.txt"
            ) from error

        textbrewer: list[Comparison] = [AgainstTextBrewer(rows, seed) for rows in options.rows]
        chosen = {
            "bert": textbrewer,
            "gpt2": [AgainstTrl(seed)],
            "llama": [AgainstTrl(seed, PAIRS["llama"])],
        }
    elif options.text is not None:
        source = sentences.Source(options.text, options.vocabulary, PAIRS["bert"].length)
        bert = PAIRS["bert"]
        chosen = {
            "bert": [Against2019OnSentences(bert, rows, seed, source) for rows in options.rows],
            "gpt2": [],
            "llama": [],
        }
    else:
        chosen = {
            name: [Against2019(pair, rows, seed) for rows in options.rows]
            for name, pair in PAIRS.items()
        }
    return [comparison for pair in options.pair for comparison in chosen[pair]]


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=__doc__)
    parser.add_argument("--pair", choices=PAIRS, nargs="+", default=["bert", "gpt2"])
    parser.add_argument("--rows", choices=ROWS, nargs="+", default=list(ROWS))
    other = parser.add_mutually_exclusive_group()
    other.add_argument("--peers", action="store_true", help="against TextBrewer and TRL")
    other.add_argument(
        "--text",
        type=Path,
        nargs="?",
        const=sentences.TEXT,
        help="on sentences of this text, by default shared/data's novels; for the pair bert",
    )
    parser.add_argument("--vocabulary", type=Path, default=sentences.VOCABULARY)
    parser.add_argument("--repeats", type=int, default=5, help="timed steps of each variant")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clock", choices=measure.CLOCKS, default="wall")
    parser.add_argument("--threads", type=int, help="CPU threads; by default torch's")
    parser.add_argument("--variants", choices=variants(), nargs="+", default=list(variants()))
    parser.add_argument("--output", type=Path, help="a JSON file for every raw number")
    return parser.parse_args()


def main() -> int:
    options, load, console = parse_options(), os.getloadavg(), Console()
    settings = Settings(options.repeats, options.clock, options.variants)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    results = []
    for comparison in comparisons(options):
        result = measure_steps(comparison, settings)
        results.append(result)
        console.print(comparison_table(result))
        for line in verdicts(result):
            console.print(line)
    if options.output is not None:
        text = json.dumps(report(results, settings, load), indent=1)
        options.output.write_text(text + "\n", encoding="utf-8")
    return 0 if all(result.is_equal() for result in results) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except StillhouseError as error:
        sys.exit(str(error))
