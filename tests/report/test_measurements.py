"""Where the numbers of a model card come from: measurements.json, beside it in the folder."""

import hashlib
import json
import re
from copy import deepcopy
from typing import Any

from tests.report.handmade import make_recipe
from tests.report.test_bias_table import scores as bias_scores
from tests.report.test_zero_shot_table import scores as zero_shot_scores

from stillhouse.energy.settings import EnergyRecipe
from stillhouse.models.folder_check import MEASUREMENTS, result_files
from stillhouse.recipe_file import parse_recipe
from stillhouse.report.write import write_report
from stillhouse.runs.manifest import Inputs, commit_file, commit_folder
from stillhouse.runs.paths import RunFolder
from stillhouse.runs.power import Meter, metered

TASK = """
teacher: sample
finetuning:
  sst2:
    task: {kind: classification}
    data: {train: a.jsonl, validation: b.jsonl}
    models:
      teacher: {start: teacher}
      student: {start: teacher, layer_map: 1}
      distilled: {start: teacher, layer_map: 1, teacher: teacher}
"""
SCORES = {
    "schema": 2,
    "metric": "accuracy",
    "splits": {
        "validation": {
            "models": {
                name: {"accuracy": {"value": value, "low": value - 0.0125, "high": value + 0.0125}}
                for name, value in (("teacher", 0.45), ("student", 0.41), ("distilled", 0.43))
            },
            "differences": {
                "distilled minus student": {
                    "accuracy": {"value": 0.02, "low": 0.005, "high": 0.035}
                }
            },
        }
    },
    "costs": {
        name: {
            "parameters": 1_000_000 + own,
            "size_bytes": 4_000_000 + 4 * own,
            "forward_tokens_per_second": 2_000.0 + own,
        }
        for name, own in (("teacher", 300_000), ("student", 100_000), ("distilled", 200_000))
    },
    "task": {"kind": "classification"},
    "data": {},
    "blank_rows": {},
    "positive_label": None,
    "seed": 0,
    "machine": {},
    "versions": {},
    "commit": "abc1234",
}
NUMBER = re.compile(r"\d[\d,.]*")
DURATION = re.compile(r"(?<=min) \d+ s")


def table_numbers(card):
    """For each row of each table its label and its numbers; a duration is one."""
    rows = [line for line in card.partition("## Reproducing")[0].splitlines() if line[:1] == "|"]
    cells = [DURATION.sub("", row).strip("|").split("|") for row in rows]
    return [(label, NUMBER.findall(" ".join(own))) for label, *own in cells if label.strip()]


def perturbed(value: Any, path: str = "") -> Any:
    """Each number times a factor of its own from 1.2 to 1.9; counts stay whole."""
    if isinstance(value, dict):
        return {key: perturbed(each, f"{path}.{key}") for key, each in value.items()}
    if isinstance(value, list):
        return [perturbed(each, f"{path}.{place}") for place, each in enumerate(value)]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    factor = 1.2 + 0.7 * int(hashlib.sha256(path.encode()).hexdigest()[:8], 16) / 16**8
    return int(value * factor) if isinstance(value, int) else value * factor


def write(run, evaluation, watts):
    """The card of a student whose run measured this."""
    recipe = make_recipe().model_copy(update={"energy": EnergyRecipe(kg_per_kwh=0.4)})
    run.evaluation.write_text(json.dumps(evaluation))
    with metered(Meter(EnergyRecipe(watts=watts), None, print)):
        facts = {"training": {"seconds": 36.0 * watts}}
        with commit_folder(run.student, Inputs("distill", {}, {}), facts, overwrite=True):
            pass
    write_report(recipe, run, [run])
    return (run.student / "README.md").read_text(), json.loads(
        (run.student / MEASUREMENTS).read_text()
    )


def test_every_number_of_the_tables_comes_from_the_measurements(make_run, losses):
    """With other measurements every one of them is another, and the measurements of a card are
    those that were made."""
    run = make_run(losses)
    evaluation = json.loads(run.evaluation.read_text())
    evaluation["zero_shot"], evaluation["bias"] = zero_shot_scores(), bias_scores()
    for model in evaluation["models"].values():
        del model["speed"]["ratio_to_first"]  # shown where it is not close to 1
    others = perturbed(deepcopy(evaluation)) | {"schema": evaluation["schema"], "seed": 0}
    others["bias"]["crows"]["ideal"] = evaluation["bias"]["crows"]["ideal"]
    card, measured = write(run, evaluation, 100.0)
    other, measured_others = write(run, others, 200.0)
    first, second = table_numbers(card), table_numbers(other)
    assert [(label, len(own)) for label, own in first] == [
        (label, len(own)) for label, own in second
    ]
    same = [
        (label, number)
        for (label, own), (_, changed) in zip(first, second, strict=True)
        for number, new in zip(own, changed, strict=True)
        if number == new
    ]
    assert same == []
    assert sum(len(own) for _, own in first) > 60
    for found, given in ((measured, evaluation), (measured_others, others)):
        own = found["evaluations"]["0"]
        assert own["zero_shot"] == given["zero_shot"]
        assert (
            own["models"]["student"]["validation_loss"]
            == (given["models"]["student"]["validation_loss"])
        )
        assert "path" not in own["models"]["student"]


def test_every_number_of_a_tasks_card_comes_from_its_scores(tmp_path):
    """Of the tables, and the tokens of the training."""
    recipe = parse_recipe(TASK)
    run = RunFolder.at(tmp_path / "run")
    scores = run.finetuned("sst2") / "scores.json"
    cards, measured = [], []
    for tokens, own in ((1_500_000, SCORES), (3_100_000, perturbed(SCORES))):
        for model in recipe.finetuning["sst2"].models:
            facts = {"training": {"tokens": tokens}}
            with commit_folder(
                run.finetuned("sst2") / model, Inputs("x", {}, {}), facts, overwrite=True
            ):
                pass
        commit_file(
            scores, json.dumps(own | {"schema": SCORES["schema"]}).encode(), Inputs("x", {}, {})
        )
        write_report(recipe, run, [run])
        folder = run.finetuned("sst2") / "distilled"
        cards.append((folder / "README.md").read_text())
        measured.append(json.loads((folder / MEASUREMENTS).read_text()))
    first, second = map(table_numbers, cards)
    pairs = [
        (label, *both)
        for (label, own), (_, changed) in zip(first, second, strict=True)
        for both in zip(own, changed, strict=True)
    ]
    assert len(pairs) > 12
    assert [pair for pair in pairs if pair[1] == pair[2]] == []
    assert "1.5 M tokens" in cards[0]
    assert "3.1 M tokens" in cards[1]
    assert measured[0]["scores"]["0"]["splits"] == SCORES["splits"]
    assert measured[1]["facts"]["training"]["tokens"] == 3_100_000


def test_measurements_do_not_change_what_the_model_is(make_run, losses):
    """Its fingerprint, as a teacher of another run, is that of its weights and settings."""
    run = make_run(losses)
    (run.student / "config.json").write_text("{}")
    before = result_files(run.student)
    write_report(make_recipe(), run, [run])
    assert (run.student / MEASUREMENTS).is_file()
    assert result_files(run.student) == before
