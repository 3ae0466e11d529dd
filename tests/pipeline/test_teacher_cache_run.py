"""A student of a cached teacher: written once, verified, resumed, equivalent to a live teacher."""

import json
import os
import shutil
import signal

import numpy as np
import pytest
from tests.pipeline.tiny_run import TinyRun, sha256

from stillhouse.runs.manifest import fingerprint, read_manifest

pytestmark = pytest.mark.e2e

CACHE = ("--set", "distillation.teacher_outputs={cache: sampled, size: 16}")
WHOLE = ("--set", "distillation.teacher_outputs={cache: top_k, size: 320}")
SOFT = ("--set", "distillation.losses.hidden_cosine.weight=0")


def losses(run: TinyRun) -> list[float]:
    return [line["loss"] for line in run.metrics()]


@pytest.mark.law("cache")
def test_a_cache_of_the_whole_vocabulary_equals_the_live_teacher(ready, tmp_path):
    """Without truncation, training follows the live teacher's to float16 precision."""
    live = ready.copy(tmp_path / "live")
    assert live.call("distill", *SOFT).code == 0
    outcome = ready.call("distill", *SOFT, *WHOLE)
    assert outcome.code == 0, outcome.err
    assert "from the live teacher" in outcome.err
    np.testing.assert_allclose(losses(ready), losses(live), rtol=2e-3)


def test_the_cache_is_written_once_for_every_student(ready):
    """A second student with another loss weight reads the cache of the first."""
    assert ready.call("distill", *CACHE).code == 0
    before = read_manifest(ready.folder / "teacher-cache")
    outcome = ready.call("distill", *CACHE, "--set", "distillation.losses.soft_target.weight=1")
    assert outcome.code == 0, outcome.err
    assert "teacher-cache is up to date" in outcome.err
    assert read_manifest(ready.folder / "teacher-cache") == before
    facts = json.loads((ready.folder / "student/manifest.json").read_text())["facts"]
    assert before is not None
    assert facts["training"]["teacher_cache_seconds"] == before.seconds > 0


def test_another_temperature_rewrites_the_cache(ready):
    """The stored tokens depend on the temperature; the log says that the cache is rewritten."""
    assert ready.call("distill", *CACHE).code == 0
    outcome = ready.call("distill", *CACHE, "--set", "distillation.temperature=2")
    assert outcome.code == 0, outcome.err
    assert "temperature: 1.0 -> 2.0" in outcome.err
    assert list((ready.folder / "replaced").glob("teacher-cache-*"))


def test_writing_a_cache_resumes(ready, monkeypatch):
    """Committed parts are kept; the finished cache equals one written without interruption."""
    monkeypatch.setattr("stillhouse.distillation.cache.TOKENS_PER_PART", 1024)
    assert ready.call("distill", *CACHE).code == 0
    cache = ready.folder / "teacher-cache"
    whole = {path.relative_to(cache): sha256(path) for path in cache.rglob("*.bin")}
    kept = (cache / "part-00000/ids.bin").stat().st_mtime_ns
    assert len(list(cache.glob("part-*"))) > 2
    (cache / "manifest.json").unlink()  # as if it had been killed before the last part
    shutil.rmtree(cache / "part-00001")
    damaged = cache / "part-00002/weights.bin"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\x7f")
    shutil.rmtree(ready.folder / "student")
    outcome = ready.call("distill", *CACHE)
    assert outcome.code == 0, outcome.err
    assert "weights.bin is damaged" in outcome.err
    assert {path.relative_to(cache): sha256(path) for path in cache.rglob("*.bin")} == whole
    assert (cache / "part-00000/ids.bin").stat().st_mtime_ns == kept


def test_interrupting_the_cache_keeps_its_parts(ready, monkeypatch):
    """SIGINT exits with 130 and reports what is kept; the same command resumes."""
    monkeypatch.setattr("stillhouse.distillation.cache.TOKENS_PER_PART", 1024)
    written = []

    def interrupt(folder, *arguments):
        written.append(folder)
        os.kill(os.getpid(), signal.SIGINT)
        return write(folder, *arguments)

    from stillhouse.distillation import cache

    write = cache.write_rows
    monkeypatch.setattr(cache, "write_rows", interrupt)
    outcome = ready.call("distill", *CACHE)
    assert outcome.code == 130
    assert "1 of" in outcome.err
    assert len(list((ready.folder / "teacher-cache").glob("part-*"))) == 1
    monkeypatch.setattr(cache, "write_rows", write)
    assert ready.call("distill", *CACHE).code == 0


def test_a_cache_of_another_teacher_is_rejected(ready):
    """Content that does not match the manifest's teacher is detected by running the teacher."""
    sharp = (*CACHE, "--set", "distillation.temperature=0.05")  # this teacher is nearly uniform
    assert ready.call("distill", *sharp).code == 0
    manifest_file = ready.folder / "teacher-cache/part-00000/manifest.json"
    ids = ready.folder / "teacher-cache/part-00000/ids.bin"
    changed = (np.fromfile(ids, "<u2") + 7) % 320
    changed.astype("<u2").tofile(ids)
    shutil.rmtree(ready.folder / "student")
    digest = sha256(ids)
    for file in (manifest_file, ready.folder / "teacher-cache/manifest.json"):
        manifest = json.loads(file.read_text())
        del manifest["digest"]
        for name, facts in manifest["files"].items():
            if name.endswith("ids.bin"):
                facts["sha256"] = digest
        file.write_text(json.dumps({**manifest, "digest": fingerprint(manifest)}))
    outcome = ready.call("distill", *sharp)
    assert outcome.code == 5
    assert "does not hold the outputs of this teacher" in outcome.err


def test_the_sample_of_a_row_is_independent_of_batching(ready, tmp_path):
    """Neither the micro-batch nor the part changes what is kept."""
    small = TinyRun(ready.recipe, tmp_path / "small")
    shutil.copytree(ready.folder, small.folder)
    one = ("--set", "distillation.micro_batch_tokens=32")
    assert ready.call("distill", *CACHE).code == 0
    assert small.call("distill", *CACHE, *one).code == 0
    ids = [
        np.fromfile(run.folder / "teacher-cache/part-00000/ids.bin", "<u2")
        for run in (ready, small)
    ]
    assert (ids[0] == ids[1]).mean() > 0.99  # up to rounding
    rows = ids[0].reshape(-1, 16)
    assert len(np.unique(rows, axis=0)) > 0.5 * len(rows)


@pytest.mark.parametrize("size", [1, 4])
def test_a_small_noisy_sample_is_accepted(ready, size):
    """The check knows the range of sampling error, under any seed."""
    cache = ("--set", f"distillation.teacher_outputs={{cache: sampled, size: {size}}}")
    for seed in range(3):
        outcome = ready.call("run", *cache, "--until", "distill", "--set", f"seed={seed}")
        assert outcome.code == 0, outcome.err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("distillation.losses.jsd={weight: 1.0}", "losses.jsd needs the teacher's whole"),
        ("distillation.teacher_outputs.size=0", "size"),
        ("distillation.teacher_outputs.cache=all", "cache"),
    ],
)
def test_unsupported_settings_with_a_cache_are_rejected(ready, override, message):
    outcome = ready.call("distill", *CACHE, "--set", override)
    assert outcome.code == 2
    assert message in outcome.err
