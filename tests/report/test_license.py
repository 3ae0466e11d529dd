"""The license in a model card, and those that a teacher's does not allow."""

import pytest
import yaml

from stillhouse.errors import RecipeError
from stillhouse.recipe_file import parse_recipe
from stillhouse.report.license import check_license
from stillhouse.report.write import write_report

RECIPE = "teacher: {teacher}\ncorpus: {{source: sample}}\nreport: {{license: {license}}}\n"
TASK = """finetuning:
  sst2:
    task: {{kind: classification}}
    data: {{train: a.jsonl, validation: b.jsonl}}
    models: {{student: {{start: {start}}}}}
"""


def recipe(teacher, license="null", task=""):
    return parse_recipe(RECIPE.format(teacher=teacher, license=license) + task)


@pytest.fixture
def model(tmp_path):
    """make(license): a folder whose card states it."""

    def make(license):
        folder = tmp_path / "model"
        folder.mkdir()
        (folder / "README.md").write_text(f"---\nlicense: {license}\n---\n")
        return str(folder)

    return make


@pytest.mark.parametrize(
    ("teachers", "stated"),
    [
        ("mit", "apache-2.0"),
        ("apache-2.0", "cc-by-nc-4.0"),
        ("llama3.2", "llama3.2"),
        ("llama3.2", "other"),
        ("llama3.2", "null"),
    ],
)
def test_licenses_that_a_teacher_allows(model, teachers, stated):
    check_license(recipe(model(teachers), stated))


@pytest.mark.parametrize("teachers", ["llama3.2", "cc-by-nc-4.0", "cc-by-sa-4.0"])
def test_a_license_that_its_teacher_forbids_is_refused(model, teachers):
    with pytest.raises(
        RecipeError,
        match=rf"report.license is mit, but .*model is under {teachers}, which binds models made "
        rf"from it. Set report.license to {teachers}, or to other by agreement",
    ):
        check_license(recipe(model(teachers), "mit"))


def test_the_start_of_a_task_binds_too(model):
    with pytest.raises(RecipeError, match=r"is under gemma, which binds"):
        check_license(recipe("sample", "mit", TASK.format(start=model("gemma"))))


def card_of(run, own):
    write_report(own, run, [run])
    text = (run.student / "README.md").read_text(encoding="utf-8")
    return yaml.safe_load(text.split("---\n")[1]), text


def test_a_student_has_its_teachers_license(make_run, losses, model):
    matter, text = card_of(make_run(losses), recipe(model("cc-by-nc-4.0")))
    assert matter["license"] == "cc-by-nc-4.0"
    assert "The license (cc-by-nc-4.0) is that of the model it was made from" in text


def test_no_license_is_said(make_run, losses, tmp_path):
    matter, text = card_of(make_run(losses), recipe(tmp_path))
    assert "license" not in matter
    assert "No license was set" in text
