"""The verdict on the teacher's worth, from each seed's student minus its control."""

import pytest
from tests.report.handmade import make_recipe, write_results

from stillhouse.report.outcome import summarize_results
from stillhouse.report.results import Difference, judge, read_results
from stillhouse.runs.paths import RunFolder

MINUS, TIMES = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"


def found(value: float | None, width: float | None = 0.005) -> Difference:
    if value is None:
        return Difference(None)
    ends = (None, None) if width is None else (value - width, value + width)
    return Difference(value, *ends)


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([found(-0.03)], "better"),
        ([found(0.03)], "worse"),
        ([found(0.001)], "unclear"),
        ([found(0.0004, 0.0001)], "unclear"),
        ([found(-0.03), found(-0.01), found(-0.02)], "better"),
        ([found(-0.03), found(-0.01), found(-0.001)], "better"),
        ([found(-0.03), found(-0.001), found(-0.001)], "unclear"),
        ([found(-0.03), found(-0.01), found(0.001)], "unclear"),
        ([found(-0.03), found(-0.01), found(0.02)], "unclear"),
        ([found(-0.03), found(None)], "unknown"),
        ([found(-0.03, None)], "unknown"),
        ([], "unknown"),
    ],
)
def test_verdict_requires_all_seeds_and_most_intervals(differences, verdict):
    """All seeds on one side of zero, and most intervals."""
    assert judge(differences, lower_is_better=True) == verdict
    opposite = {"better": "worse", "worse": "better"}.get(verdict, verdict)
    assert judge(differences, lower_is_better=False) == opposite


def outcome(run, losses, recipe=None, **changes):
    write_results(run, losses, **changes)
    recipe = recipe or make_recipe()
    return summarize_results(recipe, read_results(recipe, [run]))


LOSSES = {"teacher": 3.2, "student": 3.33, "control": 3.36}


@pytest.fixture
def run(tmp_path):
    return RunFolder.at(tmp_path / "run")


def test_interval_that_contains_zero_is_not_significant(run):
    """One seed of few tokens: worse by 0.001 nats shows nothing."""
    told = outcome(run, {**LOSSES, "control": 3.329}, width=0.003)
    assert told.verdict == "unclear"
    assert told.title == "The student and its control do not differ significantly."
    interval = f"+0.001 nats per token, 95 % interval {MINUS}0.002 to +0.004"
    assert f"no significant difference ({interval})" in told.text
    assert "did not help" not in told.title + told.text


@pytest.mark.parametrize(("control", "word"), [(3.36, "lower by 0.030"), (3.30, "higher by 0.030")])
def test_significant_difference_is_reported_with_its_interval(run, control, word):
    told = outcome(run, {**LOSSES, "control": control}, width=0.01)
    assert f"{word} nats per token (95 % interval" in told.text
    assert told.verdict == ("better" if control > 3.33 else "worse")


def test_text_too_short_for_an_interval_is_inconclusive(run):
    told = outcome(run, LOSSES, width=None)
    assert told.verdict == "unknown"
    assert f"the difference of {MINUS}0.030 nats per token is inconclusive" in told.text
    assert "the text is too short" in told.text


def test_evaluation_without_intervals_is_inconclusive(run):
    told = outcome(run, LOSSES, intervals={})
    assert told.verdict == "unknown"
    assert "evaluated without intervals" in told.text


@pytest.mark.parametrize("loss", [None, 2_000.0, 11.9])
def test_diverged_student_is_reported_with_the_learning_rate(run, loss):
    """NaN, a perplexity beyond float64, one of 1e5: never a verdict on the teacher."""
    told = outcome(run, {**LOSSES, "student": loss})
    assert told.title == "The student diverged: it cannot be used."
    assert "Lower distillation.optimizer.learning_rate (now 0.0005)" in told.text


@pytest.mark.parametrize("loss", [None, 11.9])
def test_diverged_control_gives_no_verdict(run, loss):
    """Being better than a control that diverged is no merit of the teacher."""
    told = outcome(run, {**LOSSES, "control": loss})
    assert told.verdict == "unknown"
    assert "the control of the same tokens: training diverged" in told.text
    assert "Lower distillation.optimizer.learning_rate" in told.text
    assert "lower by" not in told.text


def test_diverged_teacher_is_reported_with_its_cause(run):
    told = outcome(run, {**LOSSES, "teacher": None})
    assert (
        "the teacher: its weights are damaged, or it was trained on very different text."
        in told.text
    )


def test_weak_teacher_warning_is_shown(run):
    warning = "The teacher models this text poorly: ... teacher: {start: sample}"
    assert warning in outcome(run, LOSSES, teacher_fit={"warning": warning}).text
    assert "poorly" not in outcome(RunFolder.at(run.path / "x"), LOSSES).text


def speeds(teacher, student, interval):
    def speed(value, ends):
        ratios = {"forward": ends, "generate": None}
        return {"forward_tokens_per_second": value, "ratio_to_first": ratios}

    models = {"teacher": speed(teacher, [1.0, 1.0]), "student": speed(student, interval)}
    return {name: {"parameters": 10, "speed": each} for name, each in models.items()}


@pytest.mark.parametrize(
    ("student", "interval", "shown"),
    [
        (200.0, [1.9, 2.1], f"and 2.00{TIMES} its forward throughput."),
        (
            200.0,
            [1.6, 2.4],
            f"2.00{TIMES} its forward throughput (noisy: 1.60{TIMES} to 2.40{TIMES})",
        ),
        (80.0, [0.7, 0.9], "which is slower"),
    ],
)
def test_noisy_speed_ratio_is_reported_with_its_range(run, student, interval, shown):
    models = speeds(100.0, student, interval)
    told = outcome(run, {"teacher": 3.2, "student": 3.3}, models=models)
    assert shown in told.text


def test_noisy_speed_ratio_below_one_is_not_called_slower(run):
    models = speeds(100.0, 95.0, [0.7, 1.2])
    assert "slower" not in outcome(run, {"teacher": 3.2, "student": 3.3}, models=models).text
