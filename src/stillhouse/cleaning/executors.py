"""Runs tasks in several processes: of this machine, or of a Ray cluster.

Contract: each task commits its own output, so one that is repeated does no harm. The processes are
kept from task to task. One that is killed is noticed, and none outlives the one that started it.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context

from stillhouse.errors import ResourceError

REPORT_SECONDS = 10.0
WATCH_SECONDS = 0.5

ShardWork = Callable[[int], None]


def run_tasks(
    work: ShardWork,
    number: int,
    *,
    executor: str,
    workers: int | None,
    report: Callable[[int], None],
) -> None:
    """Call `work` with each number below `number`.

    Args:
        work: Is sent to other processes for each task, so it must be small.
        executor: `local` or `ray`.
        workers: Processes; by default as many as there are cores.
        report: Called from time to time, and at the end, with the number of tasks that are done.

    Raises:
        StillhouseError: of a task; the others that run are finished, and no more are started.
        ResourceError: a process was killed.
    """
    workers = min(workers or len(os.sched_getaffinity(0)), number)
    last = time.monotonic()
    by_ray = executor == "ray"
    results = _by_ray(work, number, workers) if by_ray else _by_processes(work, number, workers)
    for done, _ in enumerate(results, start=1):
        if time.monotonic() - last >= REPORT_SECONDS or done == number:
            report(done)
            last = time.monotonic()


def _by_processes(work: ShardWork, number: int, workers: int) -> Iterator[None]:
    if workers == 1:
        yield from map(work, range(number))
        return
    # A fork would copy locks that threads of this process hold.
    context = get_context("forkserver")
    pool = ProcessPoolExecutor(workers, context, _begin_worker, (os.getpid(),))
    try:
        for future in as_completed([pool.submit(work, task) for task in range(number)]):
            yield future.result()
    except BrokenProcessPool as error:
        raise _killed() from error
    finally:
        pool.shutdown(cancel_futures=True)


def _begin_worker(parent: int) -> None:
    """End with the process that started this one, so as not to write what its next run writes, and
    at once when the user interrupts it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)

    def watch() -> None:
        while _is_alive(parent):
            time.sleep(WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def _by_ray(work: ShardWork, number: int, workers: int) -> Iterator[None]:
    from ray.exceptions import RayActorError, WorkerCrashedError
    from ray.util.multiprocessing import Pool

    pool = Pool(workers)
    try:
        yield from pool.imap_unordered(work, range(number), chunksize=1)
    except (RayActorError, WorkerCrashedError) as error:
        raise _killed() from error
    finally:
        pool.terminate()


def _killed() -> ResourceError:
    return ResourceError(
        "A process that cleaned a shard was killed, probably since memory ran out. The shards that "
        "are done are kept. Run the same command again, with fewer cleaning.workers or a smaller "
        "cleaning.shard_bytes."
    )


@contextmanager
def cluster(executor: str) -> Iterator[None]:
    """Connect to the Ray cluster that RAY_ADDRESS names, or start one on this machine, where the
    executor is `ray`."""
    if executor != "ray":
        yield
        return
    import ray

    is_ours = not ray.is_initialized()
    if is_ours:
        ray.init(log_to_driver=False, include_dashboard=False, logging_level=logging.ERROR)
    try:
        yield
    finally:
        if is_ours:
            ray.shutdown()
