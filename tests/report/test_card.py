"""What a reader of the student's README.md sees."""

import math
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from tests.report.handmade import make_recipe

from stillhouse import units
from stillhouse.recipe_file import parse_recipe
from stillhouse.report.write import write_report
from stillhouse.runs.manifest import Inputs, commit_folder, verify
from stillhouse.runs.paths import RunFolder


def card(run: RunFolder, **settings: str) -> str:
    write_report(make_recipe(**settings), run, [run])
    return (run.student / "README.md").read_text(encoding="utf-8")


def front_matter(text: str) -> dict[str, Any]:
    _, matter, _ = text.split("---\n", 2)
    return yaml.safe_load(matter)


def test_front_matter_has_the_metadata_of_the_hub(make_run, losses):
    matter = front_matter(card(make_run(losses)))
    [entry] = matter.pop("model-index")
    assert entry["name"] == "tiny-still"
    [result] = entry["results"]
    assert result["task"] == {"type": "text-generation"}
    assert result["dataset"] == {"name": "the validation split", "type": "text"}
    values = {metric["name"]: metric["value"] for metric in result["metrics"]}
    assert values["Validation loss per token"] == losses["student"]
    assert values["Perplexity per token"] == pytest.approx(math.exp(losses["student"]))
    assert matter == {
        "license": "apache-2.0",
        "base_model": "openai-community/gpt2",
        "base_model_relation": "finetune",
        "tags": ["stillhouse", "distillation"],
        "pipeline_tag": "text-generation",
        "metrics": ["perplexity"],
        "library_name": "transformers",
    }


def test_the_library_of_the_hub_loads_the_card(make_run, losses):
    """With its results, and writes what it read. (What the hub checks beyond that, it checks on its
    own servers.)"""
    run = make_run(losses)
    text = card(run)
    found = ModelCard.load(run.student / "README.md", ignore_metadata_errors=False)
    data: Any = found.data
    values = {each.metric_name: each.metric_value for each in data.eval_results}
    assert values["Validation loss per token"] == losses["student"]
    assert data.model_name == "tiny-still"
    assert front_matter(str(found)) == front_matter(text)
    assert found.text.strip() == text.split("---\n", 2)[2].strip()


def test_masked_student_has_the_fill_mask_pipeline(make_run, losses):
    text = card(make_run(losses, kind="masked"), kind="masked", teacher="bert-base-uncased")
    assert front_matter(text)["pipeline_tag"] == "fill-mask"
    assert 'pipeline("fill-mask"' in text


@pytest.mark.parametrize("teacher", ["./models/secret", "/home/someone/secret"])
def test_local_teacher_is_no_base_model_and_its_path_is_not_published(make_run, losses, teacher):
    text = card(make_run(losses), teacher=teacher)
    prose, _, recipe = text.partition("```yaml")
    assert "base_model" not in front_matter(text)
    assert teacher not in prose
    assert teacher in recipe


def test_recipe_in_the_card_reproduces_the_run(make_run, losses):
    text = card(make_run(losses))
    assert "stillhouse run recipe.yaml --run-dir runs/tiny-still" in text
    recipe = text.split("```yaml\n")[1].split("```")[0]
    assert parse_recipe(recipe) == make_recipe()


def test_card_states_training_and_limits(make_run, losses):
    text = card(make_run(losses))
    for shown in (
        "`soft_target` 5 (predicted rows), `language_modeling` 1 (predicted rows)",
        "- Temperature: 1\n",
        "- Teacher layers copied: 0, 2, 5",
        "- Training tokens: 2.0 M tokens",
        "- Seed: 0\n",
        "inherits its teacher's errors and biases",
        "not tested for bias, toxicity",
        "Meant for drafts and suggestions",
        "Out of scope: statements that are taken as facts",
        "- Commit: abc123",
    ):
        assert shown in text


@pytest.mark.parametrize(
    ("kind", "family", "head"), [("causal", "gpt2", "CausalLM"), ("masked", "bert", "MaskedLM")]
)
def test_the_snippets_run(make_run, losses, task_folder, capsys, kind, family, head):
    """Verbatim, with the folder in place of the path: generated or filled text, and the last
    hidden states."""
    folder, found = task_folder(family, head), {}
    codes = card(make_run(losses, kind=kind), kind=kind).split("```python\n")[1:]
    for code in codes:
        exec(code.split("```")[0].replace("path/to/this/folder", str(folder)), found)
    assert len(codes) == 2
    assert capsys.readouterr().out.strip()
    tokens = found["tokenizer"]("Some text.")["input_ids"]
    assert found["features"].shape == (1, len(tokens), found["body"].config.hidden_size)


def test_card_has_the_table_of_the_page(make_run, losses):
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


def test_hub_datasets_are_named_without_configuration_and_split(make_run, losses):
    recipe = make_recipe()
    sources = ["hf://owner/name:small#train", "hf://owner/name", "corpus.txt"]
    corpus = recipe.text.model_copy(update={"source": sources})
    run = make_run(losses)
    write_report(recipe.model_copy(update={"corpus": corpus}), run, [run])
    matter = front_matter((run.student / "README.md").read_text(encoding="utf-8"))
    assert matter["datasets"] == ["owner/name"]
