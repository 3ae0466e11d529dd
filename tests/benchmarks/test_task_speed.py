"""Speed of task models: the first is the reference, every pass is kept."""

import json
import subprocess
import sys

import pytest

from stillhouse.tasks.registry import make_task
from stillhouse.tasks.settings import RegressionTask


@pytest.mark.e2e
def test_models_are_timed_beside_the_first(task_folder, tmp_path):
    """Over the same pairs, each several times."""
    task = make_task(RegressionTask())
    folder = task_folder("bert", task.head, **task.model_settings)
    data, output = tmp_path / "pairs.tsv", tmp_path / "speed.json"
    data.write_text("sentence1\tsentence2\tscore\n" + "the sea\ta wind\t1.5\n" * 8)
    command = [
        sys.executable, "-m", "benchmarks.task_speed", "--task", "stsb", "--data", data,
        "--set", "max_length=32", "--repeats", "3", "--output", output, folder,
    ]  # fmt: skip
    subprocess.run(list(map(str, command)), check=True, capture_output=True, timeout=300)
    (found,) = json.loads(output.read_text())["models"].values()
    assert found["times_as_fast"] == 1
    assert len(found["seconds"]) == 3
    assert all(seconds > 0 for seconds in found["seconds"])
