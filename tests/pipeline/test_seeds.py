"""Adding seeds to a run keeps the results of the first seed."""

import json
import shutil

import pytest
from tests.pipeline.tiny_run import call, sha256

pytestmark = pytest.mark.e2e


def test_a_seed_that_has_run_is_not_trained_again(done):
    """From `seed: 0` to `[0, 1]`: its weights are kept, the other seed is trained."""
    before = done.weights()
    outcome = done.call("run", "--set", "seed=[0, 1]")
    assert outcome.code == 0, outcome.err
    weights = done.folder / "seed-0/student/model.safetensors"
    assert not (done.folder / "student").exists()
    assert "the results of seed 0 are now in seed-0/" in outcome.err
    assert "(seed 1): step" in outcome.err
    assert "(seed 0): step" not in outcome.err
    done.copy(done.folder.with_name("copy"))
    weights.parent.rename(done.folder / "student")
    assert done.weights() == before
    summary = json.loads((done.folder / "evaluation.json").read_text(encoding="utf-8"))
    assert summary["seeds"] == [0, 1]


def test_returning_to_one_seed_keeps_its_results(done):
    """From `[0, 1]` to `0` and to `[0, 1]` again nothing is trained, and the report covers one
    seed."""
    before = done.weights()
    lines = (done.folder / "metrics.jsonl").read_text(encoding="utf-8")
    assert done.call("run", "--set", "seed=[0, 1]").code == 0
    outcome = done.call("run", "--set", "seed=0")
    assert outcome.code == 0, outcome.err
    assert ": step" not in outcome.err
    assert "the results of seed 0 are no longer in seed-0/" in outcome.err
    assert done.weights() == before
    assert not (done.folder / "seed-0").exists()
    assert (done.folder / "seed-1/student/model.safetensors").is_file()
    assert (done.folder / "metrics.jsonl").read_text(encoding="utf-8") == lines
    assert json.loads((done.folder / "evaluation.json").read_text(encoding="utf-8"))["seed"] == 0
    assert "seed-1" not in (done.folder / "report.html").read_text(encoding="utf-8")
    assert call("doctor", done.folder).code == 0
    again = done.call("run", "--set", "seed=[0, 1]")
    assert again.code == 0, again.err
    assert ": step" not in again.err
    summary = json.loads((done.folder / "evaluation.json").read_text(encoding="utf-8"))
    assert summary["seeds"] == [0, 1]


def test_a_trained_teacher_does_not_depend_on_the_seeds(initialized, tmp_path):
    """Neither when the first seed is dropped nor for another seed: all have the same teacher."""
    run = initialized.copy(tmp_path / "run")
    teacher = run.folder / "teacher/model.safetensors"
    before = sha256(teacher)
    outcome = run.call("run", "--until", "teacher", "--set", "seed=1")
    assert outcome.code == 0, outcome.err
    assert "teacher: teacher is up to date" in outcome.err
    shutil.rmtree(run.folder)
    assert run.call("run", "--until", "teacher", "--set", "seed=1").code == 0
    assert sha256(teacher) == before
