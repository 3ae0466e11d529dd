"""Energy in the report, in the card and on the command line."""

import pytest
from huggingface_hub import ModelCard
from tests.report.handmade import make_evaluation, make_recipe

from stillhouse.energy.settings import EnergyRecipe
from stillhouse.report.cards import model_card
from stillhouse.report.energy import print_account, sentences, table_of, values_of
from stillhouse.report.results import SeedResult
from stillhouse.report.write import report_page
from stillhouse.runs.manifest import Inputs, commit_folder
from stillhouse.runs.paths import RunFolder
from stillhouse.runs.power import Meter, metered


@pytest.fixture
def result(tmp_path, losses):
    """A seed whose student trained for an hour at 100 W."""
    run = RunFolder.at(tmp_path / "run")
    meter, facts = Meter(EnergyRecipe(watts=100.0), None, print), {"training": {"seconds": 3600.0}}
    with metered(meter), commit_folder(run.student, Inputs("d", {}, {}), facts):
        pass
    return SeedResult(0, run, make_evaluation(losses), [])


def recipe_with(**energy):
    return make_recipe().model_copy(update={"energy": EnergyRecipe(**energy)})


def test_stages_and_total_have_what_is_asked_for(result):
    """Emissions and cost only where the recipe gives their factors."""
    plain = values_of(recipe_with(), result)
    assert plain["energy"].columns == ["Time", "Energy"]
    assert [name for name, _ in plain["energy"].rows] == ["distill", "total"]
    recipe = recipe_with(kg_per_kwh=0.4, price_per_hour=2.5, currency="EUR")
    found = values_of(recipe, result)
    assert found["energy"].columns == ["Time", "Energy", "CO2 equivalents", "Cost"]
    assert [cell.text for cell in found["energy"].rows[0][1]] == ["1 h", "100 Wh", "40 g",
                                                                  "2.50 EUR"]  # fmt: skip
    assert "estimated (energy.watts of the recipe)" in found["energy_notes"][0]
    assert "0.4 kg of CO2 equivalents per kWh" in found["energy_notes"][1]


def test_what_is_unknown_is_said(tmp_path, losses):
    """No table of zeros."""
    run = RunFolder.at(tmp_path / "run")
    with (
        metered(Meter(EnergyRecipe(), None, print)),
        commit_folder(run.student, Inputs("d", {}, {})),
    ):
        pass
    result = SeedResult(0, run, make_evaluation(losses), [])
    found = values_of(recipe_with(kg_per_kwh=0.4), result)
    assert found["energy"] is None
    assert found["energy_notes"][0].startswith("Energy: unknown (no energy counter")
    page = report_page(recipe_with(), run, [result], [])
    assert "Energy: unknown (no energy counter, and no energy.watts in the recipe)." in page


def test_page_and_card_show_the_energy_and_the_hub_gets_grams(result):
    recipe = recipe_with(kg_per_kwh=0.4)
    page = report_page(recipe, result.run, [result], [])
    assert "<h2>Energy</h2>" in page
    assert "100 Wh" in page
    card = model_card(recipe, result.run, [result], result)
    assert "| distill | " in card
    own = ModelCard(card, ignore_metadata_errors=False).data.to_dict()["co2_eq_emissions"]
    assert own["emissions"] == 40.0
    assert own["source"] == "estimated by Stillhouse"
    assert "co2_eq" not in model_card(recipe_with(), result.run, [result], result)


def test_when_a_student_has_paid_is_said_in_tokens():
    account = {
        "stages": [{"kind": "measured", "source": "RAPL counters of the CPU"}],
        "kg_per_kwh": None,
        "generation": {
            "joules_per_1000_tokens": {"teacher": 5000.0, "student": 900.0},
            "kind": "measured",
            "paid_after_tokens": 2.5e6,
        },
    }
    found = sentences(account)
    assert found[0] == "Energy: measured (RAPL counters of the CPU)."
    assert "5.0 kJ with the teacher and 900 J with the student" in found[1]
    assert found[2] == "The student has saved what it took after 2.5 M tokens."
    account["generation"]["paid_after_tokens"] = None
    assert "or it saves nothing" in sentences(account)[2]


def test_the_command_prints_the_table(result, capsys):
    recipe = recipe_with()
    from stillhouse.energy.account import as_json

    account = as_json(recipe.energy, result.run)
    print_account(recipe, account)
    out = capsys.readouterr().out
    assert "distill" in out
    assert "100 Wh" in out
    assert table_of(recipe, account) is not None
