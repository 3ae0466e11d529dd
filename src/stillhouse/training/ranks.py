"""The ranks of a distributed run, how they communicate, and how a signal stops them.

`torchrun` starts them; each runs the same command. Only the first one writes shared files, and the
others wait for it by polling the launcher's store, so that no timeout of a collective applies while
text is prepared for hours. In a single process everything here does nothing.

SIGINT and SIGTERM set a flag that training reads between micro-batches.

Nothing that is sent is ever unpickled: tensors go through collectives, numbers through the store.
"""

import contextlib
import json
import math
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from stillhouse.errors import ResourceError, RunError, StillhouseError, Stopped, TrainingError
from stillhouse.runs.atomic import explained_os_errors
from stillhouse.training.device import pick_device
from stillhouse.wording import first_line

SECONDS_BETWEEN_QUESTIONS = 0.02
LONGEST_COLLECTIVE = timedelta(minutes=30)  # compiling included; saving is waited for elsewhere
LONGEST_LEAVING_SECONDS = 5.0
LAUNCHERS_VARIABLES = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
Result = TypeVar("Result", int, str, None)
LOST = ("Connection closed by peer", "Connection reset", "Broken pipe", "Timed out")


class StopRequest:
    """Within, the first SIGINT or SIGTERM is recorded; a second SIGINT interrupts immediately."""

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.signal_number is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal_number = number


def stopped(number: int, committed: str) -> Stopped:
    """The error that ends a command after a signal; `committed` says what is kept."""
    by = "Interrupted (Ctrl-C)" if number == signal.SIGINT else "Stopped by SIGTERM"
    return Stopped(f"{by}. {committed} Run the same command again to resume.", number)


NEVER = StopRequest()  # receives no signal


class Ranks:
    """This process among the ranks of a run; a single process where `store` is None."""

    def __init__(self, rank: int = 0, size: int = 1, store: Store | None = None) -> None:
        self.rank = rank
        self.size = size
        self._store = store
        self._num_meetings = 0

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def on_rank0(self, work: Callable[[], Result]) -> Result:
        """Run `work` on the first rank while the others wait; all return its result.

        If it fails, the first rank raises the error, and the others exit with its exit code.
        """
        if self._store is None:
            return work()
        key = self._next_key()
        if not self.is_first:
            with lost_ranks_explained():
                _wait_for_key(self._store, key)
                answer = json.loads(self._store.get(key))
            if "failed" in answer:
                raise SystemExit(answer["failed"])
            return answer["done"]
        try:
            with explained_os_errors():
                result = work()
        except BaseException as error:
            code = error.exit_code if isinstance(error, StillhouseError) else 1
            self._store.set(key, json.dumps({"failed": code}))
            raise
        self._store.set(key, json.dumps({"done": result}))
        return result

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self._store is not None:
            key = self._next_key()
            with lost_ranks_explained():
                self._store.add(key, 1)
                self._wait_for(key, self.size)

    def _wait_for(self, key: str, number: int, at_most_seconds: float = math.inf) -> None:
        """Wait until this many ranks have incremented the key."""
        assert self._store is not None
        deadline = time.monotonic() + at_most_seconds
        while self._store.add(key, 0) < number and time.monotonic() < deadline:
            time.sleep(SECONDS_BETWEEN_QUESTIONS)

    def shutdown(self, *, first_reports: bool = False) -> None:
        """Leave the run, the first rank last, since it may host the store.

        Args:
            first_reports: The first rank has yet to report the error that all end with. A launcher
                ends every rank when one has failed, so the others let it exit before them.
        """
        if self._store is None:
            return
        with contextlib.suppress(RuntimeError):  # the store is gone, and the first rank with it
            if self.is_first:
                with StopRequest():  # a launcher ends the others when the first has left
                    self._wait_for("left", self.size - 1, LONGEST_LEAVING_SECONDS)
                return
            self._store.add("left", 1)
            if first_reports:  # the first rank does not count itself: this ends with it, or late
                self._wait_for("left", self.size, LONGEST_LEAVING_SECONDS)

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over the ranks, in place; the result is equal on each to the bit."""
        if self.size > 1:
            with lost_ranks_explained():
                dist.all_reduce(tensor)
        return tensor

    def highest(self, number: int) -> int:
        """The maximum over the ranks; does not synchronize with a GPU."""
        if self.size == 1:
            return number
        found = torch.tensor(number)
        with lost_ranks_explained():
            dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def count(self, name: str, more: int = 0) -> int:
        """Add to a counter that all ranks share, and return it. Thread-safe."""
        if self._store is None:
            return 0
        with lost_ranks_explained():
            return self._store.add(f"count/{name}", more)

    def _next_key(self) -> str:
        self._num_meetings += 1
        return f"meeting/{self._num_meetings}"


ALONE = Ranks()


def _session(store: Store, rank: int, size: int) -> str:
    """A session name that these processes share and no earlier ones had.

    A launcher that restarts its processes may keep its store, with the keys of the previous ones.
    So each rank writes a random number under its rank, and waits until the first rank, which may
    read stale numbers too, has answered the current one.
    """
    if rank == 0:
        name, answered = f"session/{uuid.uuid4().hex}", set()
        while store.add(f"{name}/here", 0) < size - 1:
            for other in range(1, size):
                if store.check([f"hello/{other}"]):
                    number = store.get(f"hello/{other}").decode()
                    if number not in answered:
                        answered.add(number)
                        store.set(f"welcome/{number}", name)
            time.sleep(SECONDS_BETWEEN_QUESTIONS)
        store.set(f"{name}/complete", "yes")
        return name
    number = uuid.uuid4().hex
    store.set(f"hello/{rank}", number)
    _wait_for_key(store, f"welcome/{number}")
    name = store.get(f"welcome/{number}").decode()
    store.add(f"{name}/here", 1)
    _wait_for_key(store, f"{name}/complete")
    return name


def _wait_for_key(store: Store, key: str) -> None:
    while not store.check([key]):
        time.sleep(SECONDS_BETWEEN_QUESTIONS)


def _meet(backend: str) -> Ranks:
    """Rendezvous with the other ranks and initialize the process group.

    Raises:
        TrainingError: another rank was lost meanwhile.
    """
    try:
        store, rank, size = next(rendezvous("env://", timeout=LONGEST_COLLECTIVE))
        ours = PrefixStore(_session(store, rank, size), store)
        group = PrefixStore("group", ours)
        dist.init_process_group(
            backend, store=group, rank=rank, world_size=size, timeout=LONGEST_COLLECTIVE
        )
    except RuntimeError as error:
        raise TrainingError(f"The ranks did not find each other: {first_line(error)}") from error
    return Ranks(rank, size, PrefixStore("meetings", ours))


@contextmanager
def finishing(what: str, ranks: Ranks) -> Iterator[StopRequest]:
    """Catch signals for training to act on; one that arrives too late is raised at the end, when
    `what` is committed.

    Raises:
        Stopped: any rank received a signal.
    """
    with StopRequest() as stop:
        yield stop
        number = ranks.highest(stop.signal_number or 0)
    if number:
        raise stopped(number, f"{what[0].upper()}{what[1:]} is committed.")


@contextmanager
def init_distributed() -> Iterator[Ranks]:
    """The ranks that `torchrun` started; without it, a single process."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks()
        return
    missing = [name for name in LAUNCHERS_VARIABLES if name not in os.environ]
    if missing:
        raise RunError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {', '.join(missing)} are not set. "
            "Start several ranks by torchrun, or unset WORLD_SIZE."
        )
    backend = "gloo"
    if pick_device().type == "cuda":
        number, devices = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if number >= devices:
            raise ResourceError(
                f"Rank {number} of this machine has no GPU of its own: there are {devices}. Give "
                f"torchrun --nproc-per-node {devices}."
            )
        torch.cuda.set_device(number)
        backend = "cpu:gloo,cuda:nccl"
    ranks = _meet(backend)
    try:
        with lost_ranks_explained():  # in every collective, and in leaving the group
            yield ranks
            dist.destroy_process_group()  # not after an error, since other ranks may be gone
    except TrainingError:
        raise  # raised on all ranks, or one is lost: do not wait
    except BaseException as error:
        ranks.shutdown(first_reports=isinstance(error, SystemExit | Stopped))
        raise
    ranks.shutdown()


@contextmanager
def lost_ranks_explained() -> Iterator[None]:
    """Turn a collective that failed because another rank is gone into one clear error.

    Raises:
        TrainingError: another rank was lost.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if not isinstance(error, dist.DistBackendError | dist.DistNetworkError) and not any(
            sign in text for sign in LOST
        ):
            raise
        raise TrainingError(
            "Another rank was lost, so this one cannot continue alone "
            f"({text.partition(chr(10))[0]:.200}). Every committed checkpoint is kept; with "
            "`torchrun --max-restarts N` training begins again from the newest."
        ) from error
