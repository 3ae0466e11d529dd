"""The process of a sink: `python -m stillhouse.training.sinks.process`.

It reads lines of JSON from stdin: the sink's name, the descriptor of its lock and its `SinkRun`,
then what is logged, step by step, at last whether the training was completed. Where that line is
missing, the training's process was killed; what it had logged is still written.
"""

import fcntl
import json
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

from stillhouse.runs.atomic import write_atomic
from stillhouse.training.metrics import read_metrics
from stillhouse.training.sinks.base import Sink, SinkRun, Values
from stillhouse.training.sinks.registry import open_sink

MOST_AT_ONCE = 200  # steps
NEW_LINE = "\n"

Message = Mapping[str, Any]


def main() -> None:
    """Copy a training's metrics to its sink until stdin ends."""
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to whole groups; stdin says when to end
        signal.signal(number, signal.SIG_IGN)
    first = json.loads(sys.stdin.readline())
    name, lock = first.pop("sink"), first.pop("lock")
    run = SinkRun(**{**first, "metrics": Path(first["metrics"]), "store": Path(first["store"])})
    waiting: SimpleQueue[Message | None] = SimpleQueue()
    # A thread reads, so that the training never waits, and what it logged is here if it is killed.
    Thread(target=_read, args=(waiting,), daemon=True).start()
    # The process of a killed training may still write what it was given, in the same place.
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        _copy(name, run, waiting)
    except Exception as error:
        traceback.print_exc()
        sys.exit(f"{type(error).__name__}: {str(error).partition(NEW_LINE)[0]}")


def _copy(name: str, run: SinkRun, waiting: "SimpleQueue[Message | None]") -> None:
    """Open the sink, write what it lacks and what arrives, and close it."""
    sink = _opened(name, run)
    _write(sink, list(_committed(run, sink.last_step)))
    completed = False
    for messages in _batches(waiting):
        _write(sink, [(each["step"], each["values"]) for each in messages if "step" in each])
        completed = completed or any(each.get("completed") for each in messages)
    sink.close(completed=completed)
    _note(run, name, sink.identifier, sink.last_step)


def _read(waiting: "SimpleQueue[Message | None]") -> None:
    for text in sys.stdin:
        waiting.put(json.loads(text))
    waiting.put(None)


def _batches(waiting: "SimpleQueue[Message | None]") -> Iterator[list[Message]]:
    """All messages that have arrived, again and again until the end."""
    while True:
        batch = [waiting.get()]
        while not waiting.empty():
            batch.append(waiting.get())
        yield [message for message in batch if message is not None]
        if None in batch:
            return


def _opened(name: str, run: SinkRun) -> Sink:
    """The sink, which continues what it was given before."""
    file = _state_file(run, name)
    if run.next_step > 1 and file.exists():
        known = json.loads(file.read_text(encoding="utf-8"))
        # Without a last step the sink's process was killed too.
        last = run.last_written if known["last_step"] is None else known["last_step"]
        run = replace(run, known_id=known["id"], last_written=last)
    sink = open_sink(name, run)
    _note(run, name, sink.identifier, None)
    return sink


def _state_file(run: SinkRun, name: str) -> Path:
    return run.metrics.parent / "sinks" / run.model / f"{name}.json"


def _note(run: SinkRun, name: str, identifier: str, last_step: int | None) -> None:
    """Keep what a resumed training needs; the last step once the sink is closed."""
    state = {"id": identifier, "last_step": last_step}
    write_atomic(_state_file(run, name), json.dumps(state).encode())


def _committed(run: SinkRun, last_step: int) -> Iterator[tuple[int, Values]]:
    """The committed steps after `last_step`."""
    for line in read_metrics(run.metrics, run.model):
        if last_step < line["step"] < run.next_step:
            values = {key: each for key, each in line.items() if key not in ("model", "step")}
            yield line["step"], {k: float("nan") if v is None else v for k, v in values.items()}


def _write(sink: Sink, lines: list[tuple[int, Values]]) -> None:
    """Write those steps that the sink does not have."""
    new = [line for line in lines if line[0] > sink.last_step]
    for first in range(0, len(new), MOST_AT_ONCE):
        sink.log(new[first : first + MOST_AT_ONCE])
    if new:
        sink.last_step = new[-1][0]


if __name__ == "__main__":
    main()
