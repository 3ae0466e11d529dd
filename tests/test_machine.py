"""What the machine is doing, and how training shares it."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from stillhouse import machine
from stillhouse.machine import cores_are_short, cores_of_others, num_cores, sharing_cores

TASKS = Path("/proc/self/task")
needs_tasks = pytest.mark.skipif(not TASKS.exists(), reason="needs Linux")


@pytest.fixture
def two_threads(monkeypatch):
    """Two OpenMP threads, and no setting of the user's."""
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.mark.e2e
def test_other_processes_are_seen():
    """One endless loop for each core leaves no core idle; this process itself does not count."""
    loops = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(num_cores())
    ]
    try:
        assert cores_of_others(threading.Event(), 0.5) > machine.BUSY_CORES
    finally:
        for each in loops:
            each.kill()
            each.wait()


@pytest.mark.parametrize(
    ("others", "threads", "cores", "short"),
    [(0.1, 2, 2, False), (1.0, 2, 2, True), (1.0, 1, 2, False), (60.0, 2, 64, False)],
)
def test_cores_are_short_when_there_are_fewer_than_threads(
    others, threads, cores, short, monkeypatch
):
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert cores_are_short(others, threads) is short


@needs_tasks
def test_sleeping_follows_the_load(two_threads, monkeypatch):
    """Idle pools exist while other work runs, whenever it starts, and end with it."""
    load = [0.0]

    def measured(ended, seconds):
        ended.wait(0.005)
        return load[0]

    def reaches(condition):
        deadline = time.monotonic() + 10
        while not condition(len(list(TASKS.iterdir()))) and time.monotonic() < deadline:
            time.sleep(0.01)
        return condition(len(list(TASKS.iterdir())))

    monkeypatch.setattr(machine, "cores_of_others", measured)
    torch.zeros(2**20).add_(1)
    before = len(list(TASKS.iterdir()))
    with sharing_cores():
        for _ in range(2):
            load[0] = float(os.cpu_count() or 1)
            assert reaches(lambda number: number > before + 1)  # the watcher and pools
            load[0] = 0.0
            assert reaches(lambda number: number == before + 1)
        load[0] = float(os.cpu_count() or 1)
        assert reaches(lambda number: number > before + 1)
    assert reaches(lambda number: number == before)


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"])
def test_the_users_own_policy_comes_first(two_threads, name, monkeypatch):
    monkeypatch.setenv(name, "0")
    before = threading.active_count()
    with sharing_cores():
        assert threading.active_count() == before


SLEEPS = """
import contextlib, resource, time, torch
from stillhouse.machine import openmp_threads_sleep
torch.set_num_threads(2)
x = torch.randn(2**20, generator=torch.Generator().manual_seed(0))
def waits():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw
    for _ in range(500):
        x.add(1)
        x[:1000].sum()
    return resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw - before
def result():
    return [x.softmax(0).sum().item(), (x.view(1024, 1024) @ x.view(1024, 1024)).norm().item()]
waits()
plain = result()
with openmp_threads_sleep():
    assert result() == plain
    found = waits()
print(found)
"""


@needs_tasks
@pytest.mark.e2e
def test_openmp_threads_sleep_at_once_and_results_keep_their_bits():
    """Of 500 parallel regions most are waited for asleep, though libgomp was loaded to spin."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("OMP_")}
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SLEEPS],
        capture_output=True, text=True, check=True, env=environment,
    )  # fmt: skip
    assert int(found.stdout) > 250
