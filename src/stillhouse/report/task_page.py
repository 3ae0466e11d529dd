"""The tasks of a run on its report page: each model's scores, what its teacher was worth, how it
learned."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import cycle
from typing import Any

from stillhouse.recipe import FinetuningRecipe, Recipe
from stillhouse.recipe_file import dump_recipe
from stillhouse.report import units
from stillhouse.report.curves import Series, loss_figure
from stillhouse.report.html import definitions, table_html, whole_page
from stillhouse.report.outcome import Outcome, Verdict
from stillhouse.report.table import Cell, Table
from stillhouse.report.tasks import read_scores
from stillhouse.run_folder import RunFolder
from stillhouse.tasks.metrics import format_score, metric_label
from stillhouse.training.metrics import read_metrics

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

    def found(self, split: str, kind: str, name: str, metric: str) -> list[Mapping[str, float]]:
        """For each seed the value and interval of a model, or of a gain."""
        return [each["splits"][split][kind][name][metric] for each in self.scores]


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
    return whole_page(name, "task", outcome_of(tasks), "\n".join(body))


def outcome_of(tasks: Sequence[TaskResult]) -> Outcome:
    """What teachers were worth, by each task's own metric on its first split."""
    sentences, verdicts = [], []
    for task in tasks:
        split = task.splits[0]
        for pair in task.scores[0]["splits"][split]["gains"]:
            gains = task.found(split, "gains", pair, task.metric)
            verdicts.append(_verdict(gains))
            taught, _, alone = pair.partition(" less ")
            middle = statistics.median(gain["value"] for gain in gains)
            sentences.append(
                f"{task.name}, {split}: {taught} scores {units.signed(middle)} "
                f"{metric_label(task.metric)} against {alone}, which had no teacher "
                f"({_certainty(gains)})."
            )
    if not sentences:
        return Outcome("unknown", "No model had a teacher.", ["The scores stand below."])
    titles: dict[Verdict, str] = {
        "better": "The models with a teacher are better: the teacher helped.",
        "worse": "The models with a teacher are worse: the teacher did not help.",
        "unclear": "Whether the teacher helped is not clear.",
        "unknown": "Whether the teacher helped is not known.",
    }
    verdict = verdicts[0] if len(set(verdicts)) == 1 else "unclear"
    return Outcome(verdict, titles[verdict], sentences)


def _verdict(gains: Sequence[Mapping[str, float]]) -> Verdict:
    """Better or worse where most seeds' intervals say so, and none says the contrary."""
    above = sum(gain["low"] > 0 for gain in gains)
    below = sum(gain["high"] < 0 for gain in gains)
    if 2 * above > len(gains) and not below:
        return "better"
    return "worse" if 2 * below > len(gains) and not above else "unclear"


def _certainty(gains: Sequence[Mapping[str, float]]) -> str:
    if len(gains) == 1:
        low, high = (units.signed(gains[0][side]) for side in ("low", "high"))
        return f"95 % interval {low} to {high}"
    clear = sum(gain["low"] > 0 or gain["high"] < 0 for gain in gains)
    return f"median of {len(gains)} seeds; the interval leaves out zero in {clear}"


def task_section(recipe: Recipe, task: TaskResult) -> str:
    """A task's tables, one for each split, and its curves."""
    several = len(task.scores) > 1
    note = (
        f"Median of {len(task.scores)} seeds, with the smallest and the largest value below it. "
        if several
        else "The 95 % interval over the split's examples stands below each value. "
    )
    note += "What a teacher was worth is the difference on the same examples, with its interval."
    parts = [f"<h2>{escape(task.name)}</h2><p class='note'>{escape(note)}</p>"]
    for split in task.splits:
        parts.append(f"<h3>{escape(split)}</h3>{table_html(scores_table(task, split), [])}")
        if several:
            parts.append(table_html(seeds_table(recipe, task, split), []))
    settings = recipe.finetuning[task.name]
    parts.append(loss_figure(f"{task.name}: loss of the right answers", _series(task, settings)))
    facts = {"protocol": task.scores[0]["task"], "data": task.scores[0]["data"]}
    given = {
        key: {name: each for name, each in values.items() if each is not None}
        for key, values in facts.items()
    }
    parts.append(definitions(given))
    return "".join(parts)


def scores_table(task: TaskResult, split: str) -> Table:
    """A row for each model and gain, a column for each metric, the task's own first."""
    kinds = task.scores[0]["splits"][split]
    metrics = list(next(iter(kinds["models"].values())))
    metrics.sort(key=lambda metric: metric != task.metric)
    rows = [
        (name, [_cell(task.found(split, kind, name, metric), kind) for metric in metrics])
        for kind in ("models", "gains")
        for name in kinds[kind]
    ]
    return Table([metric_label(metric) for metric in metrics], rows)


def _cell(found: Sequence[Mapping[str, float]], kind: str) -> Cell:
    values = [each["value"] for each in found]
    if len(values) > 1:
        spread = f"{_shown(min(values), kind)} to {_shown(max(values), kind)}"
        return Cell(_shown(statistics.median(values), kind), spread)
    return _with_interval(found[0], kind)


def _with_interval(found: Mapping[str, float], kind: str) -> Cell:
    interval = f"{_shown(found['low'], kind)} to {_shown(found['high'], kind)}"
    return Cell(_shown(found["value"], kind), interval)


def seeds_table(recipe: Recipe, task: TaskResult, split: str) -> Table:
    """A row for each model and gain, a column for each seed, by the task's own metric."""
    kinds = task.scores[0]["splits"][split]
    rows = [
        (
            name,
            [_with_interval(each, kind) for each in task.found(split, kind, name, task.metric)],
        )
        for kind in ("models", "gains")
        for name in kinds[kind]
    ]
    return Table([f"{metric_label(task.metric)}, seed {seed}" for seed in recipe.seeds], rows)


def _shown(value: float, kind: str) -> str:
    return units.signed(value) if kind == "gains" else format_score(value)


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
