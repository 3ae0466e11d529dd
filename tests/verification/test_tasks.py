"""`stillhouse verify` for models of tasks: every check holds, and fails on a planted mistake."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.task_models import SENTENCES, make_task_folder

from stillhouse.finetuning import objective
from stillhouse.models.task_models import TaskHead
from stillhouse.recipe_file import parse_recipe
from stillhouse.tasks.encoded import TaskBatch
from stillhouse.training.step import TrainStep
from stillhouse.verification.checks import Check
from stillhouse.verification.tasks import TaskCase, task_case, task_checks

WORDS = SENTENCES[0].split()
ROWS: dict[str, tuple[TaskHead, dict[str, Any], list[Any]]] = {
    "classification": (
        "SequenceClassification",
        {"labels": ["no", "yes"]},
        [{"text": " ".join(WORDS[: 3 + n]), "label": ["no", "yes"][n % 2]} for n in range(9)],
    ),
    "regression": (
        "SequenceClassification",
        {"columns": {"target": "score"}},
        [{"text": " ".join(WORDS[: 3 + n]), "score": n / 4} for n in range(9)],
    ),
    "token_classification": (
        "TokenClassification",
        {"labels": ["O", "B-THING"]},
        [{"tokens": WORDS[: 3 + n], "ner_tags": ["B-THING", *["O"] * (2 + n)]} for n in range(9)],
    ),
    "embeddings": (
        "Body",
        {"group": 4},
        [{"text": " ".join(WORDS[: 3 + n % 9])} for n in range(24)],
    ),
}
RECIPE = """
teacher: {folder}
finetuning:
  task:
    task: {task}
    data: {{train: {train}, validation: {train}}}
    models:
      student: {{start: teacher, layer_map: 1, teacher: teacher}}
    losses: {losses}
"""


@pytest.fixture(scope="module", params=[*ROWS, "question_answering"])
def case(request: Any, tmp_path_factory: pytest.TempPathFactory) -> TaskCase:
    """A tiny teacher and its student of one layer, on a few examples."""
    folder = tmp_path_factory.mktemp(request.param)
    kind, losses = request.param, {"hard_label": 0.5, "soft_target": 0.5}
    if kind == "question_answering":
        head: TaskHead = "QuestionAnswering"
        settings: dict[str, Any] = {"max_length": 48}
        train = folder / "squad.json"
        train.write_text(json.dumps(squad()), encoding="utf-8")
    else:
        head, settings, rows = ROWS[kind]
        train = folder / "train.jsonl"
        train.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    if kind == "embeddings":
        losses = {"hard_label": 0.0, "soft_target": 0.0, "embedding_cosine": 1.0, "similarity": 1.0}
    config: dict[str, Any] = {}
    if kind == "regression":
        config = {"num_labels": 1}
    elif "labels" in settings:
        config = {"id2label": dict(enumerate(settings["labels"])), "num_labels": 2}
    model = make_task_folder(folder / "teacher", "bert", head, **config)
    task = {"kind": kind, "max_length": 32, **settings}
    text = RECIPE.format(
        folder=model, task=json.dumps(task), train=train, losses=json.dumps(losses)
    )
    recipe = parse_recipe(text)
    return task_case("task", recipe.finetuning["task"], recipe, folder, offline=True)


def squad() -> dict[str, Any]:
    """Six questions about two passages."""
    paragraphs = [
        {
            "context": sentence,
            "qas": [
                {
                    "id": f"{number}-{n}",
                    "question": f"What is word {n}?",
                    "answers": [
                        {"text": word, "answer_start": sentence.index(word)}
                        for word in [sentence.split()[n]]
                    ],
                }
                for n in range(4)
            ],
        }
        for number, sentence in enumerate(SENTENCES[:2])
    ]
    return {"data": [{"title": "still", "paragraphs": paragraphs}]}


def failed(case: TaskCase, folder: Path) -> set[str]:
    return {check.name for check in task_checks(case, folder) if not check.passed}


def test_every_check_passes(case: TaskCase, tmp_path: Path) -> None:
    """And every loss that this kind of task has was compared."""
    checks: dict[str, Check] = {each.name: each for each in task_checks(case, tmp_path)}
    assert {name for name, check in checks.items() if not check.passed} == set()
    own = {"hard_label", *case.losses().active()} - {"relation"}
    assert own | {"student = teacher", "split of a step", "batched vs alone"} == set(checks)


def test_padding_that_is_seen_is_found(
    case: TaskCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attention looks at padding too."""

    def visible(batch: TaskBatch, *, causal: bool) -> torch.Tensor:
        return torch.ones_like(batch.attention_mask, dtype=torch.bool)[:, None, :].expand(
            -1, batch.attention_mask.shape[1], -1
        )

    monkeypatch.setattr(TaskBatch, "visible", visible)
    assert "batched vs alone" in failed(case, tmp_path)


def test_a_dropped_micro_batch_is_found(
    case: TaskCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last of several never contributes its gradient."""
    original = TrainStep._micro_batches

    def all_but_the_last(steps: TrainStep) -> Iterator[Any]:
        parts = list(original(steps))
        yield from parts[:-1] or parts

    monkeypatch.setattr(TrainStep, "_micro_batches", all_but_the_last)
    assert failed(case, tmp_path) == {"split of a step"}


def test_a_soft_target_of_another_temperature_is_found(
    case: TaskCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The divergence is right for a copy, and wrong for everything else; values and vectors have
    none."""
    original = objective.soft_target_loss
    monkeypatch.setattr(
        objective,
        "soft_target_loss",
        lambda student, teacher, *, temperature: original(student, teacher, temperature=3.0),
    )
    assert failed(case, tmp_path) == (
        {"soft_target"} if case.task.output_kind == "classes" else set()
    )
