"""Recorded runs of packaged recipes: the commands that record them, cards, and the leaderboard."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cards
import pytest

ROOT = Path(__file__).parents[2]
QUICK = "corpus.validation_fraction=0.002"
SHORT = ("distillation.max_tokens=2048", "evaluation.speed=false", QUICK)


def record(module: str, *arguments: str | Path, folder: Path) -> dict:
    output = folder / f"{module}.json"
    command = [sys.executable, "-m", f"benchmarks.{module}", "quickstart", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(
        [*command, "--output", str(output)], check=True, cwd=folder, env=environment, timeout=500
    )
    return json.loads(output.read_text())


@pytest.mark.e2e
def test_the_card_of_a_recipe_has_what_its_run_measured(tmp_path):
    found = record(
        "recipe_run", "--set", *SHORT, "distillation.control=same_tokens", folder=tmp_path
    )
    card = cards.recipe_card(found, tmp_path / "recipe_run.json")
    evaluation = json.loads((tmp_path / "runs/quickstart/evaluation.json").read_text())
    losses = {name: own["validation_loss"] for name, own in evaluation["models"].items()}
    assert f"{losses['student']:.3f} nats per token, teacher {losses['teacher']:.3f}" in card
    assert f"| {evaluation['intervals']['control']['value']:+.3f} nats" in card
    assert "| `sample`; 2,048 tokens |" in card
    assert "### `quickstart`, seed 0" in card
    del found["command"]  # which names the test's own --output
    assert str(tmp_path) not in json.dumps(found)


@pytest.mark.e2e
def test_the_leaderboard_says_what_was_not_reached(tmp_path, monkeypatch):
    found = record("time_to_teacher", "--tokens", "2048", "1024", "--set", QUICK, folder=tmp_path)
    assert [each["tokens"] for each in found["trials"]] == [1_024, 2_048]
    assert all(each["share"] < 0.95 for each in found["trials"])
    monkeypatch.setattr(cards, "TIMES", tmp_path)
    (line,) = cards.leaderboard().splitlines()[2:]
    assert "| not in 0.0 min | 2,048 |" in line
    found["trials"][-1] |= {"share": 0.96, "seconds": 90}
    (tmp_path / "time_to_teacher.json").write_text(json.dumps(found))
    assert "| 1.5 min | 2,048 | 0.960 |" in cards.leaderboard()


def interval(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.01, "high": value + 0.01}


def test_the_card_of_a_task_has_the_scores_of_its_models(tmp_path):
    training = {"steps": 1_200, "seconds": 90.0}
    task = {
        "data": {"train": "`train.tsv`", "examples": 10_000, "unlabeled": None},
        "trainings": {"distilled": training},
        "metric": "spearman",
        "splits": {
            "sts": {
                "models": {"distilled": {"spearman": interval(0.75)}},
                "differences": {"distilled minus control": {"spearman": interval(0.05)}},
            }
        },
        "costs": {"distilled": {"parameters": 17_400_000}},
    }
    result = {
        "recipe": "minilm",
        "seed": 0,
        "teacher": "minilm",
        "tasks": {"embeddings": task},
        "peak_memory_bytes": 2_500_000_000,
        "machine": {"cores": 2, "processor": "Xeon(R)", "memory_bytes": 25e9},
        "command": "a command",
        "commit": "0123456789abcdef",
    }
    card = cards.recipe_card(result, tmp_path / "minilm.json")
    assert "| embeddings, distilled | 17.4 M parameters; 1,200 steps in 1.5 min |" in card
    assert "| spearman on sts, distilled minus control | 0.050 (0.040 to 0.060) |" in card
    assert "| data | `train.tsv`, 10,000 of its examples |" in card
    assert "| memory | 2.5 GB, peak of the process |" in card
