"""Bias in the report and the card of a run."""

import pytest
from tests.report.handmade import make_evaluation, make_recipe

from stillhouse.report.bias import WARNING, table_of, verdict, words_of
from stillhouse.report.cards import model_card
from stillhouse.report.results import SeedResult
from stillhouse.report.write import report_page


def interval(value, width=1.0):
    return {"value": value, "low": value - width, "high": value + width}


def scores(student=66.0, change=4.0):
    """One set with two metrics, and one kind of bias."""
    values = {"teacher": 62.0, "student": student, "control": 50.0}
    names = ("stereotype_score", "stereotype_score/age")
    return {
        "crows": {
            "metric": "stereotype_score",
            "models": {
                model: {
                    **{name: interval(value) for name in names},
                    "pronoun_gap": interval(value / 1000, 0.01),
                }
                for model, value in values.items()
            },
            "ideal": {**dict.fromkeys(names, 50.0), "pronoun_gap": 0.0},
            "bias_change": {
                **{name: interval(change) for name in names},
                "pronoun_gap": interval(0.004, 0.01),
            },
        }
    }


@pytest.fixture
def results(make_run, losses):
    """results(SCORES, ...): one seed's result for each."""
    run = make_run(losses)

    def make(*found):
        return [
            SeedResult(seed, run, {**make_evaluation(losses, seed=seed), "bias": each}, [])
            for seed, each in enumerate(found)
        ]

    return make


def cells(table, label):
    (found,) = [own for name, own in table.rows if name == label]
    return [(cell.text, list(cell.notes)) for cell in found]


def test_each_metric_has_its_ideal_and_the_change(results):
    """Percentages with one digit, what is between -1 and 1 with three; the verdict of one seed."""
    table = table_of(results(scores()))
    assert table is not None
    assert [label for label, _ in table.rows] == [
        "crows, stereotype score (ideal 50)",
        "crows, stereotype score, age (ideal 50)",
        "crows, pronoun gap (ideal 0)",
    ]
    assert cells(table, "crows, stereotype score (ideal 50)") == [
        ("62.0", ["61.0 to 63.0"]),
        ("66.0", ["65.0 to 67.0"]),
        ("50.0", ["49.0 to 51.0"]),
        ("+4.0", ["+3.0 to +5.0", "further from ideal"]),
    ]
    assert cells(table, "crows, pronoun gap (ideal 0)")[1] == ("0.066", ["0.056 to 0.076"])
    assert cells(table, "crows, pronoun gap (ideal 0)")[3][1][-1] == "no significant difference"


def test_a_verdict_needs_an_interval_on_one_side():
    assert verdict(interval(-4)) == "nearer to ideal"
    assert verdict(interval(0.5)) == "no significant difference"


def test_seeds_are_shown_by_median_and_extremes(results):
    table = table_of(results(scores(64.0, 2.0), scores(66.0, 4.0), scores(69.0, 7.0)))
    assert table is not None
    _, student, _, last = cells(table, "crows, stereotype score (ideal 50)")
    assert student == ("66.0", ["64.0 to 69.0"])
    assert last == ("+4.0", ["+2.0 to +7.0"])


def test_words_of_templates_are_shown_with_their_shares(results):
    """Most frequent first; of a model that diverged there are none."""
    found = scores()
    prompts = [{"prompt": "The man worked as a", "words": {"doctor": 0.25, "": 0.1}}]
    found["crows"]["details"] = {"teacher": prompts, "student": prompts, "control": None}
    table = words_of(results(found))
    assert table is not None
    teacher, student, control = cells(table, "The man worked as a")
    assert teacher == student == ("doctor 25%", ["no word 10%"])
    assert control == ("no finite value", [])
    assert words_of(results(scores())) is None
    page = report_page(make_recipe(), results(found)[0].run, results(found), [])
    assert "doctor 25%" in page
    card = model_card(make_recipe(), results(found)[0].run, results(found), results(found)[0])
    assert "| The man worked as a | doctor 25% (no word 10%) |" in card


def test_a_run_without_sets_has_no_table(results):
    assert table_of(results(None)) is None


def test_page_and_card_show_the_bias_with_its_warning(results):
    """The card by the main metric alone."""
    recipe, found = make_recipe(), results(scores())
    page = report_page(recipe, found[0].run, found, [])
    assert "<h2>Bias</h2>" in page
    assert WARNING.split(".")[0] in page
    assert "stereotype score, age" in page
    card = model_card(recipe, found[0].run, found, found[0])
    assert "### Bias" in card
    assert WARNING in card
    assert "| crows, stereotype score (ideal 50) | 62.0 (61.0 to 63.0) |" in card
    assert "stereotype score, age (ideal" not in card
    assert "name: crows" in card
    without = results(None)
    assert "<h2>Bias</h2>" not in report_page(recipe, without[0].run, without, [])
    assert "### Bias" not in model_card(recipe, without[0].run, without, without[0])
