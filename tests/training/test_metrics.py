"""metrics.jsonl: one line a step, whatever happened in between."""

import json
import math

import pytest

from stillhouse.training.metrics import MetricsFile, metrics_log, read_metrics


def write(path, model, steps, *, next_step=1, **values):
    with metrics_log(MetricsFile(path, path.parent), model, next_step, print) as write_step:
        for step in steps:
            write_step(step, {"loss": step / 2, **values})


def steps_of(path, model):
    return [line["step"] for line in read_metrics(path, model)]


def test_a_line_is_on_disk_as_soon_as_it_is_written(tmp_path):
    """A reader beside a running training sees each step at once, with model, step and values."""
    path = tmp_path / "metrics.jsonl"
    with metrics_log(MetricsFile(path, tmp_path), "student", 1, print) as write_step:
        write_step(1, {"loss": 2.5, "tokens": 256})
        expected = {"model": "student", "step": 1, "loss": 2.5, "tokens": 256}
        assert json.loads(path.read_text(encoding="utf-8")) == expected


def test_steps_that_were_not_committed_are_dropped(tmp_path):
    """After a resume every step appears once; the other models' lines stay."""
    path = tmp_path / "metrics.jsonl"
    write(path, "teacher", range(1, 4))
    write(path, "student", range(1, 6))
    write(path, "student", range(4, 7), next_step=4)
    assert steps_of(path, "student") == [1, 2, 3, 4, 5, 6]
    assert steps_of(path, "teacher") == [1, 2, 3]


def test_a_line_that_was_cut_short_is_no_line(tmp_path):
    """What a kill left of the last line is dropped, and does not spoil the next one."""
    path = tmp_path / "metrics.jsonl"
    write(path, "student", [1, 2])
    path.write_text(path.read_text()[:-9])
    assert steps_of(path, "student") == [1]
    write(path, "student", [2, 3], next_step=2)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_null(tmp_path, value):
    """The file stays plain JSON, and the step stays visible."""
    path = tmp_path / "metrics.jsonl"
    write(path, "student", [1], grad_norm=value)
    assert '"grad_norm": null' in path.read_text(encoding="utf-8")


def test_no_file_is_no_line(tmp_path):
    """A run that has not trained has no metrics."""
    assert read_metrics(tmp_path / "metrics.jsonl") == []
