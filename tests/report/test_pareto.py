"""Quality against size and speed, and agreement by frequency and position."""

from itertools import pairwise

from tests.report.handmade import make_recipe

from stillhouse.report.agreement import agreement_tables
from stillhouse.report.pareto import pareto_charts
from stillhouse.report.results import SeedResult
from stillhouse.report.svg import Dot, Scatter
from stillhouse.runs.manifest import Inputs, commit_folder
from stillhouse.runs.paths import RunFolder


def result_of(models: dict, tmp_path) -> SeedResult:
    return SeedResult(0, RunFolder.at(tmp_path), {"models": models}, [])


def entry(parameters: int, perplexity: float | None, speed: float | None) -> dict:
    return {
        "parameters": parameters,
        "perplexity": {"token": perplexity},
        "speed": {"forward_tokens_per_second": speed, "generate_tokens_per_second": None},
    }


def scatter(*places: tuple[float, float], more_is_better: bool) -> Scatter:
    dots = [Dot(x, y, f"{x}", "other") for x, y in places]
    return Scatter("t", "d", dots, "x", str, str, more_is_better=more_is_better)


def test_the_frontier_has_those_that_no_other_one_beats():
    """For size, left is better; for speed, right. Of equals both stay."""
    places = [(1.0, 9.0), (2.0, 5.0), (3.0, 6.0), (4.0, 1.0)]
    small = scatter(*places, more_is_better=False).frontier()
    assert [(dot.x, dot.y) for dot in small] == [(1.0, 9.0), (2.0, 5.0), (4.0, 1.0)]
    assert [dot.x for dot in scatter(*places, more_is_better=True).frontier()] == [4.0]
    assert len(scatter((1.0, 1.0), (1.0, 1.0), more_is_better=True).frontier()) == 2


def test_each_model_is_at_its_size_and_quality(tmp_path):
    """A picture for each axis that was measured; a diverged model has no place."""
    models = {
        "teacher": entry(100, 20.0, 10.0),
        "student": entry(50, 25.0, 30.0),
        "control": entry(50, None, 30.0),
    }
    charts = pareto_charts(make_recipe(), [result_of(models, tmp_path)])
    assert [chart.title for chart in charts] == [
        "Perplexity per token against parameters",
        "Perplexity per token against forward tokens/s",
    ]
    size, speed = charts
    assert {(dot.label, dot.x, dot.y) for dot in size.dots} == {
        ("Teacher", 100.0, 20.0),
        ("Student", 50.0, 25.0),
    }
    assert not size.more_is_better
    assert speed.more_is_better


def test_without_speeds_there_is_the_picture_of_sizes_alone(tmp_path):
    models = {"teacher": entry(100, 20.0, None), "student": entry(50, 25.0, None)}
    assert len(pareto_charts(make_recipe(), [result_of(models, tmp_path)])) == 1


def test_candidates_of_a_race_have_a_picture_of_their_own(tmp_path):
    """Those that were distilled, by their rows in the table; the winner has the student's color."""
    run = RunFolder.at(tmp_path)
    candidates = [
        {"name": "wide", "parameters": 90, "kl": 0.4},
        {"name": "deep", "parameters": 80, "kl": 0.3},
        {"name": "small", "parameters": 70},
    ]
    race = {
        "candidates": candidates,
        "winner": "deep",
        "ranking_after_distillation": ["deep", "wide"],
    }
    with commit_folder(run.student_init, Inputs("init", {}, {}), {"race": race}):
        pass
    models = {"teacher": entry(100, 20.0, None), "student": entry(50, 25.0, None)}
    _, chart = pareto_charts(make_recipe(), [SeedResult(0, run, {"models": models}, [])])
    assert chart.title == "Candidates: KL from the teacher against parameters"
    assert {(dot.label, dot.x, dot.y, dot.color) for dot in chart.dots} == {
        ("Row 1", 80.0, 0.3, "student"),
        ("Row 2", 90.0, 0.4, "other"),
    }


def test_labels_beside_one_another_do_not_overlap():
    """Student and controls have one size, and nearly one quality."""
    chart = scatter((50.0, 5.0), (50.0, 5.01), (50.0, 5.02), (100.0, 3.0), more_is_better=False)
    heights = sorted(y for _, y, _, dot in chart.labels() if dot.x == 50.0)
    assert min(b - a for a, b in pairwise(heights)) >= 16.9


def agreement(share: float, *, tokens: int = 30) -> dict:
    def bin_of(low: int, high: int | None) -> dict:
        return {"low": low, "high": high, "tokens": tokens, "top1_agreement": share, "kl": 0.25}

    frequency = [bin_of(0, 1), bin_of(1, 10), bin_of(1000, None)]
    return {
        "agreement": {"by_frequency": frequency, "by_position": [bin_of(0, 16), bin_of(16, None)]}
    }


def test_agreement_has_a_row_for_each_bin(tmp_path):
    """Medians over seeds, the divergence below; the teacher, which agrees with itself, is left
    out."""
    results = [
        result_of({"teacher": {}, "student": agreement(share)}, tmp_path) for share in (0.5, 0.7)
    ]
    frequency, position = agreement_tables(results)
    assert frequency.table.columns == ["Tokens", "Student"]
    assert [label for label, _ in frequency.table.rows] == [
        "never",
        "1 to 9 times",
        "1,000 and more times",
    ]
    assert [label for label, _ in position.table.rows] == ["0 to 15", "16 and more"]
    tokens, share = frequency.table.rows[0][1]
    assert (tokens.text, share.text, share.notes) == ("30", "60.0%", ["KL 0.250 nats"])


def test_an_evaluation_without_bins_has_no_tables(tmp_path):
    """Such as one of an earlier version."""
    models = {"teacher": {}, "student": {"agreement": {"top1_agreement": 0.5}}}
    assert agreement_tables([result_of(models, tmp_path)]) == []
