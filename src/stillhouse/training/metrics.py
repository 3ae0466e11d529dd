"""`metrics.jsonl`: one line per optimizer step, appended and flushed; the same for its sinks.

After a resume the lines of steps that were not committed are removed, so each step occurs once.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stillhouse.runs.atomic import explained_os_errors, write_atomic
from stillhouse.training.sinks.base import SinkRun
from stillhouse.training.sinks.feed import open_feeds


@dataclass(frozen=True)
class MetricsFile:
    """The `metrics.jsonl` of a run or seed, and where else its lines go.

    Attributes:
        run: The run folder.
        sinks: Names of `training.sinks`.
        settings: The recipe's settings by dotted key.
    """

    path: Path
    run: Path
    sinks: Sequence[str] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


def read_metrics(path: Path, model: str | None = None) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`, of one model or of all; an incomplete last line is left out."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if model is None or line["model"] == model:
            lines.append(line)
    return lines


@contextmanager
def metrics_log(
    metrics: MetricsFile, model: str, next_step: int, say: Callable[[str], None]
) -> Iterator[Callable[[int, dict[str, int | float]], None]]:
    """Drop a model's lines from `next_step` on; yields a function that appends a step's values.

    A value that is not finite is written as null and stays visible.

    Args:
        say: Shows the message of a sink that fails.
    """
    path = metrics.path
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = read_metrics(path)
    kept = [line for line in lines if line["model"] != model or line["step"] < next_step]
    with explained_os_errors(path):
        write_atomic(path, "".join(json.dumps(line) + "\n" for line in kept).encode())
    last = max((line["step"] for line in lines if line["model"] == model), default=0)
    feeds = open_feeds(metrics.sinks, _sink_run(metrics, model, next_step, last), say)
    completed = False
    try:
        with path.open("a", encoding="utf-8") as file:

            def write(step: int, values: dict[str, int | float]) -> None:
                finite = {
                    key: each if math.isfinite(each) else None for key, each in values.items()
                }
                with explained_os_errors(path):
                    file.write(json.dumps({"model": model, "step": step, **finite}) + "\n")
                    file.flush()
                for feed in feeds:
                    feed.log(step, values)

            yield write
        completed = True
    finally:
        for feed in feeds:
            feed.close(completed=completed)


def _sink_run(metrics: MetricsFile, model: str, next_step: int, last_written: int) -> SinkRun:
    folder = metrics.path.parent.relative_to(metrics.run)
    return SinkRun(
        project=metrics.run.resolve().name,
        name=(folder / model).as_posix(),
        model=model,
        metrics=metrics.path,
        store=metrics.run,
        settings=metrics.settings,
        next_step=next_step,
        last_written=last_written,
    )
