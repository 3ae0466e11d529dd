"""Runs the tasks of cleaning in several processes, by the executors of datatrove.

Contract: each task commits its own output, so one that is repeated does no harm; what datatrove
notes of completed tasks is ignored.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stillhouse.errors import RunError
from stillhouse.extras import require

REPORT_SECONDS = 10.0


class _Task:
    """A task as a step of a datatrove pipeline; it notes in the folder `log` that it is done."""

    def __init__(self, work: Callable[[int], None], log: Path) -> None:
        self._work = work
        self._log = log

    def __call__(self, data: Any, rank: int = 0, world_size: int = 1) -> None:
        self._work(rank)
        (self._log / f"done-{rank}").touch()

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Task":
        return self  # the local executor copies the pipeline for each task


def run_tasks(
    work: Callable[[int], None],
    number: int,
    *,
    executor: str,
    workers: int | None,
    log: Path,
    report: Callable[[int], None],
) -> None:
    """Call `work` with each number below `number`.

    Args:
        work: Is sent to other processes for each task, so it must be small.
        executor: `local` or `ray`.
        workers: Tasks that run at once; by default as many as there are cores.
        log: A folder that all processes can write, for the time of the call.
        report: Called from time to time with the number of tasks that are done.

    Raises:
        StillhouseError: of a task.
    """
    from loguru import logger

    logger.disable("datatrove")
    workers = min(workers or len(os.sched_getaffinity(0)), number)
    log.mkdir(exist_ok=True)
    for old in log.glob("done-*"):
        old.unlink()
    task = _Task(work, log)
    with _reporting(log, report):
        if executor == "ray":
            _run_by_ray(task, number, workers, log)
        else:
            from stillhouse.cleaning.local_executor import LocalExecutor

            LocalExecutor([task], number, workers, str(log), skip_completed=False).run()
    report(number)


def _run_by_ray(task: _Task, number: int, workers: int, log: Path) -> None:
    require("ray", "ray", purpose="cleaning.executor ray")
    import ray
    from datatrove.executor.ray import RayPipelineExecutor

    is_ours = not ray.is_initialized()
    if is_ours:
        ray.init(log_to_driver=False, include_dashboard=False)  # RAY_ADDRESS names a cluster
    try:
        RayPipelineExecutor(
            [task],
            number,
            workers,
            skip_completed=False,
            logging_dir=str(log),
            mem_per_cpu_gb=1,
        ).run()
    finally:
        if is_ours:
            ray.shutdown()
    missing = number - len(list(log.glob("done-*")))
    if missing:
        raise RunError(
            f"{missing} of {number} shards were not cleaned by Ray; the logs of its workers say "
            "why (`ray logs`). Run the same command again; it goes on with these."
        )


@contextmanager
def _reporting(log: Path, report: Callable[[int], None]) -> Iterator[None]:
    """Report the tasks that are done from time to time."""
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(REPORT_SECONDS):
            report(sum(1 for _ in log.glob("done-*")))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        is_over.set()
        watcher.join()
