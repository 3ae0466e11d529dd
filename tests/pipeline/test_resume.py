"""Training that is stopped, killed or damaged ends bit-identical to uninterrupted training."""

import json
import signal
from pathlib import Path

import pytest
from tests.pipeline.processes import Server, kill, wait_for_step
from tests.pipeline.tiny_run import TinyRun

pytestmark = pytest.mark.e2e

STEPS = 60
LONGER = (f"distillation.max_tokens={STEPS * 256}", "distillation.micro_batch_tokens=128")
EVERY_STEP = "distillation.checkpoint.every_steps=1"


@pytest.fixture(scope="module")
def uninterrupted(
    server: Server, initialized: TinyRun, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, list[float]]:
    """The SHA-256 of the final weights, and the losses."""
    run = initialized.copy(tmp_path_factory.mktemp("uninterrupted") / "run")
    code, log = server.distill(run, *LONGER, EVERY_STEP)
    assert code == 0, log
    return result(run)


def result(run: TinyRun) -> tuple[str, list[float]]:
    return run.weights(), run.losses(STEPS)


def interrupted(server: Server, run: TinyRun, *, step: int, number: int = signal.SIGTERM) -> str:
    """Distil, and stop by a signal after `step`; returns the output."""
    processes = server.start(run, *LONGER)
    wait_for_step(server, run, step)
    kill(processes, number)
    assert server.wait() == [128 + number]
    return server.log.read_text()


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.law("resume")
def test_stopped_training_resumes_to_the_same_weights(server, ready, uninterrupted, number):
    """A signal commits the last completed step; the same command resumes from there."""
    said = interrupted(server, ready, step=7, number=number)
    committed = json.loads((ready.checkpoints()[-1] / "state.json").read_text())["step"]
    assert 7 <= committed < STEPS
    by = "Interrupted (Ctrl-C)" if number == signal.SIGINT else "Stopped by SIGTERM"
    assert f"{by}. Step {committed} of {STEPS} of student (seed 0) is committed" in said
    assert "Traceback" not in said
    code, log = server.distill(ready, *LONGER)
    assert code == 0
    assert f"student (seed 0): resuming after step {committed}" in log
    assert result(ready) == uninterrupted
    assert not (ready.folder / "checkpoints/student").exists()


@pytest.mark.parametrize(
    "file",
    ["model-00001-of-00001.safetensors", "optimizer-00001-of-00001.safetensors", "state.json"],
)
def test_a_damaged_checkpoint_is_skipped(server, ready, uninterrupted, file):
    """One flipped bit: training falls back to the previous checkpoint and ends the same."""
    interrupted(server, ready, step=9)
    before, newest = ready.checkpoints()[-2:]
    flip_a_bit(newest / file)
    code, log = server.distill(ready, *LONGER)
    assert code == 0
    assert f"Checkpoint {newest} is damaged and was moved to damaged-{newest.name}" in log
    assert f"resuming after step {int(before.name.removeprefix('step-'))}\n" in log
    assert result(ready) == uninterrupted


def test_training_without_an_intact_checkpoint_needs_overwrite(server, ready, uninterrupted):
    """It never restarts by itself, not at the second attempt either."""
    interrupted(server, ready, step=9)
    for checkpoint in ready.checkpoints():
        (checkpoint / "optimizer-00001-of-00001.safetensors").unlink()
    for _ in range(2):
        code, log = server.distill(ready, *LONGER)
        assert code == 5
        assert "No checkpoint in" in log
        assert "name the stage in --overwrite" in log
    settings = [part for key in LONGER for part in ("--set", key)]
    assert ready.call("distill", "--overwrite", "distill", *settings).code == 0
    assert result(ready) == uninterrupted


def test_resuming_under_a_changed_recipe_is_rejected(server, ready):
    """The message names the key; how often to commit may change."""
    interrupted(server, ready, step=5)
    code, log = server.distill(ready, *LONGER, "distillation.temperature=2")
    assert code == 5
    assert "was written under another recipe (distillation.temperature: 1.0 -> 2.0)" in log
    code, log = server.distill(ready, *LONGER, EVERY_STEP)
    assert code == 0
    assert "resuming after step" in log


def test_leftovers_of_a_killed_stage_are_removed(ready):
    """The temporary folder of a killed process is removed when the stage runs again."""
    leftover = ready.folder / ".student.tmp-4194304"
    leftover.mkdir()
    (leftover / "model.safetensors").write_bytes(b"half")
    assert ready.call("distill").code == 0
    assert not leftover.exists()
    assert (ready.folder / "student/model.safetensors").is_file()
