"""Timing by turns: medians of paired turns, more of them where they vary."""

import itertools
import time

import numpy as np
import pytest

from stillhouse.inference import reference
from stillhouse.inference.reference import (
    MOST_TURNS,
    TURNS,
    median_interval,
    paired_ratio_interval,
    timed_turns,
)


@pytest.mark.parametrize(("size", "places"), [(5, (0, 4)), (9, (1, 7)), (15, (3, 11))])
def test_the_interval_of_a_median_is_that_of_the_sign_test(size, places):
    """The places of Conover's table for 95 %."""
    values = np.random.default_rng(0).permutation(size).astype(float).tolist()
    assert median_interval(values) == places


def test_the_interval_of_a_median_holds_it_about_as_often_as_it_says():
    """Skewed times, as on a busy machine; their true median is 1."""
    draw = np.random.default_rng(1)
    held = 0
    for _ in range(2_000):
        low, high = median_interval(np.exp(draw.normal(0, 1, 15)).tolist())
        held += low <= 1 <= high
    assert 0.95 <= held / 2_000 <= 0.98


def test_what_slows_both_works_of_a_turn_leaves_their_ratio():
    """Turns on a machine whose speed halves now and then."""
    machine = [1.0, 0.5, 1.0, 0.5, 0.5]
    low, high = paired_ratio_interval([2.0 * each for each in machine], machine)
    assert (low, high) == (2.0, 2.0)


@pytest.fixture
def clock(monkeypatch):
    """clock(seconds...): a work that takes these seconds in turn, on a clock of its own."""
    now = [0.0]
    monkeypatch.setattr(reference.time, "perf_counter", lambda: now[0])

    def make(*seconds):
        times = itertools.cycle(seconds)

        def work():
            now[0] += next(times)
            return 1

        return work

    return make


def test_steady_works_take_five_turns(clock):
    works = {"slow": clock(0.2), "fast": clock(0.1)}
    assert timed_turns(works) == {
        "slow": [pytest.approx(5.0)] * TURNS,
        "fast": [pytest.approx(10.0)] * TURNS,
    }


def test_works_that_vary_take_more_turns_up_to_a_bound(clock):
    """Other work beside: the ratio of a turn is 1 or 3."""
    turns = timed_turns({"one": clock(0.3), "other": clock(0.1, 0.3)})
    assert len(turns["one"]) == len(turns["other"]) == MOST_TURNS


def test_short_work_is_repeated_within_its_turn(clock):
    """A turn of a thousandth of a second would measure the clock."""
    calls = []
    work = clock(0.001)
    timed_turns({"short": lambda: calls.append(1) or work()})
    assert len(calls) == 1 + TURNS * 20


def test_a_tick_comes_after_each_work(clock):
    ticks = []
    timed_turns({"a": clock(0.1), "b": clock(0.1)}, lambda: ticks.append(time.monotonic()))
    assert len(ticks) == 2 * (TURNS + 1)
