"""What is printed at the end of a run, on a terminal of 80 columns."""

import json

import pytest
from tests.report.handmade import FIGURES, make_recipe, write_results

from stillhouse.recipe_file import parse_recipe
from stillhouse.report.summary import summary, tasks_summary
from stillhouse.runs.manifest import Inputs, commit_file
from stillhouse.runs.paths import RunFolder

MINUS = "\N{MINUS SIGN}"


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Three seeds with both controls, on 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    run = RunFolder.at(tmp_path)
    found = [run.for_seed(seed) for seed in (7, 8, 9)]
    for seed, each in zip((7, 8, 9), found, strict=True):
        losses = {name: figures[0] + seed / 100 for name, figures in FIGURES.items()}
        write_results(each, losses, seed=seed, width=0.002)
    return run, found


def table_lines(text):
    return [line for line in text.splitlines() if "/tmp" not in line]


def test_summary_rows_fit_in_80_columns(runs):
    run, found = runs
    text = summary(make_recipe(seed="[7, 8, 9]"), run, found)
    assert max(map(len, table_lines(text))) <= 80
    for row in (
        ["params", "5.0", "M", "3.0", "M", "3.0", "M", "3.0", "M"],
        ["forward", "4,120/s", "6,590/s", "6,601/s", "6,580/s"],
        ["generation", "103/s", "165/s", "165/s", "164/s"],
        ["loss", "3.280", "3.410", "3.440", "3.390"],
        ["time", "12.6", "min", "12.6", "min", "12.6", "min"],
        ["seed", "7", "3.270", "3.400", "3.430", "3.380"],
        ["seed", "7", f"{MINUS}0.030", f"({MINUS}0.032", "to", f"{MINUS}0.028)", "+0.020"],
    ):
        assert any(line.split()[: len(row)] == row for line in text.splitlines()), row


def test_seeds_are_listed(runs):
    run, found = runs
    words = " ".join(summary(make_recipe(seed="[7, 8, 9]"), run, found).split())
    assert "(median of 3 seeds (7, 8, 9))" in words
    assert "95 % interval excludes zero in 3" in words


TASK = """
seed: {seeds}
teacher: minilm
finetuning:
  ner:
    task: {{kind: token_classification}}
    data: {{train: t.jsonl, validation: v.jsonl}}
    models:
      teacher: {{start: teacher}}
      student: {{start: teacher, layer_map: 1}}
      distilled: {{start: teacher, layer_map: 1, teacher: teacher}}
"""


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_a_task_names_its_metric_and_what_each_model_costs(tmp_path, monkeypatch, seeds):
    """Every score with as many decimals, every row on one line of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    value = {"value": 1.0, "low": 0.954, "high": 1.0}
    models = {name: {"strict": value} for name in ("teacher", "student", "distilled")}
    gain = {"strict": {"value": 0.0213, "low": -0.0012, "high": 0.04}}
    scores = {
        "schema": 2,
        "metric": "strict",
        "task": {"kind": "token_classification"},
        "splits": {
            "validation": {"models": models, "differences": {"distilled minus student": gain}}
        },
        "costs": {
            name: {"parameters": 22e6, "size_bytes": 9e7, "forward_tokens_per_second": 1e4}
            for name in models
        },
    }
    runs = [RunFolder.at(tmp_path / str(seed)) for seed in seeds]
    for run in runs:
        path = run.finetuned("ner") / "scores.json"
        path.parent.mkdir(parents=True)
        commit_file(path, json.dumps(scores).encode(), Inputs("scores", {}, {}))
    text = tasks_summary(parse_recipe(TASK.format(seeds=list(seeds))), runs)
    assert "ner, validation: F1, strict" in text
    assert max(map(len, table_lines(text))) <= 80
    rows = [line.split() for line in text.splitlines()]
    assert "F1, strict" in text.partition("F1, strict")[2]  # over a column, too
    assert ["teacher", "22.0", "M", "90.0", "MB", "10,000", "tokens/s"] in rows
    interval = [f"{MINUS}0.0012", "to", "+0.0400"]
    if len(seeds) == 1:
        assert ["teacher", "1.0000", "0.9540", "to", "1.0000"] in rows
        assert ["distilled", "minus", "student", "+0.0213", *interval] in rows
    else:
        assert ["teacher", *["1.0000"] * 4] in rows
        assert ["distilled", "minus", "student", "2", "+0.0213", *interval] in rows
