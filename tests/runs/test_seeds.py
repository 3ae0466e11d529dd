"""Results follow the seeds of a recipe: moved by name, never replaced, whatever was done before."""

import json

import pytest

from stillhouse.runs.manifest import Inputs, commit_file, commit_folder
from stillhouse.runs.paths import RunFolder
from stillhouse.runs.seeds import arrange_results


def make(run, seed, name="student"):
    """An output of a seed, and a line of its training."""
    with commit_folder(run.path / name, Inputs("distill", {}, {}, seed)) as folder:
        (folder / "weights").write_text(f"{name} of {seed}")
    with run.metrics.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"model": name, "step": seed}) + "\n")


@pytest.fixture
def run(tmp_path):
    run = RunFolder.at(tmp_path)
    make(run, 0, "teacher")
    make(run, 0)
    make(run, 0, "finetuned/sst2/student")
    (run.checkpoints("teacher") / "step-1").mkdir(parents=True)
    return run


def weights(run):
    return {
        path.parent.relative_to(run.path).as_posix(): path.read_text()
        for path in run.path.rglob("weights")
    }


def test_results_come_back_to_where_they_were(run):
    """From one seed over several to each of them alone, and back; the teacher stays."""
    before, metrics = weights(run), run.metrics.read_text()
    arrange_results(run, [0, 1])
    make(run.for_seed(1), 1)
    assert weights(run) == {
        "teacher": "teacher of 0",
        "seed-0/student": "student of 0",
        "seed-0/finetuned/sst2/student": "finetuned/sst2/student of 0",
        "seed-1/student": "student of 1",
    }
    several = weights(run)
    arrange_results(run, [0])
    assert weights(run) == before | {"seed-1/student": "student of 1"}
    assert run.metrics.read_text() == metrics
    arrange_results(run, [1])
    assert weights(run)["student"] == "student of 1"
    assert weights(run)["seed-0/student"] == "student of 0"
    assert run.checkpoints("teacher").is_dir()
    arrange_results(run, [1, 0])
    assert weights(run) == several
    assert arrange_results(run, [0, 1]) == []


def test_another_seed_alone_keeps_the_first_ones_results(run):
    """From `0` to `1` and back."""
    arrange_results(run, [1])
    make(run, 1)
    arrange_results(run, [0])
    assert weights(run)["student"] == "student of 0"
    assert weights(run)["seed-1/student"] == "student of 1"


def test_a_move_that_was_cut_short_goes_on(run):
    """The student was moved, the rest was not."""
    arrange_results(run, [0, 1])
    (run.path / "student").parent.mkdir(exist_ok=True)
    run.for_seed(0).student.rename(run.student)
    arrange_results(run, [0])
    assert not run.for_seed(0).path.exists()
    assert (run.finetuned("sst2") / "student/weights").is_file()


def test_nothing_is_replaced(run):
    """A folder of the seed that has a student of its own keeps it."""
    make(run.for_seed(0), 0)
    (run.for_seed(0).student / "weights").write_text("another")
    arrange_results(run, [0, 1])
    assert weights(run)["student"] == "student of 0"
    assert weights(run)["seed-0/student"] == "another"


def test_the_summary_of_several_seeds_is_kept_in_replaced(run):
    """The evaluation of the one seed takes its place."""
    arrange_results(run, [0, 1])
    commit_file(run.for_seed(0).evaluation, b"of 0", Inputs("evaluate", {}, {}, 0))
    commit_file(run.evaluation, b"of both", Inputs("summarize", {}, {}))
    arrange_results(run, [0])
    assert run.evaluation.read_bytes() == b"of 0"
    (kept,) = (run.path / "replaced").glob("evaluation.json-*")
    assert kept.read_bytes() == b"of both"
