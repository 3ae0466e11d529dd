"""A student with the relation loss, from the command line to its metrics."""

import json
import statistics
from pathlib import Path

import pytest
from tests.pipeline.tiny_run import TinyRun, write_recipe

pytestmark = pytest.mark.e2e

SETTINGS = ["distillation.max_tokens=16384", "distillation.optimizer.learning_rate=3e-3"]


def relation_values(run: TinyRun, *losses: str) -> list[float]:
    """The relation loss at every step of a distillation."""
    settings = [*SETTINGS, f"distillation.losses={{{', '.join(losses)}}}", "student.weights=random"]
    outcome = run.call("run", *(part for key in settings for part in ("--set", key)))
    assert outcome.code == 0, outcome.err
    lines = (run.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [line for line in map(json.loads, lines) if line["model"] == "student"]
    return [line["relation"] if "relation" in line else line["loss"] for line in steps]


def assert_falls(values: list[float]) -> None:
    assert len(values) == 64
    assert all(value > 0 for value in values)
    assert statistics.mean(values[-8:]) < 0.6 * statistics.mean(values[:8])


@pytest.mark.parametrize("others", [(), ("soft_target: {weight: 1}",)], ids=["alone", "with-soft"])
def test_the_relation_loss_falls_for_a_causal_student(ready, others):
    """As the only loss, and beside soft targets."""
    assert_falls(relation_values(ready, "relation: {weight: 1}", *others))


def test_the_relation_loss_falls_for_a_masked_student(tmp_path: Path):
    """BERT to DistilBERT, over predicted rows, with a number of heads that neither model has."""
    recipe = write_recipe(tmp_path)
    text = recipe.read_text(encoding="utf-8")
    for old, new in (
        ("family: gpt2", "family: bert"),
        ("language_modeling: causal", "language_modeling: masked"),
        ("train: byte_bpe", "train: wordpiece"),
    ):
        text = text.replace(old, new)
    recipe.write_text(text, encoding="utf-8")
    term = "relation: {weight: 1, rows: predicted, heads: 8, teacher_layer: 1}"
    soft = "soft_target: {weight: 1, rows: predicted}"
    assert_falls(relation_values(TinyRun(recipe, tmp_path / "run"), term, soft))
