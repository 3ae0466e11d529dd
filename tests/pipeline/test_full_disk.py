"""A disk that fills up: nothing is lost or half-written, and the same command resumes."""

import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from tests.pipeline.tiny_run import half_written, refused


@contextmanager
def small_files(size: int) -> Iterator[None]:
    """Limits the size of files: every larger write fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


FULL = "The disk is full: writing .* failed .*Free some space and run the same command again"


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("stage", "size", "output"),
    [
        ("prepare", 10_000, "tokens"),
        ("teacher", 30_000, "teacher"),
        ("init", 20_000, "student-init"),
        ("distill", 20_000, "student"),
        ("evaluate", 1_000, "evaluation.json"),
    ],
)
def test_a_full_disk_leaves_no_partial_output(done, stage, size, output):
    """Exit code 6, no partial output, and the same command resumes once there is space."""
    path = done.folder / output
    shutil.rmtree(path) if path.is_dir() else path.with_suffix(".manifest.json").unlink()
    with small_files(size):
        outcome = done.call(stage)
    refused(outcome, 6, FULL)
    assert not half_written(done.folder)
    assert output == "evaluation.json" or not path.exists()
    assert done.call(stage).code == 0
    assert path.exists()


@pytest.mark.e2e
def test_training_resumes_after_the_disk_filled_up(ready):
    """Earlier commits stay intact, and training resumes from there once there is space."""
    metrics = ready.folder / "metrics.jsonl"
    other = '{"model": "other", "step": 1}\n' * 10_000  # larger than any file of a checkpoint
    metrics.write_text(metrics.read_text(encoding="utf-8") + other, encoding="utf-8")
    settings = ("--set", "distillation.checkpoint.every_steps=1")
    with small_files(metrics.stat().st_size + 2_000):  # room for a few steps
        outcome = ready.call("distill", *settings)
    refused(outcome, 6, FULL)
    assert not half_written(ready.folder)
    committed = sorted((ready.folder / "checkpoints/student").glob("step-*"))
    assert len(committed) == 2
    outcome = ready.call("distill", *settings)
    assert outcome.code == 0
    assert f"resuming after step {int(committed[-1].name.removeprefix('step-'))}\n" in outcome.err
