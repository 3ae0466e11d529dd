"""What a reader of a task model's README.md sees, and what its code does."""

import re
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from stillhouse.recipe_file import parse_recipe
from stillhouse.report.cards import task_card
from stillhouse.report.tasks import TaskResult
from stillhouse.runs.manifest import Inputs, commit_folder
from stillhouse.runs.paths import RunFolder

HEADS = {
    "classification": "SequenceClassification",
    "regression": "SequenceClassification",
    "question_answering": "QuestionAnswering",
    "token_classification": "TokenClassification",
    "embeddings": "Body",
}
RECIPE = """
seed: {seeds}
teacher: {teacher}
finetuning:
  the task:
    task: {{kind: {kind}, max_length: 32}}
    data: {{train: /home/someone/train.jsonl, validation: dev.jsonl, num_train: 500}}
    models:
      teacher: {{start: teacher}}
      student: {{start: teacher, layer_map: 1}}
      distilled: {{start: teacher, layer_map: 1, teacher: teacher}}
    losses: {losses}
report: {{license: apache-2.0}}
"""


def interval(value, spread):
    return {"value": value, "low": value - spread, "high": value + spread}


def cost(parameters, speed):
    return {
        "parameters": parameters,
        "size_bytes": parameters * 4,
        "forward_tokens_per_second": speed,
    }


@pytest.fixture
def card(tmp_path):
    """card(kind, model, ...): the text of one model's README.md, with handmade scores."""

    def make(
        kind="classification",
        model="distilled",
        *,
        teacher="minilm",
        seeds=(4, 7),
        gain=0.02,
        edit=lambda text: text,
    ):
        vectors = kind == "embeddings"
        losses = "{hard_label: 0, soft_target: 0, similarity: 1}" if vectors else "{}"
        text = RECIPE.format(kind=kind, teacher=teacher, seeds=list(seeds), losses=losses)
        recipe = parse_recipe(edit(text.replace("the task", "the_task")))
        metric = recipe.finetuning["the_task"].task.metric
        scores = [
            {
                "metric": metric,
                "splits": {
                    "validation": {
                        "models": {
                            name: {metric: interval(value + place / 100, 0.0125)}
                            for name, value in (("teacher", 0.9), ("distilled", 0.85))
                        },
                        "differences": {}
                        if gain is None
                        else {
                            "distilled minus student": {metric: interval(gain + place / 100, 0.015)}
                        },
                    }
                },
                "costs": {
                    "teacher": cost(22_700_000, 1_000.0),
                    "distilled": cost(17_400_000, 2_000.0 + place),
                },
                "task": {"kind": kind},
                "machine": {"processor": "a <processor>", "cores": 2},
                "versions": {"torch": "2.13.0"},
                "commit": "abc1234",
            }
            for place, _ in enumerate(seeds)
        ]
        run = RunFolder.at(tmp_path / "run")
        facts = {"training": {"tokens": 1_500_000}}
        if not (folder := run.finetuned("the_task") / model).exists():
            with commit_folder(folder, Inputs("x", {}, {}), facts) as made:
                (made / "config.json").write_text("{}")
        task = TaskResult("the_task", scores, [[] for _ in seeds])
        return task_card(recipe, "my run", task, seeds[0], run, model)

    return make


def front_matter(text):
    return yaml.safe_load(text.split("---\n")[1])


@pytest.mark.parametrize("kind", HEADS)
def test_usage_snippet_of_the_card_runs(card, task_folder, monkeypatch, kind, capsys):
    """Verbatim, with the folder in place of the path."""
    single = {"num_labels": 1, "problem_type": "regression"} if kind == "regression" else {}
    folder = task_folder("bert", HEADS[kind], **single)
    code = card(kind).split("```python\n")[1].split("```")[0]
    exec(code.replace("path/to/this/folder", str(folder)), {})
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize(
    ("kind", "tag", "metric"),
    [
        ("classification", "text-classification", "accuracy"),
        ("question_answering", "question-answering", "f1"),
        ("token_classification", "token-classification", "f1"),
        ("embeddings", "sentence-similarity", "spearmanr"),
    ],
)
def test_front_matter_has_the_metadata_of_the_hub(card, kind, tag, metric):
    """Under the name that the packaged weights have on the hub, with the scores of the model."""
    matter = front_matter(card(kind))
    [entry] = matter.pop("model-index")
    assert entry["name"] == "my run-the_task-distilled"
    [result] = entry["results"]
    assert result["task"] == {"type": tag}
    assert result["dataset"] == {"name": "the_task", "type": kind, "split": "validation"}
    assert [(each["type"], each["value"]) for each in result["metrics"]] == [(metric, 0.85)]
    assert matter == {
        "metrics": [metric],
        "license": "apache-2.0",
        "base_model": "sentence-transformers/all-MiniLM-L6-v2",
        "base_model_relation": "finetune",
        "tags": ["stillhouse", "distillation"],
        "pipeline_tag": tag,
        "library_name": "sentence-transformers" if kind == "embeddings" else "transformers",
    }
    assert front_matter(card(kind, "student"))["tags"] == ["stillhouse"]
    loaded = ModelCard(card(kind), ignore_metadata_errors=False)
    data: Any = loaded.data
    assert [each.metric_type for each in data.eval_results] == [metric]
    assert front_matter(str(loaded)) == front_matter(card(kind))


def test_card_has_scores_and_differences_of_every_seed(card):
    text = card()
    assert "| distilled minus student | +0.0250 (+0.0200 to +0.0300) |" in text
    for gain in ("+0.0200 (+0.0050 to +0.0350)", "+0.0300 (+0.0150 to +0.0450)"):
        assert gain in text
    assert "The models with a teacher are better: the teacher helped." in text
    assert "One seed: the spread between seeds is unknown" not in text
    assert "One seed: the spread between seeds is unknown" in card(seeds=(4,))


def test_card_has_parameters_size_and_speed_of_each_model(card):
    """Ratios are the quotients of the cells, to the teacher."""
    text = card()
    assert "| teacher | 22.7 M | 90.8 MB | 1,000 tokens/s |" in text
    distilled = "17.4 M (77% of teacher) | 69.6 MB (77% of teacher) | 2,000 tokens/s (2.00"
    assert f"| distilled | {distilled}" in text


def test_teacher_without_a_comparable_model_has_an_unknown_effect(card):
    """The taught model has no counterpart without a teacher: that is said, and no verdict."""

    def without_the_student(text):
        return text.replace("      student: {start: teacher, layer_map: 1}\n", "")

    text = card(gain=None, edit=without_the_student)
    assert "No model had a teacher." not in text
    assert "The effect of the teacher is unknown." in text
    shown = (
        "the_task: distilled has a teacher, but no model without one starts from the same weights"
    )
    assert shown in text
    assert "`A minus B`" not in text


def test_models_without_a_teacher_are_reported_as_such(card):
    text = card(
        model="student", gain=None, edit=lambda text: text.replace(", teacher: teacher}", "}")
    )
    assert "No model had a teacher." in text
    assert "`A minus B`" not in text


def test_difference_within_its_interval_is_not_significant(card):
    text = card(seeds=(4,), gain=0.001)
    assert "The effect of the teacher is not significant." in text
    assert "no significant difference: distilled scores +0.0010" in text


@pytest.mark.parametrize(
    ("kind", "label"), [("token_classification", "F1, strict"), ("classification", "accuracy")]
)
def test_the_metric_is_named(card, kind, label):
    """The F1 of entities is called F1."""
    assert f"|  | {label} |" in card(kind)


def test_all_scores_of_a_metric_have_as_many_decimals(card):
    """0.9 beside 0.8303 would look like another precision."""
    table = card(seeds=(4,)).split("## Results")[1].split("Size and speed")[0]
    numbers = re.findall(r"\d+\.\d+", table)
    assert len(numbers) == 9
    assert {len(number.partition(".")[2]) for number in numbers} == {4}


def test_card_states_how_the_model_was_trained(card):
    text = card()
    for shown in (
        "- Layers copied: 1, spread evenly",
        "- Teacher: `teacher`, another model of the task",
        "- Examples: 500 of `train.jsonl`",
        "- Losses and weights: `hard_label` 0.5, `soft_target` 0.5",
        "- Training tokens: 1.5 M",
        "- Seed: 4",
        "a &lt;processor>",
        "- Commit: abc1234",
    ):
        assert shown in text
    assert "- Teacher: none" in card(model="student")
    assert "Losses and weights" not in card(model="student")


def test_local_initial_weights_are_not_published(card):
    """Its path is only in the recipe, which is needed to make the run again."""
    text = card(teacher="/home/someone/secret")
    prose, _, recipe = text.partition("```yaml")
    assert "base_model" not in front_matter(text)
    assert "someone" not in prose
    assert "(secret)" in prose
    assert re.search("teacher: /home/someone/secret", recipe)
