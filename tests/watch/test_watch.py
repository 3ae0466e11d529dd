"""The live view: a run before it begins, while it runs, when it ended, and when it was killed."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from tests.pipeline.tiny_run import call

from stillhouse.errors import RunError
from stillhouse.runs.paths import RunFolder, locked
from stillhouse.training.progress import QuietReporter
from stillhouse.training.progress_file import ProgressFile, read_progress
from stillhouse.units import TIMES
from stillhouse.watch.page import Watcher
from stillhouse.watch.show import curve, line_of
from stillhouse.watch.state import read_state


def line(model: str, step: int, **values: float | None) -> str:
    speed = {"tokens": 256 * step, "tokens_per_second": 1000.0}
    return json.dumps({"model": model, "step": step, "loss": 9.0, **speed, **values}) + "\n"


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run whose student has taken three steps, its control two."""
    run = RunFolder.at(tmp_path / "some run")
    run.path.mkdir()
    run.recipe.write_text("teacher: sample\n")
    lines = [line("student", step, language_modeling=5.0 - step) for step in (1, 2, 3)]
    lines += [line("control", step, loss=6.0 - step) for step in (1, 2)]
    run.metrics.write_text("".join(lines))
    return run


def test_a_folder_without_a_run_has_not_begun(tmp_path):
    """A watcher may be started first, and waits."""
    state = read_state(tmp_path / "later")
    assert (state.status, state.is_over) == ("not started", False)
    assert not (tmp_path / "later").exists()


def test_a_running_stage_is_named_with_its_steps(run):
    """Of what the pipeline reports: the training, the time left, the losses of both models."""
    progress = ProgressFile(QuietReporter(), run.progress)
    with locked(run), progress.running():
        progress.begin("distill", None)
        progress.start("control (seed 0)", 0, 16)
        progress.step(16, {"loss": 4.0, "tokens_per_second": 1234.5})
        state = read_state(run.path)
        assert state.status == "running"
        text = line_of(state)
    assert text.startswith("Stage distill. control (seed 0): step 16 of 16, 0 s left, 1,234 tokens")
    assert text.endswith("loss: student 2.0000, control 4.0000.")


def test_progress_is_removed_at_the_end(run):
    """Nothing of it stays in a run whose stages are done; without a report it is not finished."""
    with ProgressFile(QuietReporter(), run.progress).running():
        run.progress.write_text("{}")
    assert not run.progress.exists()
    assert read_state(run.path).status == "not running"
    run.report.write_text("<!DOCTYPE html>")
    assert read_state(run.path).status == "finished"


def test_the_message_of_an_error_is_shown(run):
    """Why the last command ended."""
    progress = ProgressFile(QuietReporter(), run.progress)
    progress.begin("evaluate", None)
    with pytest.raises(RunError), progress.running():
        raise RunError("The disk is full.")
    state = read_state(run.path)
    assert state.is_over
    assert state.sentence == "Stage evaluate ended: The disk is full."


def test_a_killed_run_is_told_from_a_running_one(run):
    """progress.json is there in both; the lock is held by the running one alone."""
    ProgressFile(QuietReporter(), run.progress).begin("distill", None)
    state = read_state(run.path)
    assert (state.status, state.is_over) == ("stopped", True)
    assert "was killed" in state.sentence
    with locked(run):
        assert read_state(run.path).status == "running"


def test_a_run_can_begin_while_it_is_watched(run):
    """Asking for the lock does not keep it."""
    with locked(run):
        pass
    for _ in range(20):
        read_state(run.path)
        with locked(run):
            assert read_state(run.path).status == "running"


def test_each_seed_is_a_training_of_its_own(run):
    """The teacher, which seeds share, comes first."""
    run.metrics.write_text(line("teacher", 1))
    for seed in (10, 2):
        metrics = run.for_seed(seed).metrics
        metrics.parent.mkdir()
        metrics.write_text(line("student", seed))
    found = [(each.model, each.seed, each.step) for each in read_state(run.path).trainings]
    assert found == [("teacher", None, 1), ("student", "2", 2), ("student", "10", 10)]


def test_a_line_that_is_being_written_is_left_out(run):
    """The reader may come in the middle of a write."""
    with run.metrics.open("a") as file:
        file.write(line("student", 4)[:-20])
    assert [each.step for each in read_state(run.path).trainings] == [3, 2]


def test_progress_that_is_no_json_is_none(tmp_path):
    path = tmp_path / "progress.json"
    assert read_progress(path) is None
    path.write_text('{"stage": "dis')
    assert read_progress(path) is None


def test_a_full_disk_does_not_stop_a_stage(tmp_path):
    """The folder is missing, which fails like a disk without space."""
    progress = ProgressFile(QuietReporter(), tmp_path / "missing/progress.json")
    with progress.running():
        progress.begin("distill", None)
        progress.say("still here")


def test_the_curve_falls_with_the_loss():
    """High blocks first; a part without a finite value is a cross."""
    assert curve([4.0, 3.0, 2.0, 1.0], width=4) == "█▆▃▁"
    assert curve([2.0, None, 1.0], width=3) == f"█{TIMES}▁"
    assert curve([1.0, 1.0], width=24) == "▁▁"
    assert len(curve([float(n) for n in range(1000)])) == 24


@pytest.fixture
def watcher(run: RunFolder) -> Iterator[Watcher]:
    with Watcher(run.path, 0) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def fetch(watcher: Watcher, path: str, **headers: str) -> str:
    with urlopen(Request(f"{watcher.address}{path}", headers=headers)) as answer:
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
        return answer.read().decode()


def test_the_page_shows_what_the_terminal_does(watcher, run):
    """Steps and losses of each training, and a curve; the news are fetched without a reload."""
    page = fetch(watcher, "")
    assert "some run" in page
    assert "2.0000" in page
    assert '<path class="line student"' in page
    run.metrics.write_text(run.metrics.read_text() + line("student", 4, language_modeling=0.5))
    state = json.loads(fetch(watcher, "state"))
    assert ">4</td>" in state["html"]
    assert state["is_over"]
    assert "fetch(" in fetch(watcher, "watch.js")


def test_the_page_escapes_what_files_say(watcher, run):
    """A model's name or a message cannot bring a script."""
    run.progress.write_text(json.dumps({"stage": "x", "error": "<script>alert(1)</script>"}))
    assert "<script>alert" not in fetch(watcher, "")


@pytest.mark.parametrize(("path", "host", "code"), [("", "evil.example:80", 403), ("etc", "", 404)])
def test_the_page_is_for_this_machine_and_nothing_else(watcher, path, host, code):
    """Another name of this address is refused, as are other files."""
    with pytest.raises(HTTPError) as error:
        fetch(watcher, path, **({"Host": host} if host else {}))
    with error.value as answer:
        assert answer.code == code


def test_a_file_is_no_run(tmp_path):
    (tmp_path / "file").write_text("")
    outcome = call("watch", tmp_path / "file")
    assert outcome.code == 2
    assert re.search(r"is a file\. Give the folder of a run", outcome.err)


def test_a_port_in_use_is_one_message(watcher, run):
    outcome = call("watch", run.path, "--port", watcher.server_port)
    assert outcome.code == 2
    assert f"--port {watcher.server_port} cannot be used" in outcome.err


@pytest.mark.e2e
def test_watching_starts_at_once_without_torch(run):
    """Plain lines where the output is no terminal; under 0.5 s of CPU time, best of three."""
    program = (
        "import os, sys; sys.argv = ['stillhouse', 'watch', sys.argv[1]]\n"
        "from stillhouse.__main__ import _run\n"
        "code = _run()\n"
        "heavy = {'torch', 'transformers', 'numpy', 'tokenizers'} & set(sys.modules)\n"
        "times = os.times()\n"
        "print(times.user + times.system, file=sys.stderr)\n"
        "sys.exit(str(heavy) if heavy else code)"
    )
    command = [sys.executable, "-c", program, str(run.path)]
    runs = [subprocess.run(command, capture_output=True, text=True) for _ in range(3)]
    assert [done.returncode for done in runs] == [0, 0, 0], runs[0].stderr
    assert "\x1b" not in runs[0].stdout
    assert runs[0].stdout.startswith("No command runs here")
    assert min(float(done.stderr) for done in runs) < 0.5
