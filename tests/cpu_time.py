"""Keeps the fast tests fast: a test that exceeds its CPU time fails.

Measured is the CPU time of this process and its finished children, because wall time depends on the
load of the machine. Fixtures of module or session scope are not counted, as several tests share
them. On a CPU slower than `REFERENCE` the limit is longer. Where tests of slower tiers run too,
they share the caches and units of the cores, and the limit is doubled. Tests with a marker of a
slower tier are exempt.
"""

import os
import time
from collections.abc import Iterator

import pytest

FAST_TEST_SECONDS = 2.0
REFERENCE = 0.014  # CPU seconds of `_loop_seconds`: two thirds of an EPYC's (Zen 3, 2021)
SLOWER_TIERS = ("e2e", "page", "slow", "gpu")


def cpu_seconds() -> float:
    """CPU time used so far by this process and its finished children."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _loop_seconds() -> float:
    """CPU seconds of a loop in Python, the fastest of several."""

    def once() -> float:
        started, number = time.process_time(), 0
        for each in range(300_000):
            number += each * each % 7
        return time.process_time() - started

    return min(once() for _ in range(5))


class FastTests:
    """Measures each test, and fails tests of the fast tier that exceed the limit in seconds."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.started = 0.0
        self.shared = 0.0  # spent in fixtures that tests share
        self.nested = 0  # number of shared fixtures being set up

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Iterator[None]:
        self.started, self.shared = cpu_seconds(), 0.0
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef) -> Iterator[None]:
        if fixturedef.scope == "function":
            return (yield)
        started = cpu_seconds()
        self.nested += 1
        try:
            return (yield)
        finally:
            self.nested -= 1
            if not self.nested:
                self.shared += cpu_seconds() - started

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        result = yield
        seconds = cpu_seconds() - self.started - self.shared
        if seconds > self.limit and not any(map(item.get_closest_marker, SLOWER_TIERS)):
            pytest.fail(
                f"a fast test used {seconds:.1f} s of CPU time, more than {self.limit:.1f} s: "
                "make it smaller, or mark it e2e",
                pytrace=False,
            )
        return result


def pytest_configure(config: pytest.Config) -> None:
    is_alone = "not e2e" in config.option.markexpr
    slower = max(1.0, _loop_seconds() / REFERENCE)
    limit = FAST_TEST_SECONDS * slower * (1 if is_alone else 2)
    config.pluginmanager.register(FastTests(limit), "fast-tests")
