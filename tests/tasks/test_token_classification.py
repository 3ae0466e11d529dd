"""Token classification: one prediction per word, and entities with their offsets."""

import json

import numpy as np
import pytest
import torch

from stillhouse.errors import DataError
from stillhouse.tasks.registry import make_task
from stillhouse.tasks.settings import TokenClassificationTask
from stillhouse.tasks.tagged import read_tagged
from stillhouse.tasks.token_classification import tags_in, words_in, words_of
from stillhouse.tokens.batches import IGNORED

LABELS = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
LONG = "The old distiller of Islay, nobody asked, turns what is thin into what is strong. " * 6


def oracle(task, examples, tokenizer):
    """Predictions from logits that favor the targets, and are random elsewhere."""
    found = []
    for example, sequences in zip(examples, task.encode(examples, tokenizer), strict=True):
        outputs = []
        for sequence in sequences:
            said = np.where(sequence.target == IGNORED, len(task.labels) - 1, sequence.target)
            outputs.append(
                9 * torch.nn.functional.one_hot(torch.from_numpy(said), len(task.labels))
            )
        found.append(task.predict(example, sequences, outputs))
    return found


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2"])
@pytest.mark.parametrize("length", [8, 11, 64])
def test_every_word_is_predicted_once_in_long_sentences(tokenizer_of, family, length):
    """Also where a sequence ends inside a word."""
    words = words_in(LONG)
    tags = tuple(LABELS[1 + place % 4] for place in range(len(words.spans)))
    example = words_of([LONG[start:end] for start, end in words.spans], tags)
    task = make_task(TokenClassificationTask(max_length=length), LABELS)
    (sequences,) = task.encode([example], tokenizer_of(family))
    assert all(len(each.input_ids) <= length for each in sequences)
    asked = [int(word) for each in sequences for word in each.source if word >= 0]
    assert asked == list(range(len(words.spans)))
    (found,) = oracle(task, [example], tokenizer_of(family))
    assert tuple(found.tags) == tags


def test_word_without_a_token_is_tagged_o(tokenizer_of):
    """The words around it keep their own tags."""
    words = words_of(["the", "\u200b", "sea"], ["B-PER", "B-LOC", "I-LOC"])
    task = make_task(TokenClassificationTask(), LABELS)
    (found,) = oracle(task, [words], tokenizer_of("bert"))
    assert found.tags == ["B-PER", "O", "I-LOC"]


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2"])
def test_entities_have_their_offsets_in_the_text(tokenizer_of, family):
    """From the first character to the last, the spaces inside as they are; two that touch are
    two."""
    text = "In  the old   house, London knew"
    words = words_in(text)
    tags = ["O", "B-LOC", "I-LOC", "I-LOC", "B-PER", "I-LOC", "O"]
    task = make_task(TokenClassificationTask(), LABELS)
    tagged = words.__class__(text, words.spans, tuple(tags))
    (found,) = oracle(task, [tagged], tokenizer_of(family))
    entities = task.result(found)
    assert [(each["entity_group"], each["word"]) for each in entities] == [
        ("LOC", "the old   house"),
        ("PER", ","),
        ("LOC", "London"),
    ]
    for each in entities:
        assert text[each["start"] : each["end"]] == each["word"]
        assert 0.99 < each["score"] <= 1


def test_entity_f1_is_micro_averaged(tokenizer_of):
    """One of two entities found, one of two predicted correct."""
    task = make_task(TokenClassificationTask(), LABELS)
    examples = [words_of(["a", "b"], ["B-PER", "I-PER"]), words_of(["c"], ["B-LOC"])]
    said = [words_of(["a", "b"], ["B-PER", "O"]), words_of(["c"], ["B-LOC"])]
    measures = task.metric_samples(oracle(task, said, tokenizer_of("bert")), examples)
    assert measures["strict"].value == measures["default"].value == 0.5


def test_an_unknown_tag_is_refused_with_its_row(tmp_path):
    """A model has no output for it."""
    path = tmp_path / "data.conll"
    path.write_text("a O\nb B-LOC\n\nc O\nd B-ORG\n")
    task = make_task(TokenClassificationTask(), LABELS)
    with pytest.raises(DataError, match=r"row 4: the tag 'B-ORG' is not one of the model's"):
        task.read(path)


def test_both_tags_of_each_kind_are_labels():
    """Also where the data shows one of them alone."""
    assert tags_in([["O", "B-PER"], ["I-LOC"]]) == ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]


@pytest.mark.e2e
def test_gold_tags_score_one(shared_data, tokenizer_of):
    """Reading, tokens, windows and metrics lose no entity of WNUT 2017."""
    recipe = TokenClassificationTask(max_length=24)
    file = shared_data / "ner" / "wnut17" / "dev.conll"
    labels = tags_in(sentence.tags for sentence in read_tagged(file, TokenClassificationTask()))
    task = make_task(recipe, labels)
    examples = task.read(file)
    found = oracle(task, examples, tokenizer_of("roberta"))
    assert task.metric_samples(found, examples)["strict"].value == pytest.approx(1.0)


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2"])
@pytest.mark.parametrize("odd", ["", " ", "\u200b", "\x07"])
def test_words_without_a_token_keep_the_tags_of_the_others(tmp_path, tokenizer_of, family, odd):
    """Empty ones, white space, characters that a tokenizer drops."""
    path = tmp_path / "rows.jsonl"
    rows = [
        {"tokens": ["the", odd, "sea", odd], "ner_tags": ["B-PER", "B-LOC", "I-LOC", "O"]},
        {"tokens": [odd], "ner_tags": ["O"]},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = make_task(TokenClassificationTask(max_length=16), LABELS)
    examples = task.read(path)
    first, second = oracle(task, examples, tokenizer_of(family))
    assert (first.tags[0], first.tags[2]) == ("B-PER", "I-LOC")
    assert len(first.tags) == 4
    assert second.tags == ["O"]
    assert all(len(each.input_ids) for own in task.encode(examples, tokenizer_of(family))
               for each in own)  # fmt: skip


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_word_spanning_several_windows_is_predicted_once(tokenizer_of, family):
    """At its first token; the word after it keeps its own tag."""
    words = words_of(["the", "distiller" * 11, "sea"], ["O", "B-PER", "B-LOC"])
    task = make_task(TokenClassificationTask(max_length=8), LABELS)
    (sequences,) = task.encode([words], tokenizer_of(family))
    assert len(sequences) > 3
    assert [int(word) for each in sequences for word in each.source if word >= 0] == [0, 1, 2]


@pytest.mark.parametrize("scheme", ["IOBES", "BILOU", "IO"])
def test_model_is_scored_in_its_own_tag_scheme(tokenizer_of, scheme):
    """Gold tags have a strict F1 of 1; a shortened span does not count."""
    end, single = {"IOBES": "ES", "BILOU": "LU", "IO": "II"}[scheme]
    labels = ["O", *dict.fromkeys(f"{letter}-PER" for letter in f"BI{end}{single}")]
    if scheme == "IO":
        labels = ["O", "I-PER"]
    task = make_task(TokenClassificationTask(), labels)
    assert task.scheme == scheme  # pyright: ignore[reportAttributeAccessIssue]
    examples = [
        words_of(["the", "old", "sea", "a"], ["B-PER", "I-PER", "I-PER", "O"]),
        words_of(["sea"], ["B-PER"]),
    ]
    found = oracle(task, examples, tokenizer_of("bert"))
    measures = task.metric_samples(found, examples)
    assert measures["strict"].value == measures["default"].value == 1.0
    assert [each["word"] for each in task.result(found[0])] == ["the old sea"]
    found[0].tags[2] = "O"
    assert task.metric_samples(found, examples)["strict"].value < 1
