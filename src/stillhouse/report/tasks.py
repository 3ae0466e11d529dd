"""The tasks of a run: each model's scores, the effect of its teacher, cost and curves."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

from stillhouse import units
from stillhouse.errors import RunError
from stillhouse.finetuning.settings import FinetuningRecipe
from stillhouse.recipe import Recipe
from stillhouse.report.curves import Figure, figure, lines_of
from stillhouse.report.results import Difference, Outcome, Verdict, check_schema, judge
from stillhouse.report.tables import Cell, Table, ratio_note
from stillhouse.runs.manifest import read_manifest, verify
from stillhouse.runs.paths import RunFolder
from stillhouse.tasks.metrics import GLUE, format_score, glue_scores, metric_label, score_digits
from stillhouse.training.metrics import read_metrics
from stillhouse.wording import counted, numbered_rows

# Classes of `page.css`, in the order in which models of a task are given.
COLORS = ("teacher", "control", "student", "control_same_time")
COSTS = [
    ("parameters", units.COUNT, "Parameters"),
    ("size_bytes", units.SIZE, "Size on disk"),
    ("forward_tokens_per_second", units.RATE, "Forward throughput"),
]
KINDS = ("models", "differences")
TITLES: dict[Verdict, str] = {
    "better": "The models with a teacher are better: the teacher helped.",
    "worse": "The models with a teacher are worse: the teacher did not help.",
    "unclear": "The effect of the teacher is not significant.",
    "unknown": "The effect of the teacher is unknown.",
}


@dataclass(frozen=True)
class Row:
    """A model, or the difference of two, on a split: values and intervals by metric, per seed."""

    name: str
    is_difference: bool
    found: Sequence[Mapping[str, Mapping[str, float]]]
    digits: Mapping[str, int]

    def show(self, value: float, metric: str) -> str:
        """A score, or a difference with its sign."""
        show = units.signed if self.is_difference else format_score
        return show(value, self.digits[metric])

    def values(self, metric: str) -> list[float]:
        return [each[metric]["value"] for each in self.found]

    def interval(self, metric: str, seed: int) -> str:
        """The 95 % interval of one seed, by its position."""
        low, high = (self.show(self.found[seed][metric][key], metric) for key in ("low", "high"))
        return f"{low} to {high}"

    def cell(self, metric: str, seed: int) -> Cell:
        """One seed's value with its interval."""
        return Cell(self.show(self.values(metric)[seed], metric), [self.interval(metric, seed)])

    def median(self, metric: str) -> Cell:
        """The median over seeds with the extremes; of one seed its value with its interval."""
        values = self.values(metric)
        if len(values) == 1:
            return self.cell(metric, 0)
        low, middle, high = (
            self.show(choose(values), metric) for choose in (min, statistics.median, max)
        )
        return Cell(middle, [f"{low} to {high}"])


@dataclass(frozen=True)
class TaskResult:
    """A task's scores and training logs, one of each for every seed."""

    name: str
    scores: Sequence[Mapping[str, Any]]
    metrics: Sequence[Sequence[Mapping[str, Any]]]

    @property
    def metric(self) -> str:
        return self.scores[0]["metric"]

    @property
    def splits(self) -> list[str]:
        return list(self.scores[0]["splits"])

    def label(self, metric: str = "") -> str:
        """The name of a metric of the task, by default of the main one."""
        return metric_label(metric or self.metric, self.scores[0].get("positive_label"))

    def rows(self, split: str) -> list[Row]:
        """The models of a split, then the differences; a metric has the same decimals in all."""
        splits = [each["splits"][split] for each in self.scores]
        found = {
            (kind, name): [each[kind][name] for each in splits]
            for kind in KINDS
            for name in splits[0][kind]
        }
        digits = {
            metric: score_digits(
                value for row in found.values() for each in row for value in each[metric].values()
            )
            for metric in next(iter(found.values()))[0]
        }
        return [
            Row(name, kind == "differences", own, digits) for (kind, name), own in found.items()
        ]

    @property
    def has_differences(self) -> bool:
        return any(split["differences"] for split in self.scores[0]["splits"].values())


def scores_file(run: RunFolder, task: str) -> Path:
    """Where the scores of a task's models are."""
    return run.finetuned(task) / "scores.json"


def read_tasks(recipe: Recipe, seed_runs: Sequence[RunFolder]) -> list[TaskResult]:
    """The results of every task.

    Raises:
        RunError: a task has no scores, or they are damaged.
    """
    return [
        TaskResult(
            task,
            [_read_scores(run, task) for run in seed_runs],
            [read_metrics(run.metrics) for run in seed_runs],
        )
        for task in recipe.finetuning
    ]


def _read_scores(run: RunFolder, task: str) -> dict[str, Any]:
    path = scores_file(run, task)
    if read_manifest(path) is None:
        raise RunError(f"There is no {path} yet. Run the stage finetune first.")
    verify(path)
    scores = json.loads(path.read_text(encoding="utf-8"))
    check_schema(path, scores.get("schema"), "finetune")
    return scores


def outcome_of(recipe: Recipe, tasks: Sequence[TaskResult]) -> Outcome:
    """The effect of teachers, by each task's main metric on its first split."""
    sentences, verdicts = [], []
    for task in tasks:
        rows = [row for row in task.rows(task.splits[0]) if row.is_difference]
        for row in rows:
            verdict, sentence = _effect(task, row)
            verdicts.append(verdict)
            sentences.append(sentence)
        compared = {row.name.partition(" minus ")[0] for row in rows}
        sentences += [
            f"{task.name}: {name} has a teacher, but no model without one starts from the same "
            "weights and layers, so the effect of the teacher was not measured."
            for name, model in recipe.finetuning[task.name].models.items()
            if model.teacher is not None and name not in compared
        ]
    if not sentences:
        return Outcome("unknown", "No model had a teacher.", ["The scores are below."])
    verdict: Verdict = "unknown"
    if verdicts:
        verdict = verdicts[0] if len(set(verdicts)) == 1 else "unclear"
    return Outcome(verdict, TITLES[verdict], sentences)


def _effect(task: TaskResult, row: Row) -> tuple[Verdict, str]:
    taught, _, alone = row.name.partition(" minus ")
    found = [Difference(**each[task.metric]) for each in row.found]
    verdict, digits = judge(found, lower_is_better=False), row.digits[task.metric]
    if len(found) == 1:
        certainty = f"95 % interval {found[0].interval(digits)}"
    else:
        clear = [each.verdict(lower_is_better=False) in ("better", "worse") for each in found]
        seeds = counted(len(found), "seed")
        certainty = f"median of {seeds}; the interval excludes zero in {sum(clear)}"
    start = "no significant difference: " if verdict == "unclear" else ""
    return verdict, (
        f"{task.name}, {task.splits[0]}: {start}{taught} scores "
        f"{units.signed(statistics.median(row.values(task.metric)), digits)} ({task.label()}) "
        f"compared with {alone}, which has no teacher ({certainty})."
    )


def scores_table(task: TaskResult, split: str) -> Table:
    """A row for each model and difference, a column for each metric, the main one first."""
    rows = task.rows(split)
    metrics = sorted(rows[0].digits, key=lambda metric: metric != task.metric)
    return Table(
        [task.label(metric) for metric in metrics],
        [(row.name, [row.median(metric) for metric in metrics]) for row in rows],
    )


def seeds_table(recipe: Recipe, task: TaskResult, split: str) -> Table:
    """A row for each model and difference, a column for each seed, by the main metric."""
    seeds = range(len(task.scores))
    return Table(
        [f"{task.label()}, seed {seed}" for seed in recipe.seeds],
        [(row.name, [row.cell(task.metric, seed) for seed in seeds]) for row in task.rows(split)],
    )


def costs_table(recipe: Recipe, task: TaskResult) -> Table | None:
    """Parameters, size and speed of each model, with ratios to the teacher of the task; None where
    they were not measured."""
    costs = [each["costs"] for each in task.scores if each.get("costs")]
    if not costs:
        return None
    models = recipe.finetuning[task.name].models.values()
    teacher = next((model.teacher for model in models if model.teacher is not None), None)
    rows = []
    for name in costs[0]:
        cells = []
        for key, unit, _ in COSTS:
            value, base = (
                statistics.median(each[model][key] for each in costs) if model else None
                for model in (name, None if name == teacher else teacher)
            )
            assert value is not None
            notes = (
                [ratio_note(unit.ratio(value / base), f"{teacher}")] if base and unit.ratio else []
            )
            cells.append(Cell(unit.show(value), notes))
        rows.append((name, cells))
    return Table([label for *_, label in COSTS], rows)


def loss_figure(recipe: FinetuningRecipe, task: TaskResult) -> Figure | None:
    """The loss of the labels over tokens; a sole term is logged as `loss`."""
    found = []
    for color, model in zip(cycle(COLORS), recipe.models, strict=False):
        terms = recipe.losses.active() if recipe.models[model].teacher else {"hard_label": 1.0}
        key = "loss" if list(terms) == ["hard_label"] else "hard_label"
        found += lines_of(task.metrics, f"{task.name}-{model}", key, color=color, label=model)
    caption = "Lines: smoothed training loss; dots: the steps."
    return figure(f"{task.name}: loss of the labels", found, caption)


def protocol(recipe: FinetuningRecipe, task: TaskResult) -> dict[str, Any]:
    """How the task was run, with the rows of each file that were skipped as blank."""
    first = task.scores[0]
    facts = {"protocol": first["task"], "data": first["data"]}
    skipped = [
        f"{recipe.data.sources[key]}: {numbered_rows(numbers)} without any field"
        for key, numbers in first.get("blank_rows", {}).items()
    ]
    return facts | ({"skipped": "; ".join(skipped)} if skipped else {})


def glue_lines(recipe: Recipe, tasks: Sequence[TaskResult]) -> list[str]:
    """The macro scores of every model that all tasks of GLUE have, each task by its median over
    the seeds; none where a task is missing."""
    found = {task.name: task for task in tasks if task.name in GLUE}
    if not set(GLUE) - {"wnli"} <= set(found):
        return []
    lines = []
    for model in sorted(set.intersection(*(set(recipe.finetuning[t].models) for t in found))):
        macro = glue_scores({name: _glue_score(model, task) for name, task in found.items()})
        without = f"GLUE, {model}: {100 * (macro['macro_without_wnli'] or 0):.1f} without WNLI"
        both = macro["macro"]
        lines.append(without if both is None else f"{without}, {100 * both:.1f} with it")
    return lines


def _glue_score(model: str, task: TaskResult) -> float:
    """The main metric, the mean of its splits (MNLI has two), the median of the seeds."""
    return statistics.median(
        statistics.fmean(
            split["models"][model][task.metric]["value"] for split in each["splits"].values()
        )
        for each in task.scores
    )
