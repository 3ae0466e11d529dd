"""Downsampling, smoothing, axes and labels of the curves."""

import pytest

from stillhouse.report.curves import NUM_POINTS, figure, smooth, thin
from stillhouse.report.svg import Line, spread_out, ticks


def test_thinning_keeps_ends_and_a_spike_of_one_step():
    points = [(float(step), 1.0) for step in range(10_000)]
    points[4321] = (4321.0, 99.0)
    thinned = thin(points)
    assert len(thinned) <= NUM_POINTS + 2
    assert {points[0], points[4321], points[-1]} <= set(thinned)
    assert thinned == sorted(thinned)


def test_smoothing_leaves_a_straight_line_straight_inside_and_moves_no_point():
    points = [(float(step), 3.0 * step) for step in range(600)]
    smoothed = smooth(points)
    assert [place for place, _ in smoothed] == [place for place, _ in points]
    assert smoothed[300][1] == pytest.approx(900.0)


def test_a_short_run_is_not_smoothed():
    points = [(1.0, 5.0), (2.0, 1.0)]
    assert smooth(points) == points


@pytest.mark.parametrize(
    ("low", "high", "num", "expected"),
    [
        (0.0, 10.0, 5, [0, 2, 4, 6, 8, 10]),
        (3.1, 3.4, 3, [3.1, 3.2, 3.3, 3.4]),
        (-0.06, 0.02, 4, [-0.06, -0.04, -0.02, 0.0, 0.02]),
    ],
)
def test_ticks_are_round_numbers_within_the_range(low, high, num, expected):
    assert ticks(low, high, num) == pytest.approx(expected)


def test_labels_move_apart_and_stay_in_the_frame():
    places = spread_out([100.0, 101.0, 102.0, 200.0], 0, 210, 30)
    assert places == pytest.approx([71.0, 101.0, 131.0, 200.0])
    assert spread_out([205.0, 206.0], 0, 210, 30) == pytest.approx([180.0, 210.0])


def drawn(*lines):
    """The labels beside the curves of a figure with their values, and its caption."""
    found = figure("Loss", lines)
    assert found is not None
    return [(line.label, line.value) for _, line in found.chart.labels()], found.caption


def test_a_training_whose_loss_is_never_finite_is_in_the_caption_alone():
    labels, caption = drawn(Line("student", "Student", [], [1.0, 2.0]))
    assert labels == []
    assert caption.startswith("Student: 2 steps without a finite value")


def test_a_label_is_at_the_first_seed_with_a_curve():
    """Where the first seed diverged; the value is that of the one seed that has one."""
    diverged, one = Line("student", "Student", [], [1.0]), Line("student", "Student", [(1.0, 2.5)])
    assert drawn(diverged, one)[0] == [("Student", "2.5")]
    assert drawn(diverged, one, one)[0] == [("Student", "")]
