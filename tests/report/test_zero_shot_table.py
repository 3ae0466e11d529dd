"""Zero-shot scores in the report, the card and the summary of a run."""

import pytest
from tests.report.handmade import make_evaluation, make_recipe

from stillhouse.report.cards import model_card
from stillhouse.report.results import SeedResult
from stillhouse.report.write import report_page
from stillhouse.report.zero_shot import table_of
from stillhouse.units import MINUS


def interval(value, width=0.02):
    return {"value": value, "low": value - width, "high": value + width}


def scores(student=0.55, kept=0.8):
    """One data set, on which the control is at the level of its teacher's guess."""
    values = {"teacher": 0.65, "student": student, "control": 0.5}
    return {
        "sets": {
            "piqa": {
                "metric": "accuracy_norm",
                "chance": 0.5,
                "models": {
                    name: {"accuracy": interval(value - 0.1), "accuracy_norm": interval(value)}
                    for name, value in values.items()
                },
                "differences": {
                    "student minus teacher": {
                        "accuracy": interval(-0.1),
                        "accuracy_norm": interval(student - 0.65),
                    }
                },
                "gain_kept": {"student": kept and interval(kept, 0.1), "control": None},
            }
        },
        "gain_kept": {"student": kept and interval(kept, 0.1), "control": None},
    }


@pytest.fixture
def results(make_run, losses):
    """results(SCORES, ...): one seed's result for each."""

    run = make_run(losses)

    def make(*found):
        return [
            SeedResult(
                seed,
                run,
                {**make_evaluation(losses, seed=seed), "zero_shot": each},
                [],
            )
            for seed, each in enumerate(found)
        ]

    return make


def cells(table, label):
    (found,) = [own for name, own in table.rows if name == label]
    return [(cell.text, list(cell.notes)) for cell in found]


def test_scores_have_their_interval_and_the_gain_kept(results):
    """The main metric first; the difference is the student's to its teacher."""
    table = table_of(results(scores()))
    assert table is not None
    assert table.columns == [
        "Teacher",
        "Student",
        "Control, same tokens",
        f"Student {MINUS} teacher",
    ]
    labels = [label for label, _ in table.rows]
    assert labels == ["piqa, accuracy per character", "piqa, accuracy", "Gain over chance kept"]
    assert cells(table, labels[0]) == [
        ("0.650", ["0.630 to 0.670"]),
        ("0.550", ["0.530 to 0.570", "gain kept: 80%"]),
        ("0.500", ["0.480 to 0.520", "gain kept: teacher at chance"]),
        (f"{MINUS}0.100", [f"{MINUS}0.120 to {MINUS}0.080"]),
    ]
    assert cells(table, labels[-1])[1] == ("80%", ["70% to 90%"])
    assert [label for label, _ in table_of(results(scores()), main_only=True).rows] == [  # pyright: ignore
        labels[0],
        labels[-1],
    ]


def test_several_seeds_show_their_median_and_extremes(results):
    table = table_of(results(scores(0.5, 0.7), scores(0.6, 0.9), scores(0.55, 0.8)))
    assert table is not None
    assert cells(table, "piqa, accuracy per character")[1] == (
        "0.550",
        ["0.500 to 0.600", "gain kept: 80%"],
    )
    assert cells(table, "Gain over chance kept")[1] == ("80%", ["70% to 90%"])


def test_page_and_card_show_the_scores(results):
    """And nothing where no data set was named; the card lists them for the hub."""
    recipe = make_recipe()
    found = results(scores())
    page = report_page(recipe, found[0].run, found, [])
    assert "Zero-shot scores" in page
    assert "piqa, accuracy per character" in page
    card = model_card(recipe, found[0].run, found, found[0])
    assert "| piqa, accuracy per character | 0.650 (0.630 to 0.670)" in card
    assert "name: piqa" in card
    without = results(None)
    assert table_of(without) is None
    assert "Zero-shot" not in report_page(recipe, without[0].run, without, [])
    assert "Zero-shot" not in model_card(recipe, without[0].run, without, without[0])
