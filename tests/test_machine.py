"""What the machine is doing, and how training shares it."""

import subprocess
import sys

import pytest

from stillhouse import machine
from stillhouse.machine import busy_cores, num_cores, yield_beside_other_work


@pytest.mark.e2e
def test_other_processes_are_seen():
    """One endless loop for each core leaves no core idle."""
    loops = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(num_cores())
    ]
    try:
        assert busy_cores(0.5) > machine.BUSY_CORES
    finally:
        for each in loops:
            each.kill()
            each.wait()


@pytest.mark.parametrize(("busy", "policy"), [(1.0, "passive"), (0.1, None)])
def test_threads_sleep_beside_other_work_alone(busy, policy, monkeypatch):
    """On idle cores OpenMP's own default, which is faster there."""
    monkeypatch.setenv("OMP_WAIT_POLICY", "")  # so that it is put back
    monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setattr(machine, "busy_cores", lambda: busy)
    yield_beside_other_work()
    assert machine.os.environ.get("OMP_WAIT_POLICY") == policy


def test_the_users_own_policy_comes_first(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    monkeypatch.setattr(machine, "busy_cores", lambda: 2.0)
    yield_beside_other_work()
    assert machine.os.environ["OMP_WAIT_POLICY"] == "active"
