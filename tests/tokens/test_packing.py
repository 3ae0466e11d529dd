"""Packing: no token lost, none twice, and no document that sees another."""

import numpy as np
import pytest

from stillhouse.tokens.batches import IGNORED, Batch
from stillhouse.tokens.packing import (
    SHORTEST_CUT,
    CausalSequences,
    MaskedSequences,
    pack_segments,
    positions_in_segments,
)
from stillhouse.tokens.settings import MaskingRecipe

END, PAD, CLS, SEP = 0, 0, 2, 3
CAUSAL = [[END, 5, 6, 7], [END, 8], [END, 9, 10, 11, 12, 13, 14], [END, 15]]  # 15 tokens


def whole(source) -> Batch:
    """Every sequence, in order, as one batch."""
    numbers = np.arange(source.num_sequences)
    return source.batch(numbers, np.zeros_like(numbers), 0)


def causal_of(split_of, documents, length, *, attend_across_documents=False) -> CausalSequences:
    return CausalSequences(
        split_of(documents), length, END, attend_across_documents=attend_across_documents
    )


@pytest.mark.parametrize("length", [1, 4, 5, 15, 20])
@pytest.mark.law("shift")
def test_every_token_but_the_first_is_predicted_once(length, split_of):
    """Read row by row, labels are the stream from its second token, closed by end-of-text."""
    stream = [token for document in CAUSAL for token in document]
    batch = whole(causal_of(split_of, CAUSAL, length))
    labels = batch.labels[batch.rows("predicted")]
    assert labels.tolist() == [*stream[1:], END]
    assert batch.input_ids[batch.rows("all")].tolist() == stream


@pytest.mark.law("shift")
def test_a_label_is_the_next_token(split_of):
    """Written out by hand, with the short last window padded and unlabeled."""
    batch = whole(causal_of(split_of, CAUSAL, 4))
    assert batch.input_ids.tolist() == [
        [0, 5, 6, 7],
        [0, 8, 0, 9],
        [10, 11, 12, 13],
        [14, 0, 15, 0],
    ]
    assert batch.labels.tolist() == [
        [5, 6, 7, 0],
        [8, 0, 9, 10],
        [11, 12, 13, 14],
        [0, 15, 0, IGNORED],
    ]
    assert batch.segment_ids[3].tolist()[-1] == 0


@pytest.mark.law("packing")
def test_positions_restart_with_each_document(split_of):
    """A document begins at position 0, and so does a window that begins within one."""
    batch = whole(causal_of(split_of, CAUSAL, 4))
    assert batch.position_ids[:3].tolist() == [[0, 1, 2, 3], [0, 1, 0, 1], [0, 1, 2, 3]]
    assert batch.position_ids[3, :3].tolist() == [0, 0, 1]


@pytest.mark.law("packing")
def test_packed_documents_do_not_attend_to_each_other(split_of):
    """Two positions share a segment exactly where no end-of-text is between them."""
    batch = whole(causal_of(split_of, CAUSAL, 15))
    owner = [number for number, document in enumerate(CAUSAL) for _ in document]
    segments = batch.segment_ids[0].tolist()
    for i, one in enumerate(owner):
        for j, other in enumerate(owner):
            assert (segments[i] == segments[j]) == (one == other)
    assert not batch.uniform


def test_attending_across_documents_is_one_segment(split_of):
    """Asked for, a window is one text: positions run through, and it needs no mask."""
    source = causal_of(split_of, CAUSAL, 5, attend_across_documents=True)
    batch = whole(source)
    assert batch.uniform
    assert batch.attention_mask() is None
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4]] * 3
    assert batch.labels.tolist() == whole(causal_of(split_of, CAUSAL, 5)).labels.tolist()


def test_attending_across_documents_never_means_attending_to_padding(split_of):
    """Only the short last window needs a mask."""
    batch = whole(causal_of(split_of, CAUSAL, 4, attend_across_documents=True))
    assert not batch.uniform
    assert batch.segment_ids.tolist() == [[1] * 4] * 3 + [[1, 1, 1, 0]]


def segments_of(batch: Batch) -> list[list[list[int]]]:
    """The original tokens of each segment of each row, whatever the masking put in their place."""
    original = np.where(batch.labels == IGNORED, batch.input_ids, batch.labels)
    rows = []
    for ids, segments in zip(original.tolist(), batch.segment_ids.tolist(), strict=True):
        last = max(segments)
        rows.append(
            [
                [token for token, segment in zip(ids, segments, strict=True) if segment == number]
                for number in range(1, last + 1)
            ]
        )
    return rows


def masked_of(split_of, special, documents, length) -> MaskedSequences:
    split = split_of(documents)
    return MaskedSequences(
        split, length, special, MaskingRecipe(), vocabulary_size=60, counts=split.counts
    )


def documents_of(*lengths: int) -> list[list[int]]:
    generator = np.random.default_rng(0)
    return [generator.integers(5, 60, length).tolist() for length in lengths]


@pytest.mark.parametrize("length", [8, 17, 18, 19, 24, 64])
def test_every_token_is_in_exactly_one_segment(length, split_of, special):
    """Unwrapped and joined, the segments are the stream: nothing lost, nothing twice, in order."""
    documents = documents_of(1, 40, 15, 16, 17, 3, 22, 100, 2)
    rows = segments_of(whole(masked_of(split_of, special, documents, length)))
    joined = []
    for row in rows:
        assert sum(map(len, row)) <= length
        assert row
        for segment in row:
            assert (segment[0], segment[-1]) == (CLS, SEP)
            assert len(segment) > 2
            joined += segment[1:-1]
    assert joined == [token for document in documents for token in document]


def test_a_segment_holds_one_document_only(split_of, special):
    """Each segment's tokens lie within one document."""
    documents = [[5] * 30, [6] * 9, [7] * 41, [8] * 2]
    for row in segments_of(whole(masked_of(split_of, special, documents, 24))):
        for segment in row:
            assert len(set(segment[1:-1])) == 1


def test_segments_are_cut_where_a_sequence_is_full():
    """By hand: 30 tokens in sequences of 24 are 22 and 8; the next document fills what is left."""
    starts, lengths, first = pack_segments(np.array([30, 12, 40]), 24)
    assert starts.tolist() == [0, 22, 30, 42, 64]
    assert lengths.tolist() == [22, 8, 12, 22, 18]
    assert first.tolist() == [0, 1, 3, 4, 5]


def test_a_gap_smaller_than_the_shortest_cut_is_padded():
    """A document is cut to fill 16 tokens of room, not 15; a document that fits whole always is."""
    room = SHORTEST_CUT + 2
    for gap, expected in ((room, [[40, 16], [24]]), (room - 1, [[40], [40]])):
        length = 42 + gap
        _, lengths, first = pack_segments(np.array([40, 40]), length)
        rows = np.split(lengths, first[1:-1])
        assert [row.tolist() for row in rows] == expected
    _, lengths, first = pack_segments(np.array([40, 3]), 42 + 5)
    assert (lengths.tolist(), first.tolist()) == ([40, 3], [0, 2])


def test_short_tails_are_kept():
    """One token left over is a segment of its own."""
    starts, lengths, _ = pack_segments(np.array([23]), 24)
    assert (starts.tolist(), lengths.tolist()) == ([0, 22], [22, 1])


@pytest.mark.law("padding")
def test_padding_fills_the_rest(split_of, special):
    """What no segment fills is the pad token, of segment 0, without a label."""
    batch = whole(masked_of(split_of, special, documents_of(10), 24))
    rest = ~batch.rows("all")
    assert rest.sum() == 12
    assert (batch.input_ids[rest] == PAD).all()
    assert (batch.labels[rest] == IGNORED).all()


def test_no_documents_give_no_sequences(split_of, special):
    """An empty split has no sequences."""
    assert masked_of(split_of, special, [], 24).num_sequences == 0
    assert causal_of(split_of, [], 24).num_sequences == 0


def test_positions_count_from_each_segments_start():
    """By hand, padding included."""
    segments = np.array([[1, 1, 2, 3, 3, 0], [4, 4, 4, 4, 4, 4]])
    expected = [[0, 1, 0, 0, 1, 0], [0, 1, 2, 3, 4, 5]]
    assert positions_in_segments(segments).tolist() == expected
