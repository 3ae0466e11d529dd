"""Contamination: documents that share a run of words or a short text with evaluation sets."""

import json

import numpy as np
import pytest

from stillhouse.cleaning.step import Page
from stillhouse.cleaning.steps import contamination
from stillhouse.cleaning.steps.contamination import STEP, ContaminationRecipe
from stillhouse.errors import DataError

REASON = "contains a part of an evaluation set"
WORDS = "In the year 1815 the emperor left the island and marched with a thousand men to Paris"
SHORT = "What is the capital of the largest country?"  # 8 words
TEN = "What is the capital of the largest country of Africa?"


@pytest.fixture
def judge(tmp_path):
    """The step's answer for a text, given the rows of an evaluation set."""

    def made(*rows, **settings):
        file = tmp_path / "set.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        judged = STEP.make(ContaminationRecipe(files=[str(file)], **settings))
        return lambda text: judged(Page("id", text))

    return made


def test_a_shared_run_of_thirteen_words_is_found(judge):
    """Case and marks do not count; twelve words are not enough."""
    of = judge({"context": WORDS})
    thirteen = " ".join(WORDS.split()[2:15])
    assert of(f"He read: {thirteen.upper().replace(' ', ', ')}!") == REASON
    assert of(" ".join(thirteen.split()[:12]) + " women to Rome and beyond the sea") is None
    assert of("") is None


def test_a_short_text_is_found_where_all_of_it_occurs(judge):
    of = judge({"question": SHORT}, {"question": TEN})
    assert of(f"Tell me: {SHORT} I know.") == REASON
    assert of("Is the capital of the largest country far away from here?") is None
    only_long = judge({"question": TEN})
    assert only_long(f"Tell me: {SHORT} I know.") is None
    assert only_long(f"Tell me: {TEN} I know.") == REASON


def test_a_text_below_the_fewest_words_does_not_count(judge):
    row = {"question": "Who was the first of them?", "context": WORDS}
    assert judge(row)("Who was the first of them?") is None
    assert judge(row, min_words=6)("Who was the first of them?") == REASON


def test_a_text_of_fewer_words_than_a_run_counts_where_runs_are_short(judge):
    """With runs of 5 words, texts of 5 words are runs, whatever `min_words` is."""
    of = judge({"question": "Where do the children play?"}, run_words=5)
    assert of("Ask where do the children play today") == REASON
    assert of("where do the children") is None


def test_every_text_of_nested_records_counts(judge):
    """Lists of texts, objects within objects, and the words of a sentence; not numbers."""
    of = judge(
        {"answers": {"text": ["short", TEN], "start": [1, 2]}, "label": 3},
        {"tokens": WORDS.split(), "tags": [0, 1]},
    )
    assert of(TEN) == REASON
    assert of(WORDS) == REASON


def test_paragraphs_of_a_text_file_are_texts_of_their_own(tmp_path):
    file = tmp_path / "set.txt"
    file.write_text(f"{SHORT}\n\n{WORDS}\n")
    judged = STEP.make(ContaminationRecipe(files=[str(file)]))
    assert judged(Page("id", f"so {SHORT}")) == REASON


def test_the_same_as_a_search_word_by_word(judge):
    """Random documents of few different words, with texts of 3 to 9 words and runs of 6."""
    draw = np.random.default_rng(0)

    def words(number: int) -> list[str]:
        return [f"w{word}" for word in draw.integers(0, 3, number)]

    texts = [words(number) for number in (3, 4, 5, 5, 6, 7, 9)]
    of = judge(*({"text": " ".join(text)} for text in texts), run_words=6, min_words=4)
    runs = [text[i : i + 6] for text in texts for i in range(len(text) - 5)]
    runs += [text for text in texts if 4 <= len(text) < 6]
    found = []
    for _ in range(200):
        own = words(int(draw.integers(0, 30)))
        expected = any(own[i : i + len(run)] == run for run in runs for i in range(len(own)))
        assert (of(" ".join(own)) is not None) == expected
        found.append(expected)
    assert 20 < sum(found) < 180


def test_passes_over_a_document_do_not_grow_with_the_lengths_of_short_texts(judge, monkeypatch):
    """Two, whatever the number of lengths."""
    of = judge(*({"text": " ".join(f"w{n}" for n in range(length))} for length in range(8, 40)),
               run_words=40)  # fmt: skip
    lengths = []
    real = contamination.hash_runs
    monkeypatch.setattr(
        contamination,
        "hash_runs",
        lambda hashes, length: lengths.append(length) or real(hashes, length),
    )
    assert of(" ".join(f"v{n}" for n in range(500))) is None
    assert lengths == [40, 8]


def test_sets_without_a_text_that_is_long_enough_are_refused(judge):
    with pytest.raises(DataError, match="no text of at least 8 words"):
        judge({"question": "Why?"})


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(DataError, match=r"there is no file 'nowhere\.jsonl'"):
        list(STEP.files(ContaminationRecipe(files=["nowhere.jsonl"])))
