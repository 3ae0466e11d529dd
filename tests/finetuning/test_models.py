"""Models of a task: the same labels in another order are matched by name."""

import pytest
import torch
from tests.tiny_models import EVERY_FAMILY

from stillhouse.finetuning.models import load_start, load_trained
from stillhouse.models.task_models import load_task_model
from stillhouse.tasks.registry import make_task
from stillhouse.tasks.settings import ClassificationTask, TokenClassificationTask

IDS = torch.arange(5, 12)[None]


def logits_of(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_outputs_are_permuted_by_the_names_of_labels(task_folder, family):
    """Of a teacher, and of a model to train further; generic names keep their positions."""
    own = make_task(ClassificationTask(labels=["CONTRADICTION", "ENTAILMENT", "NEUTRAL"]))
    folder = task_folder(family, own.head, **own.model_settings)
    expected = logits_of(load_task_model(folder, own.head, {}))[..., [1, 2, 0]]
    task = make_task(ClassificationTask(labels=["entailment", "neutral", "contradiction"]))
    assert torch.allclose(logits_of(load_trained(task, folder)), expected)
    started = load_start(task, folder, seed=0)
    assert torch.allclose(logits_of(started), expected)
    assert started.config.id2label == {0: "entailment", 1: "neutral", 2: "contradiction"}


def test_positions_of_generic_names_are_kept(task_folder):
    """LABEL_1 is the second label."""
    folder = task_folder("bert", "SequenceClassification", num_labels=3)
    expected = logits_of(load_task_model(folder, "SequenceClassification", {}))
    task = make_task(ClassificationTask(labels=["entailment", "neutral", "contradiction"]))
    assert torch.equal(logits_of(load_trained(task, folder)), expected)


def test_tags_are_permuted_by_their_names(task_folder):
    """A teacher of entities that puts O last."""
    own = make_task(TokenClassificationTask(), ["B-PER", "I-PER", "O"])
    folder = task_folder("bert", own.head, **own.model_settings)
    expected = logits_of(load_task_model(folder, own.head, {}))[..., [2, 0, 1]]
    task = make_task(TokenClassificationTask(), ["O", "B-PER", "I-PER"])
    assert torch.allclose(logits_of(load_trained(task, folder)), expected)
