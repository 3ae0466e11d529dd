"""Students of several runs side by side."""

import json
import re

import pytest
from tests.report.handmade import make_evaluation
from tests.report.test_zero_shot_table import scores

from stillhouse.errors import OptionError, RunError
from stillhouse.report.runs_compared import compare_runs, print_comparison, read_runs
from stillhouse.units import MINUS

RECIPE = """
seed: 0
teacher: openai-community/gpt2
corpus: {source: sample}
distillation: {optimizer: {learning_rate: RATE}, temperature: 2.0}
"""


@pytest.fixture
def make(tmp_path, losses):
    """make(NAME, LOSS, ...): the folder of an evaluated run."""

    def make(name, loss, *, rate="1.0e-3", unit_sums=(30.0, 31.0, 33.0), kept=None, tokens=10):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "recipe.yaml").write_text(RECIPE.replace("RATE", rate))
        evaluation = make_evaluation({**losses, "student": loss})
        sums = [*unit_sums] * 12
        evaluation["validation_units"] = {
            "unit": "documents",
            "tokens": [tokens] * len(sums),
            "loss_sums": {"student": sums},
        }
        evaluation["zero_shot"] = kept and scores(kept=kept)
        (folder / "evaluation.json").write_text(json.dumps(evaluation))
        return folder

    return make


def test_metrics_differences_and_settings(make):
    """The difference is paired by documents; settings that all runs share are left out."""
    first = make("first", 3.30)
    second = make("second", 3.10, rate="2.0e-3", unit_sums=(28.0, 29.5, 30.5))
    found = compare_runs(read_runs([first, second]))
    assert found["runs"] == [str(first), str(second)]
    assert found["metrics"]["Validation loss per token"] == [3.30, 3.10]
    assert found["settings"] == {"distillation.optimizer.learning_rate": [1e-3, 2e-3]}
    (gap,) = found["differences"]
    assert gap["value"] == pytest.approx(-(2 + 1.5 + 2.5) / 30)
    assert gap["low"] < gap["value"] < gap["high"] < 0
    assert json.loads(json.dumps(found)) == found


def test_students_on_other_texts_have_no_difference(make):
    """As seen from the number of tokens in each unit."""
    runs = read_runs([make("first", 3.3), make("second", 3.1, tokens=11)])
    assert compare_runs(runs)["differences"] == [None]


def test_the_comparison_is_printed(make, capsys):
    runs = read_runs(
        [make("first", 3.3, kept=0.7), make("second", 3.1, unit_sums=(28.0, 29.5, 30.5))]
    )
    print_comparison(runs, compare_runs(runs))
    out = " ".join(capsys.readouterr().out.split())
    assert "first" in out
    assert "second" in out
    assert "Gain over chance kept 70% -" in out
    assert "second is better than first: on the same text its loss is lower by 0.200 nats" in out
    assert re.search(r"per token \(95 % interval 0\.\d{3} to 0\.\d{3}\)\.", out)


def test_students_that_hardly_differ_are_said_not_to(make, capsys):
    """With digits that show the difference."""
    runs = read_runs([make("first", 3.3), make("second", 3.3, unit_sums=(30.001, 31.0, 33.0))])
    gap = compare_runs(runs)["differences"][0]["value"]
    print_comparison(runs, compare_runs(runs))
    out = " ".join(capsys.readouterr().out.split())
    assert "second and first do not differ significantly" in out
    assert 0 < abs(gap) < 0.0005
    assert f"second minus first is {'+' if gap > 0 else MINUS}{abs(gap):.5f} nats" in out


def test_runs_that_cannot_be_compared_are_refused(make, tmp_path):
    first = make("first", 3.3)
    with pytest.raises(OptionError, match="needs two or more"):
        read_runs([first])
    other = make("other", 3.3)
    (other / "evaluation.json").unlink()
    with pytest.raises(RunError, match=r"There is no .* yet. Run the stage evaluate first"):
        read_runs([first, other])
