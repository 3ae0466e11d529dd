"""Energy, emissions and cost of a run, from its manifests."""

import json

import pytest

from stillhouse.energy.account import (
    StageEnergy,
    as_json,
    factor_of,
    generation_of,
    kwh_of,
    stages_of_run,
    total_kwh,
)
from stillhouse.energy.settings import EnergyRecipe
from stillhouse.errors import RecipeError
from stillhouse.recipe_file import parse_recipe
from stillhouse.report.stage import check
from stillhouse.runs.manifest import Inputs, commit_folder, commit_json
from stillhouse.runs.paths import RunFolder
from stillhouse.runs.power import Meter, metered
from stillhouse.stages.check import RecipeCheck


def test_the_calculator_gives_the_published_figure():
    """DistilGPT2's card: 8 GPUs of 300 W, 168 hours, 0.37 kg per kWh, 149.2 kg; by the same formula
    DistilBERT's 90 hours are 79.9 kg (our arithmetic, not a published figure)."""
    assert kwh_of(300.0, 168.0, 8) == pytest.approx(403.2)
    assert round(0.37 * kwh_of(300.0, 168.0, 8), 1) == 149.2
    assert round(0.37 * kwh_of(300.0, 90.0, 8), 1) == 79.9


@pytest.fixture
def run(tmp_path):
    """A run of which student and control trained 100 s, in several processes, at 50 W."""
    run, speeds = RunFolder.at(tmp_path), {"teacher": 10.0, "student": 20.0}
    with metered(Meter(EnergyRecipe(watts=50.0), None, print)):
        for model in (run.student, run.control):
            facts = {"training": {"seconds": 100.0}}
            with commit_folder(model, Inputs("distill", {}, {}), facts):
                pass
        models = {
            name: {"speed": {"generate_tokens_per_second": rate}} for name, rate in speeds.items()
        }
        commit_json(run.evaluation, {"models": models}, Inputs("evaluate", {}, {}), seconds=40.0)
    return run


def test_stages_have_their_time_and_energy(run):
    """That of training, over all processes; the control is not the student's."""
    student, control, evaluation = stages_of_run(EnergyRecipe(), run)
    assert (student.name, student.seconds, student.is_student) == ("distill", 100.0, True)
    assert (control.name, control.is_student) == ("control", False)
    assert student.kwh == pytest.approx(50 * 100 / 3.6e6)
    assert (evaluation.name, evaluation.seconds) == ("evaluate", 40.0)
    assert total_kwh([student, control, evaluation]) == pytest.approx(50 * 240 / 3.6e6)


def test_generation_and_when_the_student_has_paid(run):
    """5 and 2.5 J a token, saved 2.5 J a token; the student took 5,000 J: 2,000 tokens."""
    found = generation_of(run, stages_of_run(EnergyRecipe(), run))
    assert found is not None
    assert (found.teacher, found.student, found.kind) == (5000.0, 2500.0, "estimated")
    assert found.paid_after == pytest.approx(2000)


def test_a_student_that_saves_nothing_never_pays(run):
    content = json.loads(run.evaluation.read_text())
    content["models"]["student"]["speed"]["generate_tokens_per_second"] = 10.0
    run.evaluation.write_text(json.dumps(content))
    found = generation_of(run, stages_of_run(EnergyRecipe(), run))
    assert found is not None
    assert found.paid_after is None


def test_what_is_unknown_is_not_zero(run):
    """One stage of unknown power makes the total unknown, with its emissions; prices remain."""
    with commit_folder(run.tokens, Inputs("prepare", {}, {})):
        pass
    recipe = EnergyRecipe(kg_per_kwh=0.4, price_per_hour=3.6)
    found = as_json(recipe, run)
    assert found["stages"][0]["name"] == "prepare"
    assert found["stages"][0]["kwh"] is None
    assert found["stages"][1]["kg_co2"] == pytest.approx(0.4 * 5000 / 3.6e6)
    assert found["stages"][1]["cost"] == pytest.approx(0.1)
    assert (found["total"]["kwh"], found["total"]["kind"]) == (None, "unknown")
    assert found["total"]["kg_co2"] is None
    assert found["total"]["cost"] > 0.1
    assert found["student"]["kwh"] is None
    assert found["generation"]["paid_after_tokens"] is None
    assert json.loads(json.dumps(found)) == found


def test_models_of_tasks_are_stages_of_their_own(run):
    """They are no part of what the student took."""
    with commit_folder(run.finetuned("sst2") / "tuned", Inputs("finetune", {}, {})):
        pass
    found = stages_of_run(EnergyRecipe(watts=1.0), run)[-1]
    assert (found.name, found.is_student) == ("finetune sst2, tuned", False)


def test_watts_may_be_given_afterwards(run):
    """For stages whose power is unknown, times their devices; what was recorded stays."""
    with (
        metered(Meter(EnergyRecipe(), None, print, devices=8)),
        commit_folder(run.tokens, Inputs("prepare", {}, {})),
    ):
        pass
    prepare, student, *_ = stages_of_run(EnergyRecipe(watts=300.0), run)
    assert (prepare.kind, prepare.watts) == ("estimated", 2400.0)
    assert (student.watts, student.source) == (50.0, "energy.watts of the recipe")


def test_costs_are_of_all_devices():
    stage = StageEnergy("distill", 3600.0, "estimated", 2400.0, "", 8, True)
    assert stage.cost(EnergyRecipe(price_per_hour=2.5)) == 20.0
    assert stage.cost(EnergyRecipe()) is None


def test_the_factor_is_the_recipes_or_its_countrys():
    """Of codecarbon's table; a country it does not have is refused."""
    assert factor_of(EnergyRecipe()) is None
    own = factor_of(EnergyRecipe(kg_per_kwh=0.37))
    assert own is not None
    assert own[0] == 0.37
    france, poland = (factor_of(EnergyRecipe(country=name)) for name in ("FRA", "POL"))
    assert france is not None
    assert poland is not None
    assert 0.01 < france[0] < 0.15 < 0.4 < poland[0] < 1
    with pytest.raises(RecipeError, match=r"energy.country is ZZZ, of which codecarbon has no"):
        factor_of(EnergyRecipe(country="ZZZ"))


def test_an_unknown_country_is_refused_before_the_run():
    text = "teacher: sample\ncorpus: {source: sample}\nenergy: {country: ZZZ}\n"
    with pytest.raises(RecipeError, match=r"energy.country is ZZZ"):
        check(RecipeCheck(parse_recipe(text), ["report"], offline=True))


@pytest.mark.parametrize(
    "text", ["{watts: 0}", "{country: de}", "{country: DEU, kg_per_kwh: 0.4}", "{price: 3}"]
)
def test_impossible_settings_are_refused(text):
    with pytest.raises(RecipeError, match="energy"):
        parse_recipe(f"teacher: sample\ncorpus: {{source: sample}}\nenergy: {text}\n")
