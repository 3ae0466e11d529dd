"""Commands in separate processes, started quickly and on any number of ranks.

A server process imports everything once; each command then runs in forks of it.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.pipeline.tiny_run import TinyRun

import stillhouse

# Answers each line of JSON on stdin by child processes, one a rank, that run its command line.
# Prints their ids, then their exit codes.
SERVER = """
import json, os, sys
import stillhouse.pipeline, stillhouse.training.parallel, torch.utils.tensorboard
from stillhouse.__main__ import main
for line in sys.stdin:
    request = json.loads(line)
    children = []
    for rank, environment in enumerate(request["ranks"]):
        child = os.fork()
        if not child:
            log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1), os.dup2(log, 2)
            os.environ.update(environment)
            sys.argv = request["arguments"]
            exec(request["inject"].get(str(rank), ""), globals())
            try:
                main()
            except SystemExit as stop:
                sys.stdout.flush(), sys.stderr.flush()
                os._exit(stop.code)
        children.append(child)
    print(*children, flush=True)
    codes = {}
    while len(codes) < len(children):
        child, status = os.wait()
        codes[child] = os.waitstatus_to_exitcode(status)
        if codes[child]:  # what torchrun does when a rank is lost
            for other in set(children) - set(codes):
                os.kill(other, 15)
    print(*(codes[child] for child in children), flush=True)
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """Starts commands in separate processes."""

    def __init__(self, folder: Path) -> None:
        source = str(Path(stillhouse.__file__).parents[1])
        ours = str(Path(__file__).parents[2])
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{source}:{ours}"}
        environment["TORCH_CPP_LOG_LEVEL"] = "ERROR"  # as the program itself sets it
        self.log = folder / "log.txt"
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=folder,
        )

    def start(
        self,
        run: TinyRun,
        *overrides: str,
        ranks: int = 1,
        command: str = "distill",
        inject: Mapping[int, str] | None = None,
    ) -> list[int]:
        """Start a command; returns the process ids. `inject` is code that a rank runs first."""
        arguments = ["stillhouse", command, str(run.recipe), "--run-dir", str(run.folder)]
        arguments += [part for key in overrides for part in ("--set", key)]
        common = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
            "WORLD_SIZE": str(ranks),
        }
        environments = [
            {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)
        ]
        self.log.write_text("")
        request = {"arguments": arguments, "log": str(self.log), "ranks": environments}
        request["inject"] = inject or {}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self._numbers()

    def wait(self) -> list[int]:
        """Exit codes of the command that was started last; negative for a signal."""
        return self._numbers()

    def distill(self, run: TinyRun, *overrides: str, ranks: int = 1) -> tuple[int, str]:
        """Distil to the end; the highest exit code, and everything that was printed."""
        self.start(run, *overrides, ranks=ranks)
        return max(self.wait(), key=abs), self.log.read_text()

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.process.stdout.close()

    def _numbers(self) -> list[int]:
        assert self.process.stdout is not None
        return [int(text) for text in self.process.stdout.readline().split()]


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    try:
        yield server
    finally:
        server.close()


def wait_for_step(server: Server, run: TinyRun, step: int) -> None:
    """Until the run's metrics contain this step."""
    deadline = time.monotonic() + 120
    while len(run.metrics()) < step:
        assert time.monotonic() < deadline, server.log.read_text()
        time.sleep(0.002)


def kill(processes: list[int], number: int) -> None:
    """Send a signal to the processes that still run."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)


STOPPED = 128 + signal.SIGTERM
