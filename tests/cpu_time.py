"""Keeps the fast tests fast: one that uses more CPU time than it may fails.

CPU time of this process and of the processes it waited for, since the wall clock of a busy machine
says nothing about a test. Fixtures count towards the test that first needs them. Markers name the
tests that may take longer.
"""

import os
from collections.abc import Iterator

import pytest

FAST_TEST_SECONDS = 2.0
SLOWER_TIERS = ("e2e", "page", "slow", "gpu")


def cpu_seconds() -> float:
    """CPU time used so far by this process and by its ended children."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    item.stash[STARTED] = cpu_seconds()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    result = yield
    seconds = cpu_seconds() - item.stash[STARTED]
    item.user_properties.append(("cpu_seconds", seconds))
    if seconds > FAST_TEST_SECONDS and not any(map(item.get_closest_marker, SLOWER_TIERS)):
        pytest.fail(
            f"a fast test used {seconds:.1f} s of CPU time, more than {FAST_TEST_SECONDS} s: make "
            "it smaller, or mark it e2e",
            pytrace=False,
        )
    return result


STARTED = pytest.StashKey[float]()
