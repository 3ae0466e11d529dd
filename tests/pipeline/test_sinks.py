"""Sinks of metrics: libraries read back what `metrics.jsonl` has, and no sink stops a training.

Each is tested with its own library, offline, by a run that is killed and resumed.
"""

import json
import math
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import get_args

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tests.pipeline.processes import Server, kill, wait_for_step
from tests.pipeline.tiny_run import TinyRun, refused

from stillhouse.extras import EXTRAS
from stillhouse.training.metrics import MetricsFile, metrics_log, read_metrics
from stillhouse.training.settings import SinkName
from stillhouse.training.sinks.registry import SINKS

Steps = dict[int, dict[str, float]]

# Of a step that is repeated after a kill, a sink keeps the first one: other times, equal losses.
TIMES = {"seconds", "tokens_per_second", "mfu"}
RESUMED_AT = 4  # the newest checkpoint of the killed run

READ_MLFLOW = """
import json, sys
from mlflow.tracking import MlflowClient
client = MlflowClient(f"sqlite:///{sys.argv[1]}/mlflow.db")
experiment = client.get_experiment_by_name("run")
run, = client.search_runs([experiment.experiment_id])
found = {
    name: [(each.step, each.value) for each in client.get_metric_history(run.info.run_id, name)]
    for name in run.data.metrics
}
facts = {"name": run.info.run_name, "status": run.info.status, "settings": run.data.params}
print(json.dumps([facts, found]))
"""
READ_TRACKIO = """
import json
from trackio.sqlite_storage import SQLiteStorage
name, = SQLiteStorage.get_runs("run")
lines = SQLiteStorage.get_logs("run", name)
found = {}
for line in lines:
    for key in line.keys() - {"step", "timestamp"}:
        found.setdefault(key, []).append((line["step"], line[key]))
print(json.dumps([{"name": name, "settings": SQLiteStorage.get_run_config("run", name)}, found]))
"""


def read_by(program: str, folder: Path, **environment: str) -> tuple[dict, dict[str, list]]:
    """What a program that uses a library prints: facts, and each metric's steps and values."""
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)],
        capture_output=True,
        text=True,
        env=os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "HF_HUB_OFFLINE": "1"} | environment,
    )
    assert done.returncode == 0, done.stderr
    facts, found = json.loads(done.stdout.splitlines()[-1])
    return facts, found


def from_mlflow(folder: Path) -> tuple[dict, dict[str, list]]:
    return read_by(READ_MLFLOW, folder)


def from_trackio(folder: Path) -> tuple[dict, dict[str, list]]:
    return read_by(READ_TRACKIO, folder, TRACKIO_DIR=str(folder / "trackio"))


def from_tensorboard(folder: Path) -> tuple[dict, dict[str, list]]:
    events = EventAccumulator(str(folder / "tensorboard/student"))
    events.Reload()
    names = events.Tags()["scalars"]
    return {}, {name: [(each.step, each.value) for each in events.Scalars(name)] for name in names}


def from_wandb(folder: Path) -> tuple[dict, dict[str, list]]:
    """The records of every offline file of the one run, in order of time."""
    from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportAttributeAccessIssue]

    files = sorted(folder.glob("wandb/offline-run-*/run-*.wandb"), key=lambda file: file.parent)
    assert len({file.name for file in files}) == 1, "one run in several files"
    found: dict[str, list] = {}
    facts: dict = {}
    for record in (Record.FromString(data) for file in files for data in blocks_of(file)):
        for item in record.history.item:
            name = "/".join(item.nested_key) or item.key
            value = json.loads(item.value_json)
            found.setdefault(name, []).append((record.history.step.num, value))
        if record.run.run_id:
            config = {item.key: json.loads(item.value_json) for item in record.run.config.update}
            facts = {"name": record.run.display_name, "settings": config}
    return facts, {name: values for name, values in found.items() if name[0] != "_"}


def blocks_of(file: Path) -> Iterator[bytes]:
    """The records of a log in LevelDB's format, after a header of 7 bytes: blocks of 32 KiB of
    fragments, each with a checksum, its length and its kind (whole, first, middle, last)."""
    data, place, parts = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = 2**15 - place % 2**15
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        if left < 7 or not kind:
            place += left
            continue
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield parts
            parts = b""


READERS = {
    "tensorboard": from_tensorboard,
    "trackio": from_trackio,
    "wandb": from_wandb,
    "mlflow": from_mlflow,
}


def steps_of(found: Mapping[str, list]) -> Steps:
    """The values by step, after checking that no value of a step occurs twice."""
    steps: Steps = {}
    for name, values in found.items():
        for step, value in values:
            assert name not in steps.setdefault(step, {}), f"{name} of step {step} occurs twice"
            steps[step][name] = value
    return steps


def test_names_in_a_recipe_are_those_of_the_registry():
    """Each sink but TensorBoard, which is always installed, is an extra of its name."""
    assert set(get_args(SinkName)) == set(SINKS) == set(READERS)
    assert set(SINKS) - set(EXTRAS) == {"tensorboard"}


@pytest.mark.e2e
@pytest.mark.parametrize("sink", SINKS)
def test_a_sink_has_every_step_once_after_a_kill(sink, server: Server, ready: TinyRun):
    """Killed in step 7 and resumed from the checkpoint of step 4: one run, 16 steps, the values of
    metrics.jsonl; those of repeated steps but for their times."""
    chosen = f"metrics=[{sink}]"
    (ready.folder / "metrics.jsonl").unlink()
    processes = server.start(ready, chosen)
    wait_for_step(server, ready, 7)
    while not list(ready.folder.glob("checkpoints/student/step-*/manifest.json")):
        time.sleep(0.002)  # it is written in the background
    kill(processes, signal.SIGKILL)
    server.wait()
    repeated = range(RESUMED_AT + 1, len(ready.metrics()) + 1)
    code, said = server.distill(ready, chosen)
    assert code == 0
    assert "no longer sent" not in said
    facts, found = READERS[sink](ready.folder)
    steps = steps_of(found)
    lines = {line.pop("step"): line for line in ready.metrics()}
    assert list(steps) == list(lines) == list(range(1, 17))
    for step, line in lines.items():
        line.pop("model")
        skipped = TIMES if step in repeated else set()
        for name in line.keys() - skipped:
            # TensorBoard stores float32.
            assert steps[step][name] == pytest.approx(line[name], rel=1e-6), (step, name)
    if facts:
        assert facts["name"] == "student"
        settings = facts["settings"]
        assert str(settings["distillation.tokens_per_step"]) == "256"
        assert facts.get("status", "FINISHED") == "FINISHED"


READ_EVERY_RUN = """
import json, sys
from mlflow.tracking import MlflowClient
client = MlflowClient(f"sqlite:///{sys.argv[1]}/mlflow.db")
experiment = client.get_experiment_by_name("run")
found = {
    run.info.run_name: [
        (each.step, each.value) for each in client.get_metric_history(run.info.run_id, "loss")
    ]
    for run in client.search_runs([experiment.experiment_id])
}
print(json.dumps([{}, found]))
"""


@pytest.mark.e2e
def test_every_seed_and_model_is_a_run_of_a_sink(ready: TinyRun):
    """Of one experiment, with the losses of its own metrics.jsonl."""
    seeds = ("--set", "seed=[0,1]", "--set", "distillation.control=same_tokens")
    outcome = ready.call("run", "--until", "distill", *seeds, "--set", "metrics=[mlflow]")
    assert outcome.code == 0, outcome.err
    _, found = read_by(READ_EVERY_RUN, ready.folder)
    expected = {}
    for seed in (0, 1):
        for line in read_metrics(ready.folder / f"seed-{seed}" / "metrics.jsonl"):
            own = expected.setdefault(f"seed-{seed}/{line['model']}", [])
            own.append([line["step"], line["loss"]])
    assert len(expected) == 4
    assert found == expected


@pytest.mark.e2e
@pytest.mark.parametrize("sink", ["wandb", "tensorboard"])
def test_a_sink_that_cannot_write_does_not_stop_a_training(sink, server: Server, ready: TinyRun):
    """One message that names it; the same student as ever, and every step in metrics.jsonl."""
    (ready.folder / "metrics.jsonl").unlink()
    shutil.rmtree(ready.folder / sink, ignore_errors=True)
    (ready.folder / sink).write_text("a file where its folder would be")
    code, said = server.distill(ready, f"metrics=[{sink}]")
    assert code == 0, said
    assert said.count(f"metrics are no longer sent to {sink}") == 1, said
    assert len(ready.losses(16)) == 16


def test_a_value_that_is_not_finite_is_sent(tmp_path):
    """A reader of the sink sees that the step had no value."""
    metrics = MetricsFile(tmp_path / "metrics.jsonl", tmp_path, ["tensorboard"])
    with metrics_log(metrics, "student", 1, print) as write:
        write(1, {"loss": math.nan})
    _, found = from_tensorboard(tmp_path)
    assert math.isnan(found["loss"][0][1])
    assert read_metrics(tmp_path / "metrics.jsonl")[0]["loss"] is None


def test_a_missing_library_is_named_before_training(ready: TinyRun, monkeypatch):
    """With the command that installs it; nothing is trained."""
    monkeypatch.setitem(sys.modules, "wandb", None)
    (ready.folder / "metrics.jsonl").unlink()
    outcome = ready.call("distill", "--set", "metrics=[wandb]")
    refused(outcome, 2, re.escape("metrics: wandb needs wandb. Install the extra with"))
    assert not ready.metrics()


def test_an_unknown_sink_is_refused(ready: TinyRun):
    """The message lists those there are."""
    refused(ready.call("check", "--set", "metrics=[aim]"), 2, "metrics", "tensorboard")


def test_a_sink_named_twice_is_refused(ready: TinyRun):
    refused(ready.call("check", "--set", "metrics=[wandb, wandb]"), 2, "name each once")
