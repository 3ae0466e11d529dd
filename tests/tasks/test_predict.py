"""Predictions in batches equal predictions one by one."""

import numpy as np
import pytest
import torch
from tests.tiny_models import EVERY_FAMILY, make_config

from stillhouse.errors import ModelError
from stillhouse.models.task_models import load_task_model, random_task_model
from stillhouse.tasks.encoded import TextExample
from stillhouse.tasks.registry import make_task
from stillhouse.tasks.settings import (
    ClassificationTask,
    EmbeddingsTask,
    QuestionAnsweringTask,
    RegressionTask,
    TokenClassificationTask,
)
from stillhouse.tasks.squad import Question
from stillhouse.tasks.task import batches_by_length, predict
from stillhouse.tasks.token_classification import words_in
from stillhouse.tokens.tokenizer import load_tokenizer

TEXTS = (
    "The still turns what is thin",
    "Who?",
    "A cold wind, a warm fire: nobody asked, but everyone in London knew",
    "drop by drop, and then once more.",
    "the sea",
)
PASSAGE = "The distiller of Islay does, in the old house by the sea, where a cold wind turns. " * 3
TASKS = {
    "classification": (
        ClassificationTask(labels=["no", "yes", "maybe"], max_length=48),
        [TextExample(text, "and then " * (place + 1)) for place, text in enumerate(TEXTS)],
    ),
    "multi_label": (
        ClassificationTask(labels=["no", "yes", "maybe"], multi_label=True, max_length=48),
        [TextExample(text) for text in TEXTS],
    ),
    "regression": (RegressionTask(max_length=48), [TextExample(text) for text in TEXTS]),
    "question_answering": (
        QuestionAnsweringTask(max_length=48, doc_stride=8, max_question_length=20),
        [
            Question(str(place), text, PASSAGE[: 60 + 40 * place], ())
            for place, text in enumerate(TEXTS)
        ],
    ),
    "token_classification": (
        TokenClassificationTask(max_length=16),
        [words_in(text) for text in TEXTS],
    ),
    "embeddings": (EmbeddingsTask(max_length=48), [TextExample(text) for text in TEXTS]),
}


HEADLESS = [
    ("question_answering", "gemma2"), ("question_answering", "gemma3_text"),
    ("question_answering", "phi3"), ("question_answering", "olmo2"),
    ("token_classification", "gemma3_text"), ("token_classification", "olmo2"),
    ("token_classification", "opt"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "family"), HEADLESS)
def test_a_head_that_transformers_does_not_have_is_refused(name, family):
    """By the name of the architecture, with those that have it."""
    head = make_task(TASKS[name][0], ["O", "B-PER", "I-PER"]).head
    with pytest.raises(ModelError, match=f"no {head} head for the architecture {family}.*qwen3"):
        random_task_model(make_config(family), head, {})


# Every task with every family that has its head.
PAIRS = [
    pytest.param(name, *family.values, id=f"{name}-{family.id}", marks=family.marks)
    for name in TASKS
    for family in EVERY_FAMILY
    if (name, family.id) not in HEADLESS
]


@pytest.mark.parametrize(("name", "family"), PAIRS)
def test_predictions_are_independent_of_batching(task_folder, name, family):
    """Neither the padding nor the order of a batch is seen."""
    recipe, examples = TASKS[name]
    task = make_task(recipe, ["B-ORG", "B-PER", "I-PER"])  # without O: each word is in some span
    folder = task_folder(family, task.head, **task.model_settings)
    model, tokenizer = load_task_model(folder, task.head, {}), load_tokenizer(folder)
    together = [task.result(each) for each in answers(task, model, tokenizer, examples)]
    for example, found in zip(examples, together, strict=True):
        alone = task.result(answers(task, model, tokenizer, [example])[0])
        assert flat(found) == pytest.approx(flat(alone), abs=2e-5)
    assert len({str(flat(each)) for each in together}) > 1


def answers(task, model, tokenizer, examples) -> list:
    return predict(task, model, examples, task.encode(examples, tokenizer))


def flat(result) -> list:
    """The numbers and words of a result in order."""
    if isinstance(result, dict):
        result = list(result.values())
    if isinstance(result, list):
        return [leaf for each in result for leaf in flat(each)]
    return [result]


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2"])
def test_classification_equals_transformers(task_folder, family):
    """The probabilities of transformers' own forward pass over one text."""
    task = make_task(TASKS["classification"][0])
    folder = task_folder(family, task.head, **task.model_settings)
    model, tokenizer = load_task_model(folder, task.head, {}), load_tokenizer(folder)
    found = answers(task, model, tokenizer, [TextExample(TEXTS[3])])[0]
    with torch.no_grad():
        inputs = tokenizer(TEXTS[3], return_tensors="pt", return_token_type_ids=family == "bert")
        expected = model(**inputs).logits[0].softmax(-1)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_embedding_is_the_mean_of_unpadded_tokens(task_folder, pooling):
    """Of length 1, by an independent computation in float64."""
    recipe = EmbeddingsTask(max_length=48, pooling=pooling)
    task = make_task(recipe)
    folder = task_folder("bert", "Body")
    model, tokenizer = load_task_model(folder, "Body", {}), load_tokenizer(folder)
    examples = [TextExample(text) for text in TEXTS]
    for text, found in zip(TEXTS, answers(task, model, tokenizer, examples), strict=True):
        with torch.no_grad():
            hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].double()
        vector = hidden.mean(0) if pooling == "mean" else hidden[0]
        np.testing.assert_allclose(found[0], vector / vector.norm(), atol=1e-6)


def test_batches_by_length_cover_all_sequences_with_little_padding(tokenizer_of):
    """For any lengths; a sequence longer than a batch is alone."""
    task = make_task(RegressionTask(max_length=64))
    texts = ["sea " * count for count in (1, 50, 3, 30, 2, 31, 1, 29, 7)]
    encoded = task.encode([TextExample(text) for text in texts], tokenizer_of("bert"))
    sequences = [each[0] for each in encoded]
    batches = list(batches_by_length(sequences, 64))
    assert sorted(place for places in batches for place in places) == list(range(len(texts)))
    for places in batches:
        longest = max(len(sequences[place].input_ids) for place in places)
        assert len(places) == 1 or longest * len(places) <= 64
