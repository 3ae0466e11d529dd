"""What a reader of the student's README.md sees."""

import pytest
import yaml
from tests.report.handmade import make_recipe

from stillhouse.recipe_file import parse_recipe
from stillhouse.report import units
from stillhouse.report.write import write_report
from stillhouse.runs.manifest import Inputs, commit_folder, verify
from stillhouse.runs.paths import RunFolder


def card(run: RunFolder, **settings: str) -> str:
    write_report(make_recipe(**settings), run, [run])
    return (run.student / "README.md").read_text(encoding="utf-8")


def front_matter(text: str) -> dict[str, object]:
    _, matter, _ = text.split("---\n", 2)
    return yaml.safe_load(matter)


def test_the_front_matter_is_what_the_hub_reads(make_run, losses):
    assert front_matter(card(make_run(losses))) == {
        "license": "apache-2.0",
        "base_model": "openai-community/gpt2",
        "tags": ["stillhouse", "distillation"],
        "pipeline_tag": "text-generation",
        "library_name": "transformers",
    }


def test_a_masked_student_fills_masks(make_run, losses):
    text = card(make_run(losses, kind="masked"), kind="masked", teacher="bert-base-uncased")
    assert front_matter(text)["pipeline_tag"] == "fill-mask"
    assert 'pipeline("fill-mask"' in text


@pytest.mark.parametrize("teacher", ["./models/secret", "/home/someone/secret"])
def test_a_teacher_from_a_folder_is_no_base_model_and_its_path_stays_private(
    make_run, losses, teacher
):
    text = card(make_run(losses), teacher=teacher)
    prose, _, recipe = text.partition("```yaml")
    assert "base_model" not in front_matter(text)
    assert teacher not in prose
    assert teacher in recipe


def test_the_recipe_in_the_card_makes_the_run_again(make_run, losses):
    text = card(make_run(losses))
    assert "stillhouse run recipe.yaml --run-dir runs/tiny-still" in text
    recipe = text.split("```yaml\n")[1].split("```")[0]
    assert parse_recipe(recipe) == make_recipe()


def test_the_card_says_how_the_student_was_made_and_what_was_not_tested(make_run, losses):
    text = card(make_run(losses))
    for shown in (
        "`soft_target` 5 (predicted rows), `language_modeling` 1 (predicted rows)",
        "- Temperature: 1\n",
        "- Teacher layers copied: 0, 2, 5",
        "- Training tokens: 2.0 M tokens",
        "- Seed: 0\n",
        "inherits its teacher's errors and biases",
        "not tested for fairness",
        "- Commit: abc123",
    ):
        assert shown in text


def test_the_card_holds_the_same_table_as_the_page(make_run, losses):
    text = card(make_run(losses))
    student, control = (f"({ratio}{units.TIMES} teacher)" for ratio in ("1.14", "1.17"))
    assert "|  | Teacher | Student | Control, same tokens |" in text
    assert f"| Perplexity per token | 24.53 | 27.94 {student} | 28.79 {control} |" in text


def test_writing_the_card_leaves_a_committed_student_intact(make_run, losses):
    """The folder's manifest lists the model's files; the card beside them is not one of them."""
    run = make_run(losses)
    run.student.rmdir()
    with commit_folder(run.student, Inputs("distill student", {}, {})) as folder:
        (folder / "config.json").write_text("{}")
    card(run)
    verify(run.student)
