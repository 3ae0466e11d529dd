"""Real sentences: the same ones packed and padded, in the micro-batches of 2019's sampler."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from benchmarks.comparison import Against2019OnSentences, compare
from benchmarks.ours import Pair
from benchmarks.sentences import Drawn, Source, draw, packed, padded

from stillhouse.errors import DataError
from stillhouse.section import Rows

WORDS = [f"w{number}" for number in range(90)]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *WORDS]


def write_source(folder: Path, num_sentences: int) -> Source:
    """Sentences of 2 to 21 words as one JSON document, and their vocabulary."""
    random = np.random.default_rng(0)
    lengths = random.integers(2, 22, num_sentences)
    texts = ["W" + " ".join(random.choice(WORDS, size))[1:] + "." for size in lengths]
    text = folder / "text.jsonl"
    text.write_text(json.dumps({"text": " ".join(texts)}) + "\n")
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    return Source(text, folder / "vocab.txt", longest=24)


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return write_source(tmp_path, 1000)


@pytest.fixture
def drawn(source: Source) -> Drawn:
    return draw(source, seed=0)


def as_pairs(inputs: np.ndarray, labels: np.ndarray) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(inputs.tolist()), tuple(labels.tolist())


def test_packing_keeps_each_sentence_whole_and_loses_none(drawn: Drawn):
    """Segments of the packed batch are the sentences, tokens and labels alike."""
    batch = packed(drawn.all, length=24)
    found = []
    for row in range(len(batch.input_ids)):
        for segment in range(1, int(batch.segment_ids[row].max()) + 1):
            place = batch.segment_ids[row] == segment
            assert batch.position_ids[row][place].tolist() == list(range(int(place.sum())))
            inputs, labels = batch.input_ids[row][place], batch.labels[row][place]
            found.append(as_pairs(inputs.numpy(), labels.numpy()))
    expected = [as_pairs(sentence.input_ids, sentence.labels) for sentence in drawn.all]
    assert sorted(found) == sorted(expected)


def test_micro_batches_hold_the_same_sentences_grouped_and_not(drawn: Drawn):
    """Five of about the same length, or eight as they come: each sentence once in both."""
    assert [len(group) for group in drawn.grouped] == [5] * 8
    assert [len(group) for group in drawn.ungrouped] == [8] * 5
    grouped, ungrouped = (
        sorted(as_pairs(s.input_ids, s.labels) for group in groups for s in group)
        for groups in (drawn.grouped, drawn.ungrouped)
    )
    assert grouped == ungrouped
    for group in drawn.grouped:
        lengths = [len(sentence.input_ids) for sentence in group]
        assert max(lengths) - min(lengths) < 4
    spans = [np.ptp([len(s.input_ids) for s in group]) for group in drawn.ungrouped]
    assert max(spans) > 8


def test_a_sentence_is_a_sentence_in_cls_and_sep(drawn: Drawn):
    """Cut at stops: one at the end, none before; about 15 % are to be predicted, never a stop
    token of the model."""
    for sentence in drawn.all:
        whole = np.where(sentence.labels < 0, sentence.input_ids, sentence.labels)
        assert whole[0] == VOCABULARY.index("[CLS]")
        assert whole[-2:].tolist() == [VOCABULARY.index("."), VOCABULARY.index("[SEP]")]
        assert VOCABULARY.index(".") not in whole[1:-2]
    labels = np.concatenate([sentence.labels for sentence in drawn.all])
    assert 0.12 < np.mean(labels >= 0) < 0.2
    assert not np.isin(labels, range(5)).any()


def test_a_padded_micro_batch_is_as_long_as_its_longest(drawn: Drawn):
    """One row a sentence, the mask as long as it is, nothing to predict beyond."""
    group = drawn.ungrouped[0]
    batch = padded(group)
    lengths = [len(sentence.input_ids) for sentence in group]
    assert batch.attention_mask.sum(1).tolist() == lengths
    assert batch.input_ids.shape == (8, max(lengths))
    assert (batch.labels[batch.attention_mask == 0] == -100).all()


@pytest.mark.parametrize("rows", ["all", "predicted"])
def test_packed_and_padded_give_equal_losses_and_gradients(
    pairs: dict[str, Pair], source: Source, rows: Rows
):
    """No sentence sees another in its row, and padding counts for nothing."""
    found = compare(Against2019OnSentences(pairs["bert"], rows, 0, source))
    assert set(found) == {"2019", "2019-ungrouped"}
    for equality in found.values():
        assert max(equality.losses.values()) < 1e-5, equality.losses
        assert max(equality.gradients.values()) < 2e-5, equality.gradients


def test_a_sentence_before_a_title_or_inside_quotation_marks_is_cut_right(tmp_path: Path):
    """Stops of titles end nothing; a closing quotation mark belongs to what it closes."""
    from benchmarks.sentences import SENTENCE_END

    text = 'Mr. Smith went. "Did he?" She asked. \u201cYes.\u201d He said so.'
    expected = ["Mr. Smith went.", '"Did he?"', "She asked.", "\u201cYes.\u201d", "He said so."]
    assert SENTENCE_END.split(text) == expected


def test_a_missing_text_names_the_option(tmp_path: Path):
    """The novels are not part of the project."""
    with pytest.raises(DataError, match="--text"):
        draw(Source(tmp_path / "none.txt"), seed=0)


def test_a_text_too_short_is_refused(tmp_path: Path):
    """Rather than a step with fewer sentences than said."""
    with pytest.raises(DataError, match="too few"):
        draw(write_source(tmp_path, 60), seed=0)


def test_seeds_draw_different_sentences(source: Source, drawn: Drawn):
    """And the same seed the same ones."""
    again, other = draw(source, seed=0), draw(source, seed=1)
    first = [sentence.input_ids.tolist() for sentence in drawn.all]
    assert [sentence.input_ids.tolist() for sentence in again.all] == first
    assert [sentence.input_ids.tolist() for sentence in other.all] != first
    assert len(list(itertools.chain(*other.grouped))) == len(first)
