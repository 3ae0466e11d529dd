"""How soon a recipe reaches the final loss of the classic recipe.

    python -m benchmarks.time_to_quality RECIPE --run-dir runs/time-to-quality --output found.json

RECIPE names a teacher, a corpus, a student, and in `distillation.max_tokens` the token budget of
the classic recipe. For every seed three kinds of training are timed, from the same weights:

- `2019`: the classic recipe by the step of 2019, at the best of three learning rates (chosen on
  the first seed with our step, which computes the same except for the last position of a window:
  2019 gives it no label);
- `classic`: the same recipe by our step, which isolates the gain of the engine;
- each candidate with a share of the token budget, its schedule ending there.

Seconds are those of the training steps, with data, compilation and the teacher cache. The loss is
the mean over the first held-out sequences. Finished trainings are not repeated: the same run folder
resumes. Trainings follow one another seed by seed, so that changes in the machine's load affect all
kinds alike. 2019 trains in a separate process, without our allocator settings. It sees a window as
one document: the recipe should set `attend_across_documents`.
"""

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel

from benchmarks import measure, reference_2019
from stillhouse.allocator import keep_freed_memory
from stillhouse.errors import StillhouseError
from stillhouse.evaluation.perplexity import masked_losses
from stillhouse.families.registry import family_of
from stillhouse.models.load import load_model
from stillhouse.pipeline import Pipeline
from stillhouse.recipe import Recipe
from stillhouse.recipe_file import parse_recipe
from stillhouse.runs.manifest import read_manifest
from stillhouse.runs.paths import RunFolder
from stillhouse.tokens.batches import Batch, SequenceSource
from stillhouse.tokens.packing import open_source
from stillhouse.training.device import pick_device
from stillhouse.training.job import plan_batches
from stillhouse.training.progress import ConsoleReporter
from stillhouse.training.step import learning_rate_factor, set_learning_rate

LEARNING_RATES = (1e-3, 2e-3, 4e-3)


@dataclass(frozen=True)
class Training:
    """One training: its settings, its cost, and the quality of its student."""

    kind: str
    seed: int
    learning_rate: float
    tokens: int
    seconds: float
    loss: float


@dataclass(frozen=True)
class Result:
    """All trainings, and their reference."""

    teacher_loss: float
    initial_loss: float
    trainings: list[Training]

    def of(self, kind: str, seed: int) -> list[Training]:
        return [t for t in self.trainings if t.kind == kind and t.seed == seed]

    def aim(self, seed: int) -> Training:
        """The final loss of 2019, and its time."""
        return self.of("2019", seed)[0]

    def engine(self, seed: int) -> float:
        """The speedup of the same recipe with our step."""
        aim = self.aim(seed)
        same = [t for t in self.of("classic", seed) if t.learning_rate == aim.learning_rate]
        return aim.seconds / same[0].seconds

    def gain(self, kind: str, seed: int) -> float | None:
        """How much sooner a candidate reaches the loss of 2019."""
        found = self.soonest(kind, seed)
        return None if found is None else self.aim(seed).seconds / found.seconds

    def soonest(self, kind: str, seed: int) -> Training | None:
        """The shortest training of a candidate that is at least as good as that of 2019."""
        aim = self.aim(seed).loss
        reached = [training for training in self.of(kind, seed) if training.loss <= aim]
        return min(reached, key=lambda training: training.seconds, default=None)


@dataclass(frozen=True)
class FirstSequences:
    """The first sequences of a source: enough to rank models, few enough to be quick."""

    source: SequenceSource
    wanted: int

    @property
    def num_sequences(self) -> int:
        return min(self.wanted, self.source.num_sequences)

    @property
    def sequence_length(self) -> int:
        return self.source.sequence_length

    @property
    def parts(self) -> Mapping[str, range]:
        return {}

    def batch(self, sequences: np.ndarray, epochs: np.ndarray, seed: int) -> Batch:
        return self.source.batch(sequences, epochs, seed)


class Bench:
    """A recipe, its tokens, and the trainings so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.text = Path(options.recipe).read_text(encoding="utf-8")
        self.where = options.recipe
        self.run = RunFolder.at(options.run_dir)
        self.reporter = ConsoleReporter()
        self.recipe = self.with_settings(0, ["distillation.preset=classic"])
        Pipeline(self.recipe, self.run, self.reporter).run_stages({"prepare"})
        self.held_out = FirstSequences(
            open_source(self.run.tokens, self.recipe.tokens, "validation"),
            options.validation_tokens // self.recipe.tokens.sequence_length,
        )

    @property
    def budget(self) -> int:
        assert self.recipe.distillation.max_tokens is not None
        return self.recipe.distillation.max_tokens

    def with_settings(self, seed: int, settings: Sequence[str]) -> Recipe:
        """The recipe with other settings, without controls."""
        fixed = [f"seed={seed}", "distillation.control=none"]
        return parse_recipe(self.text, [*fixed, *settings], where=self.where)

    def loss_of(self, model: PreTrainedModel) -> float:
        loss = masked_losses(family_of(model.config), model.eval(), self.held_out).mean
        return math.nan if loss is None else loss

    def teacher_folder(self) -> Path:
        return Pipeline(self.recipe, self.run, self.reporter).models.teacher_folder

    def train(self, kind: str, seed: int, settings: Sequence[str]) -> Training:
        """A training by the package's own stages."""
        recipe = self.with_settings(seed, settings)
        learning_rate = recipe.distillation.optimizer.learning_rate
        name = f"{kind}-{learning_rate:g}-{recipe.distillation.max_tokens}-seed-{seed}"
        run = RunFolder(self.run.path / name, self.run.path)
        pipeline = Pipeline(recipe, run, self.reporter)
        pipeline.run_stages({"init", "distill"})
        manifest = read_manifest(run.student)
        assert manifest is not None
        facts = manifest.facts["training"]
        seconds = facts["seconds"] + facts.get("teacher_cache_seconds", 0.0)
        loss = self.loss_of(load_model(run.student)[1])
        return Training(kind, seed, learning_rate, facts["tokens"], seconds, loss)

    def train_2019(self, seed: int, learning_rate: float) -> Training:
        """The classic recipe by the step of 2019; stored in a file, because it is the slowest."""
        kept = self.run.path / f"2019-{learning_rate:g}-seed-{seed}.json"
        if kept.exists():
            return Training(**json.loads(kept.read_text(encoding="utf-8")))
        recipe = self.with_settings(seed, ["distillation.preset=classic"])
        run = RunFolder(self.run.path / f"2019-seed-{seed}", self.run.path)
        Pipeline(recipe, run, self.reporter).run_stages({"init"})
        seconds, tokens = measure.in_fresh_process(
            train_2019, recipe, run, self.teacher_folder(), seed, learning_rate
        )
        loss = self.loss_of(load_model(run.student)[1])
        training = Training("2019", seed, learning_rate, tokens, seconds, loss)
        kept.write_text(json.dumps(asdict(training)) + "\n", encoding="utf-8")
        return training


def train_2019(
    recipe: Recipe, run: RunFolder, teacher_folder: Path, seed: int, learning_rate: float
) -> tuple[float, int]:
    """Train `student/` by the step of 2019: the seconds of its steps, and the tokens."""
    student, teacher = load_model(run.student_init)[1].train(), load_model(teacher_folder)[1]
    optimizer = reference_2019.reference_optimizer(student)
    source = open_source(run.tokens, recipe.tokens, "train")
    batches = plan_batches(source, recipe.distillation, seed=seed)
    torch.manual_seed(seed)
    seconds, tokens = 0.0, 0
    reporter = ConsoleReporter()
    reporter.start(f"2019, seed {seed}", 0, batches.num_steps)
    for step in range(batches.num_steps):
        started = time.monotonic()
        batch = batches.step(step)
        factor = learning_rate_factor(recipe.distillation.schedule, step, batches.num_steps)
        set_learning_rate(optimizer, learning_rate * factor)
        micro = [reference_2019.PaddedBatch.of(part) for part in batch.split(8)]
        reference_2019.reference_step(student, teacher, micro, "all", optimizer)
        tokens += batch.num_rows("all")
        seconds += time.monotonic() - started
        reporter.step(step + 1, {"tokens_per_second": tokens / seconds})
    reporter.finish()
    student.save_pretrained(run.student)
    return seconds, tokens


def best_learning_rate(bench: Bench, seed: int) -> tuple[float, list[Training]]:
    """The classic recipe's best of three learning rates, and the trainings that determined it."""
    tried = [bench.train("classic", seed, classic(rate)) for rate in LEARNING_RATES]
    return min(tried, key=lambda training: training.loss).learning_rate, tried


def classic(learning_rate: float) -> list[str]:
    return [
        "distillation.preset=classic",
        f"distillation.optimizer.learning_rate={learning_rate}",
    ]


def run(
    bench: Bench,
    candidates: dict[str, list[str]],
    *,
    shares: Sequence[float],
    seeds: Sequence[int],
) -> Result:
    """Every training, seed by seed."""
    rate, trainings = best_learning_rate(bench, seeds[0])
    for seed in seeds:
        trainings.append(bench.train_2019(seed, rate))
        if seed != seeds[0]:
            trainings.append(bench.train("classic", seed, classic(rate)))
        for name, settings in candidates.items():
            for share in shares:
                tokens = f"distillation.max_tokens={math.ceil(share * bench.budget)}"
                trainings.append(bench.train(name, seed, [*settings, tokens]))
    initial = load_model(bench.run.path / f"2019-seed-{seeds[0]}" / "student-init")[1]
    teacher = load_model(bench.teacher_folder())[1]
    return Result(bench.loss_of(teacher), bench.loss_of(initial), trainings)


def table(result: Result) -> Table:
    """Every training, and its speedup over 2019."""
    title = f"teacher {result.teacher_loss:.3f}, student at first {result.initial_loss:.3f} nats"
    shown = Table("training", title=title)
    for column in ("seed", "rate", "tokens", "seconds", "loss", "minus 2019", "speedup"):
        shown.add_column(column, justify="right")
    for training in sorted(result.trainings, key=lambda t: (t.seed, -t.seconds)):
        aim = result.aim(training.seed)
        shown.add_row(
            training.kind,
            str(training.seed),
            f"{training.learning_rate:g}",
            f"{training.tokens:,}",
            f"{training.seconds:.1f}",
            f"{training.loss:.3f}",
            f"{training.loss - aim.loss:+.3f}",
            f"{aim.seconds / training.seconds:.2f}",
        )
    return shown


def verdicts(result: Result, kinds: Sequence[str], seeds: Sequence[int]) -> list[str]:
    """For each candidate: the total gain, and the engine's share of it."""
    engine = statistics.median(result.engine(seed) for seed in seeds)
    lines = [f"speedup of the classic recipe with our step: {engine:.2f}"]
    for kind in kinds:
        gains = [gain for seed in seeds if (gain := result.gain(kind, seed)) is not None]
        if len(gains) < len(seeds):
            lines.append(f"{kind}: reaches 2019's loss on {len(gains)} of {len(seeds)} seeds")
            continue
        gain = statistics.median(gains)
        lines.append(
            f"{kind}: speedup to 2019's loss {gain:.2f} (engine {engine:.2f}, recipe "
            f"{gain / engine:.2f}); by seed {', '.join(f'{one:.2f}' for one in gains)}"
        )
    return lines


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.time_to_quality",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe")
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--candidate",
        nargs="+",
        action="append",
        metavar=("NAME", "KEY=VALUE"),
        help="settings of a candidate; by default the preset `fast` alone",
    )
    parser.add_argument(
        "--shares",
        type=float,
        nargs="+",
        default=[1 / 4, 5 / 16, 3 / 8, 13 / 32, 1 / 2],
        help="of the token budget, for each of which a candidate is trained",
    )
    parser.add_argument("--validation-tokens", type=int, default=65_536)
    parser.add_argument("--output", type=Path, help="a JSON file for every raw number")
    return parser.parse_args()


def main() -> int:
    options, console = parse_options(), Console()
    given = options.candidate or [["fast", "distillation.preset=fast"]]
    candidates = {name: settings for name, *settings in given}
    keep_freed_memory()
    try:
        result = run(Bench(options), candidates, shares=options.shares, seeds=options.seeds)
    except StillhouseError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    console.print(table(result))
    for line in verdicts(result, list(candidates), options.seeds):
        console.print(line)
    if options.output is not None:
        found = {
            "command": " ".join(["python -m benchmarks.time_to_quality", *sys.argv[1:]]),
            **measure.environment(),
            "device": str(pick_device()),
            "recipe": options.recipe,
            "candidates": candidates,
            "engine": {seed: result.engine(seed) for seed in options.seeds},
            "gains": {
                kind: {seed: result.gain(kind, seed) for seed in options.seeds}
                for kind in candidates
            },
            **asdict(result),
        }
        options.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
