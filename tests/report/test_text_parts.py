"""Loss on each part of the text in the report, the card and the summary of a run."""

import pytest
from tests.report.handmade import make_evaluation, make_recipe

from stillhouse.report.cards import model_card
from stillhouse.report.results import SeedResult
from stillhouse.report.text_parts import table_of
from stillhouse.report.write import report_page
from stillhouse.units import MINUS

PARTS = {
    "en": {"tokens": 4_000_000, "repeats": 1.0, "share": 0.75},
    "fr": {"tokens": 40_000, "repeats": 33.0, "share": 0.25},
}


@pytest.fixture
def results(make_run, losses):
    """Two seeds of a text in two languages; French is 1 nat harder, for all but the control 1.2."""
    found, run = [], make_run(losses)
    for seed in (0, 1):
        evaluation = make_evaluation(losses, seed=seed) | {"parts": PARTS}
        for name, model in evaluation["models"].items():
            more = 1.2 if name == "control" else 1.0
            loss = model["validation_loss"] + seed / 10
            model["loss_by_part"] = {
                "en": {"tokens": 900, "loss": loss},
                "fr": {"tokens": 100, "loss": loss + more},
            }
        for own in evaluation["intervals"].values():
            own["parts"] = {
                "en": {"value": -0.03, "low": -0.05, "high": -0.01},
                "fr": {"value": -0.23, "low": None, "high": None},
            }
        found.append(SeedResult(seed, run, evaluation, []))
    return found


def test_a_row_for_each_part(results, losses):
    """Its tokens, how it is drawn, every loss, and the paired difference with its interval."""
    table = table_of(results[:1])
    assert table is not None
    assert table.columns[:3] == ["Training tokens", "Drawn", "Share"]
    (_, english), (name, french) = table.rows
    assert name == "fr"
    assert [cell.text for cell in french[:3]] == ["40,000", "33\N{MULTIPLICATION SIGN}", "25.0%"]
    place = table.columns.index("Control, same tokens")
    assert french[place].text == f"{losses['control'] + 1.2:.3f} nats"
    gap = table.columns.index(f"Student {MINUS} control, same tokens")
    assert english[gap].text == f"{MINUS}0.030 nats"
    assert list(english[gap].notes) == [f"{MINUS}0.050 to {MINUS}0.010"]
    assert list(french[gap].notes) == []  # too little text for an interval


def test_several_seeds_have_medians(results, losses):
    table = table_of(results)
    assert table is not None
    assert not any(MINUS in column for column in table.columns)
    loss = losses["student"] + 1.05
    assert table.rows[1][1][table.columns.index("Student")].text == f"{loss:.3f} nats"


def test_a_model_that_diverged_has_no_number(results):
    results[0].evaluation["models"]["student"]["loss_by_part"]["fr"]["loss"] = None
    results[0].evaluation["intervals"]["control"]["parts"]["fr"]["value"] = None
    table = table_of(results[:1])
    assert table is not None
    cells = table.rows[1][1]
    assert [cells[table.columns.index("Student")].is_missing, cells[-1].is_missing] == [True, True]


def test_report_and_card_have_the_table(results):
    recipe = make_recipe()
    page = report_page(recipe, results[0].run, results[:1], [])
    card = model_card(recipe, results[0].run, results[:1], results[0])
    for text in (page, card):
        assert "Parts of the text" in text
        assert "40,000" in text


def test_a_text_without_parts_has_no_table(make_run, losses):
    plain = [SeedResult(0, make_run(losses), make_evaluation(losses), [])]
    assert table_of(plain) is None
    assert "Parts of the text" not in report_page(make_recipe(), plain[0].run, plain, [])
