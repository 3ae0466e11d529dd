"""The tasks of a run on its report page: each model's scores, what its teacher was worth, how it
learned."""

import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import cycle
from typing import Any

from stillhouse.finetuning.settings import FinetuningRecipe
from stillhouse.recipe import Recipe
from stillhouse.recipe_file import dump_recipe
from stillhouse.report import units
from stillhouse.report.curves import Series, loss_figure
from stillhouse.report.html import definitions, table_html, whole_page
from stillhouse.report.outcome import Outcome
from stillhouse.report.results import seeds_of
from stillhouse.report.table import Cell, Table
from stillhouse.report.tasks import read_scores, shown
from stillhouse.report.verdict import Difference, Side, Verdict, judge
from stillhouse.runs.paths import RunFolder
from stillhouse.tasks.blank_rows import rows_listed
from stillhouse.tasks.metrics import metric_label, score_digits
from stillhouse.training.metrics import read_metrics
from stillhouse.wording import counted

# The colors of `page.css`, in the order in which models of a task are given.
COLORS = ("teacher", "control", "student", "control_same_time")


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

    @property
    def kind(self) -> str:
        return (self.scores[0].get("task") or {}).get("kind", "")

    def label(self, metric: str) -> str:
        """What a metric of the task is called."""
        return metric_label(metric, self.scores[0].get("positive_label"))

    def found(self, split: str, kind: str, name: str, metric: str) -> list[Mapping[str, float]]:
        """For each seed the value and interval of a model, or of a gain."""
        return [each["splits"][split][kind][name][metric] for each in self.scores]

    def gains(self, split: str, pair: str) -> list[Difference]:
        """For each seed what a teacher was worth, by the task's own metric."""
        found = self.found(split, "gains", pair, self.metric)
        return [Difference(each["value"], each["low"], each["high"]) for each in found]

    def digits(self, split: str, metric: str) -> int:
        """Decimals for all scores and gains of a metric."""
        return score_digits(
            number
            for each in self.scores
            for kind in ("models", "gains")
            for model in each["splits"][split][kind].values()
            for number in model[metric].values()
        )


def read_tasks(recipe: Recipe, seed_runs: Sequence[RunFolder]) -> list[TaskResult]:
    """The results of every task.

    Raises:
        RunError: a task has not been scored.
    """
    return [
        TaskResult(
            task,
            [read_scores(run, task) for run in seed_runs],
            [read_metrics(run.metrics) for run in seed_runs],
        )
        for task in recipe.finetuning
    ]


def tasks_page(
    name: str,
    recipe: Recipe,
    command: str,
    tasks: Sequence[TaskResult],
    notes: Sequence[str],
) -> str:
    """The whole page of a run that has tasks alone; `notes` stand before the tasks."""
    first = tasks[0].scores[0]
    body = [
        *(f"<p>{escape(note)}.</p>" for note in notes),
        *(task_section(recipe, task) for task in tasks),
        "<h2>Where the numbers come from</h2><p>One command makes this run. A stage that is up to "
        "date is left alone; another --run-dir makes everything anew.</p>"
        f"<pre><code>{escape(command)}</code></pre>",
        definitions({"seed": ", ".join(map(str, recipe.seeds)), "commit": first["commit"]}),
        definitions(first["machine"]),
        f"<details><summary>Versions</summary>{definitions(first['versions'])}</details>"
        "<details><summary>The recipe, every default written out</summary>"
        f"<pre><code>{escape(dump_recipe(recipe))}</code></pre></details>",
    ]
    return whole_page(name, "task", outcome_of(recipe, tasks), "\n".join(body))


TITLES: dict[Verdict, str] = {
    "better": "The models with a teacher are better: the teacher helped.",
    "worse": "The models with a teacher are worse: the teacher did not help.",
    "unclear": "Whether the teacher helped is not clear.",
    "unknown": "Whether the teacher helped is not known.",
}
VERDICTS: dict[Side, Verdict] = {
    "above": "better",
    "below": "worse",
    "unclear": "unclear",
    "unknown": "unknown",
}


def outcome_of(recipe: Recipe, tasks: Sequence[TaskResult]) -> Outcome:
    """What teachers were worth, by each task's own metric on its first split."""
    sentences, verdicts = [], []
    for task in tasks:
        gains = task.scores[0]["splits"][task.splits[0]]["gains"]
        for pair in gains:
            found = task.gains(task.splits[0], pair)
            verdicts.append(VERDICTS[judge(found)])
            sentences.append(_gain_in_words(task, pair, found))
        sentences += _not_compared(recipe, task, {pair.partition(" less ")[0] for pair in gains})
    if verdicts:
        verdict = verdicts[0] if len(set(verdicts)) == 1 else "unclear"
        return Outcome(verdict, TITLES[verdict], sentences)
    if sentences:
        return Outcome("unknown", TITLES["unknown"], sentences)
    return Outcome("unknown", "No model had a teacher.", ["The scores stand below."])


def _gain_in_words(task: TaskResult, pair: str, found: Sequence[Difference]) -> str:
    taught, _, alone = pair.partition(" less ")
    middle = statistics.median(each.value or 0.0 for each in found)
    digits = task.digits(task.splits[0], task.metric)
    if len(found) == 1:
        certainty = f"95 % interval {found[0].interval(digits)}"
    else:
        clear = sum(each.side in ("below", "above") for each in found)
        seeds = counted(len(found), "seed")
        certainty = f"median of {seeds}; the interval leaves out zero in {clear}"
    lead = "no difference could be shown: " if judge(found) == "unclear" else ""
    return (
        f"{task.name}, {task.splits[0]}: {lead}{taught} scores "
        f"{units.signed(middle, digits)} ({task.label(task.metric)}) against {alone}, "
        f"which had no teacher ({certainty})."
    )


def _not_compared(recipe: Recipe, task: TaskResult, compared: Collection[str]) -> list[str]:
    """A sentence for each model that had a teacher and that no model without one stands beside."""
    return [
        f"{task.name}: {name} had a teacher, but no model without one starts from the same weights "
        "and layers, so what the teacher was worth was not measured."
        for name, model in recipe.finetuning[task.name].models.items()
        if model.teacher is not None and name not in compared
    ]


def task_section(recipe: Recipe, task: TaskResult) -> str:
    """A task's tables, one for each split, and its curves."""
    several = len(task.scores) > 1
    note = (
        f"Median of {seeds_of(recipe.seeds)}, with the smallest and the largest value below it. "
        if several
        else "The 95 % interval over the split's examples stands below each value. "
    )
    if any(task.scores[0]["splits"][split]["gains"] for split in task.splits):
        note += (
            "What a teacher was worth is the difference on the same examples, with its interval."
        )
    parts = [f"<h2>{escape(task.name)}</h2><p class='note'>{escape(note)}</p>"]
    for split in task.splits:
        parts.append(f"<h3>{escape(split)}</h3>{table_html(scores_table(task, split), [])}")
        if several:
            parts.append(table_html(seeds_table(recipe, task, split), []))
    if (costs := costs_table(recipe, task)) is not None:
        parts.append(f"<h3>Size and speed</h3>{table_html(costs, [])}")
    settings = recipe.finetuning[task.name]
    parts.append(loss_figure(f"{task.name}: loss of the right answers", _series(task, settings)))
    facts = {"protocol": task.scores[0]["task"], "data": task.scores[0]["data"]}
    parts.append(definitions(facts | left_out_rows(settings, task)))
    return "".join(parts)


def left_out_rows(recipe: FinetuningRecipe, task: TaskResult) -> dict[str, str]:
    """The rows of each file that were not read as examples; empty where all were."""
    found = [
        f"{recipe.data.sources[key]}: {rows_listed(numbers)} without any field"
        for key, numbers in task.scores[0].get("blank_rows", {}).items()
    ]
    return {"left out": "; ".join(found)} if found else {}


def scores_table(task: TaskResult, split: str) -> Table:
    """A row for each model and gain, a column for each metric, the task's own first."""
    kinds = task.scores[0]["splits"][split]
    metrics = list(next(iter(kinds["models"].values())))
    metrics.sort(key=lambda metric: metric != task.metric)
    rows = [
        (name, [_cell(task, split, kind, name, metric) for metric in metrics])
        for kind in ("models", "gains")
        for name in kinds[kind]
    ]
    return Table([task.label(metric) for metric in metrics], rows)


def _cell(task: TaskResult, split: str, kind: str, name: str, metric: str) -> Cell:
    found, digits = task.found(split, kind, name, metric), task.digits(split, metric)
    if len(found) == 1:
        return _with_interval(found[0], kind, digits)
    values = [each["value"] for each in found]
    spread = f"{shown(min(values), kind, digits)} to {shown(max(values), kind, digits)}"
    return Cell(shown(statistics.median(values), kind, digits), spread)


def _with_interval(found: Mapping[str, float], kind: str, digits: int) -> Cell:
    value, low, high = (shown(found[key], kind, digits) for key in ("value", "low", "high"))
    return Cell(value, f"{low} to {high}")


def seeds_table(recipe: Recipe, task: TaskResult, split: str) -> Table:
    """A row for each model and gain, a column for each seed, by the task's own metric."""
    kinds, digits = task.scores[0]["splits"][split], task.digits(split, task.metric)
    rows = [
        (
            name,
            [
                _with_interval(each, kind, digits)
                for each in task.found(split, kind, name, task.metric)
            ],
        )
        for kind in ("models", "gains")
        for name in kinds[kind]
    ]
    label = task.label(task.metric)
    return Table([f"{label}, seed {seed}" for seed in recipe.seeds], rows)


def costs_table(recipe: Recipe, task: TaskResult) -> Table | None:
    """Parameters, size and speed of each model, with ratios to the teacher where one teaches; None
    where they were not measured."""
    costs = [each["costs"] for each in task.scores if each.get("costs")]
    if not costs:
        return None
    models = recipe.finetuning[task.name].models.values()
    teacher = next((model.teacher for model in models if model.teacher is not None), None)
    rows = []
    for name in costs[0]:
        own = [_median(costs, name, key) for key, _, _ in COSTS]
        base = [
            None if teacher in (None, name) else _median(costs, teacher, key) for key, *_ in COSTS
        ]
        cells = [
            Cell(show(value), ratio=f"{ratio(value / other)} of {teacher}" if other else "")
            for value, other, (_, show, ratio) in zip(own, base, COSTS, strict=True)
        ]
        rows.append((name, cells))
    return Table(["Parameters", "Size on disk", "Speed (forward)"], rows)


COSTS: list[tuple[str, Callable[[float], str], Callable[[float], str]]] = [
    ("parameters", units.count, units.percent),
    ("size_bytes", units.size_bytes, units.percent),
    ("forward_tokens_per_second", units.tokens_per_second, units.times),
]


def _median(costs: Sequence[Mapping[str, Any]], model: str, key: str) -> float:
    return float(statistics.median(each[model][key] for each in costs))


def _series(task: TaskResult, recipe: FinetuningRecipe) -> list[Series]:
    """The loss of the right answers over tokens; a sole term is logged as `loss`."""
    found = []
    for color, model in zip(cycle(COLORS), recipe.models, strict=False):
        terms = recipe.losses.active() if recipe.models[model].teacher else {"hard_target": 1.0}
        key = "loss" if list(terms) == ["hard_target"] else "hard_target"
        for lines in task.metrics:
            own = [line for line in lines if line.get("model") == f"{task.name}-{model}"]
            points = [
                (float(line["tokens"]), float(line[key]))
                for line in own
                if isinstance(line.get(key), (int, float))
            ]
            broken = [float(line["tokens"]) for line in own if line.get(key, 0.0) is None]
            if points or broken:
                found.append(Series(color, points, broken, label=model))
    return found
