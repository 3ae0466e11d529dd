"""The macro scores of GLUE in a run's summary: from what is written for each task and seed."""

import json

import pytest

from stillhouse.errors import RunError
from stillhouse.recipe_file import load_recipe
from stillhouse.report.tasks import glue_lines, read_tasks
from stillhouse.runs.manifest import Inputs, commit_file
from stillhouse.runs.paths import RunFolder
from stillhouse.tasks.metrics import GLUE


@pytest.fixture
def runs(tmp_path):
    """Two seeds of the packaged recipe; a task's score is its place, the second seed's one more."""

    def scores(place, seed, splits):
        value = {GLUE[list(GLUE)[place]]: {"value": (place + seed) / 100}}
        found = {split: {"models": {"model": value}, "differences": {}} for split in splits}
        return {"schema": 2, "metric": GLUE[list(GLUE)[place]], "splits": found}

    found = []
    for seed in (0, 1):
        run = RunFolder.at(tmp_path / f"seed-{seed}")
        for place, task in enumerate(GLUE):
            splits = ("matched", "mismatched") if task == "mnli" else ("validation",)
            path = run.finetuned(task) / "scores.json"
            path.parent.mkdir(parents=True)
            content = json.dumps(scores(place, seed, splits)).encode()
            commit_file(path, content, Inputs("scores", {}, {}))
        found.append(run)
    return found


def test_macro_scores_are_means_of_the_tasks_medians(runs):
    """With WNLI and without, in percent; none where a task is missing."""
    _, recipe = load_recipe("glue")
    medians = [place + 0.5 for place in range(len(GLUE))]
    without = [value for value, task in zip(medians, GLUE, strict=True) if task != "wnli"]
    mean, mean_without = sum(medians) / 9, sum(without) / 8
    assert glue_lines(recipe, read_tasks(recipe, runs)) == [
        f"GLUE, model: {mean_without:.1f} without WNLI, {mean:.1f} with it"
    ]
    fewer = {name: task for name, task in recipe.finetuning.items() if name != "rte"}
    recipe = recipe.model_copy(update={"finetuning": fewer})
    assert glue_lines(recipe, read_tasks(recipe, runs)) == []


def test_scores_of_another_schema_are_an_error(runs):
    """The message names the command that writes them again."""
    path = runs[0].finetuned("cola") / "scores.json"
    path.unlink()
    commit_file(path, b'{"schema": 1}', Inputs("scores", {}, {}))
    _, recipe = load_recipe("glue")
    with pytest.raises(RunError, match=r"scores.json has schema 1; .*run `stillhouse finetune`"):
        read_tasks(recipe, runs)
