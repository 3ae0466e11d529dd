"""Near duplicates: estimates of the Jaccard similarity, and clusters whatever the shards."""

import random

import numpy as np
import pytest
from pydantic import ValidationError
from tests.cleaning.signatures import finder, random_text, removed_rows, text_of

from stillhouse.cleaning.deduplication import near_duplicates
from stillhouse.cleaning.deduplication.near_duplicates import (
    DEDUPLICATION,
    NearDuplicatesRecipe,
    bands_of,
    sign,
    similarity,
)


@pytest.fixture
def find(tmp_path):
    return finder(tmp_path, DEDUPLICATION)


def edited(text: str, number: int, seed: int = 0) -> str:
    """A text with `number` of its words replaced."""
    words = text.split()
    draw = random.Random(seed)
    for place in draw.sample(range(len(words)), number):
        words[place] = f"other{draw.randrange(10**9)}"
    return " ".join(words)


def jaccard(a: str, b: str, run_words: int) -> float:
    """By its definition, over sets of tuples of words."""
    sets = [
        {tuple(words[i : i + run_words]) for i in range(len(words) - run_words + 1)}
        for words in (a.split(), b.split())
    ]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


@pytest.mark.parametrize("run_words", [1, 3, 5])
@pytest.mark.parametrize("num_edits", [2, 10, 40])
def test_similarity_of_signatures_estimates_jaccard_similarity(run_words, num_edits):
    """With 1,024 permutations, within four standard errors of the Jaccard similarity of the sets of
    runs: sqrt(J (1 - J) / 1,024)."""
    settings = NearDuplicatesRecipe(run_words=run_words, permutations=1024)
    row = sign(settings)
    for seed in range(5):
        text = random_text(seed, 3000)  # longer than a block of products
        other = edited(text, 20 * num_edits, seed)
        expected = jaccard(text, other, run_words)
        (found,) = similarity(row(text), row(other))
        assert abs(found - expected) < 4 * (expected * (1 - expected) / 1024) ** 0.5


def test_estimates_have_no_bias_and_the_spread_of_independent_hash_functions():
    """Over 300 pairs with 128 permutations."""
    row = sign(NearDuplicatesRecipe(run_words=1))
    errors = []
    for seed in range(300):
        text = text_of(range(1000 * seed, 1000 * seed + 60))
        other = text_of(range(1000 * seed + 20, 1000 * seed + 80))
        (found,) = similarity(row(text), row(other))
        errors.append((found - 0.5) / (0.25 / 128) ** 0.5)
    assert abs(np.mean(errors)) < 4 / 300**0.5
    assert 0.85 < np.std(errors) < 1.15


def test_texts_that_share_nothing_are_not_similar():
    row = sign(NearDuplicatesRecipe())
    assert similarity(row(random_text(1)), row(random_text(2)))[0] < 0.01


def test_case_marks_and_white_space_do_not_count():
    row = sign(NearDuplicatesRecipe())
    assert np.array_equal(row("The cat sat, at last."), row("the  CAT\nsat at last"))


@pytest.mark.parametrize(
    ("threshold", "permutations", "bands", "rows"),
    [(0.4, 128, (42, 3), 3), (0.5, 128, (42, 3), 3), (0.8, 128, (16, 8), 8), (1, 16, (1, 16), 16)],
)
def test_bands_have_the_most_rows_that_find_nine_of_ten_at_the_threshold(
    threshold, permutations, bands, rows
):
    settings = NearDuplicatesRecipe(threshold=threshold, permutations=permutations)
    assert bands_of(settings) == bands

    def probability(rows: int) -> float:
        return 1 - (1 - threshold**rows) ** (permutations // rows)

    assert probability(rows) >= 0.9
    assert rows == permutations or probability(rows + 1) < 0.9


def test_documents_with_few_edits_are_removed_and_the_first_is_kept(find):
    """A text of 200 words of which 4 are others shares 0.9 of its runs; others share none."""
    texts = [random_text(seed, 200) for seed in range(4)]
    found = find([texts[0], texts[1]], [edited(texts[1], 4), texts[2]], [edited(texts[0], 4)])
    assert removed_rows(found) == [2, 4]
    assert found.sizes == {2: 2}
    assert [group.places for group in found.examples] == [[(0, 0), (2, 0)], [(0, 1), (1, 0)]]


def test_documents_below_the_threshold_are_kept(find):
    """Twenty pairs of similarity 0.54: above 0.4, below 0.7."""
    texts = [text_of(range(start, start + 200)) for start in range(0, 20_000, 1000)]
    others = [text_of(range(start + 60, start + 260)) for start in range(0, 20_000, 1000)]
    assert jaccard(texts[0], others[0], 3) == pytest.approx(0.54, abs=0.01)
    assert removed_rows(find(texts, others)) == list(range(20, 40))
    assert removed_rows(find(texts, others, threshold=0.7)) == []


def test_identical_documents_are_always_found(find):
    """Whatever their length and the settings; those without a word are not compared."""
    texts = ["one", "two words", "just three words", random_text(1, 5000), "", "..."]
    for settings in ({}, {"threshold": 1.0}, {"run_words": 5, "permutations": 16}):
        assert removed_rows(find(texts, texts, **settings)) == [6, 7, 8, 9]


def test_clusters_are_transitive(find):
    """Each is like the next and not like the one after it; only the first is kept."""
    chain = [text_of(range(start, start + 100)) for start in range(0, 200, 40)]
    assert jaccard(chain[0], chain[2], 3) < 0.15
    found = find(chain, threshold=0.35)
    assert removed_rows(found) == [1, 2, 3, 4]
    assert found.sizes == {5: 1}


def corpus() -> list[str]:
    texts = [random_text(seed) for seed in range(30)]
    return [*texts, *(edited(text, 2, seed) for seed, text in enumerate(texts[::2])), *texts[:5]]


def test_result_does_not_depend_on_shard_boundaries(find):
    texts = corpus()
    whole = find(texts)
    divided = find(texts[:1], [], texts[1:40], texts[40:])
    assert removed_rows(whole) == removed_rows(divided) == list(range(30, 50))
    assert whole.sizes == divided.sizes


def test_clusters_do_not_depend_on_the_order_of_the_documents(find):
    """The sizes are the same, and one of each cluster is kept."""
    texts = corpus()
    sizes = find(texts).sizes
    order = random.Random(0).sample(range(len(texts)), len(texts))
    found = find([texts[i] for i in order])
    assert found.sizes == sizes
    assert len(removed_rows(found)) == 20


def test_result_does_not_depend_on_how_much_is_in_memory(find, monkeypatch):
    texts = corpus()
    whole = find(texts)
    monkeypatch.setattr(near_duplicates, "PAIRS_AT_ONCE", 3)
    monkeypatch.setattr(near_duplicates, "BANDS_AT_ONCE", 1)
    monkeypatch.setattr(near_duplicates, "RUNS_AT_ONCE", 7)
    parts = find(texts)
    assert removed_rows(parts) == removed_rows(whole)
    assert (parts.sizes, parts.examples) == (whole.sizes, whole.examples)


def test_documents_that_an_earlier_step_removed_are_not_compared(find):
    text = random_text(1)
    found = find([text, text, text], without=[0])
    assert removed_rows(found) == [2]
    assert found.examples[0].places == [(0, 1), (0, 2)]


def test_a_bucket_of_many_equal_documents_is_one_cluster(find):
    """Far more than the documents that each is compared with."""
    found = find([random_text(1, 10)] * 200)
    assert found.sizes == {200: 1}
    assert removed_rows(found) == list(range(1, 200))


@pytest.mark.parametrize(
    "settings", [{"threshold": 0}, {"threshold": 1.1}, {"permutations": 30}, {"run_words": 0}]
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValidationError):
        NearDuplicatesRecipe(**settings)
