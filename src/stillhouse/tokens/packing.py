"""Packing: documents on disk become sequences of a fixed length, without losing a token.

Causal: documents, each after its start token, form one stream; sequence i is the window of T tokens
from i*T, and its labels are the window one token later, so that every token but the first of the
stream is predicted exactly once. Masked: documents are cut into segments between CLS and SEP, and
consecutive segments fill a sequence without attending to each other.

Axes: B sequences, T positions.
"""

import numpy as np
import torch

from stillhouse.tokens.batches import IGNORED, Batch
from stillhouse.tokens.masking import Masker
from stillhouse.tokens.settings import MaskingRecipe
from stillhouse.tokens.shards import TokenSplit
from stillhouse.tokens.tokenizer import SpecialTokens

SHORTEST_CUT = 16  # a document is not cut to fill a gap smaller than this


class CausalSequences:
    """Windows over the stream of documents; labels are the next tokens."""

    def __init__(
        self,
        split: TokenSplit,
        sequence_length: int,
        end_of_text: int,
        *,
        attend_across_documents: bool,
        document_start: int | None = None,
    ) -> None:
        """Args: document_start: The first token of each document; end-of-text if not given."""
        self.split = split
        self.sequence_length = sequence_length
        self.end_of_text = end_of_text
        self.document_start = end_of_text if document_start is None else document_start
        self.attend_across_documents = attend_across_documents

    @property
    def num_sequences(self) -> int:
        return -(-self.split.num_tokens // self.sequence_length)

    def batch(self, sequences: np.ndarray, epochs: np.ndarray, seed: int) -> Batch:
        """The windows as a batch; they are the same for every epoch and seed."""
        length = self.sequence_length
        inputs = np.full((len(sequences), length), self.end_of_text, np.int64)
        labels = np.full((len(sequences), length), IGNORED, np.int64)
        real = np.zeros((len(sequences), length), bool)
        for row, sequence in enumerate(sequences.tolist()):
            stop = min((sequence + 1) * length, self.split.num_tokens)
            window = self.split.read(sequence * length, min(stop + 1, self.split.num_tokens))
            if stop == self.split.num_tokens:  # the last document ends here
                window = np.append(window, self.end_of_text)
            size = len(window) - 1
            inputs[row, :size], labels[row, :size], real[row, :size] = window[:-1], window[1:], True
        if self.attend_across_documents:
            segments = real.astype(np.int64)
        else:
            segments = np.where(real, 1 + np.cumsum(inputs == self.document_start, axis=1), 0)
        return _batch(inputs, labels, segments, causal=True)


class MaskedSequences:
    """Segments between CLS and SEP, packed in order, with dynamic masks."""

    def __init__(
        self,
        split: TokenSplit,
        sequence_length: int,
        special: SpecialTokens,
        masking: MaskingRecipe,
        *,
        vocabulary_size: int,
        counts: np.ndarray,
    ) -> None:
        self.split = split
        self.sequence_length = sequence_length
        wrapping = (special.pad, special.cls, special.sep)
        self._wrapping = [id for id in wrapping if id is not None]
        assert len(self._wrapping) == 3
        self.masker = Masker(masking, special, vocabulary_size, counts)
        self._starts, self._lengths, self._first_segment = pack_segments(
            np.diff(split.document_starts.astype(np.int64)), sequence_length
        )

    @property
    def num_sequences(self) -> int:
        return len(self._first_segment) - 1

    def batch(self, sequences: np.ndarray, epochs: np.ndarray, seed: int) -> Batch:
        """The sequences, with the masks of (seed, epoch, sequence)."""
        shape = (len(sequences), self.sequence_length)
        pad, cls, sep = self._wrapping
        inputs = np.full(shape, pad, np.int64)
        segments = np.zeros(shape, np.int64)
        for row, sequence in enumerate(sequences.tolist()):
            place = 0
            own = range(self._first_segment[sequence], self._first_segment[sequence + 1])
            for number, segment in enumerate(own, start=1):
                start, size = int(self._starts[segment]), int(self._lengths[segment])
                stop = place + size + 2
                inputs[row, place] = cls
                inputs[row, place + 1 : stop - 1] = self.split.read(start, start + size)
                inputs[row, stop - 1] = sep
                segments[row, place:stop] = number
                place = stop
        masked, labels = self.masker.mask(inputs, segments, sequences, epochs, seed)
        return _batch(masked, labels, segments, causal=False)


def pack_segments(
    document_lengths: np.ndarray, sequence_length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut documents into segments and pack these into sequences, in order.

    A document is cut where a sequence is full, unless the gap is smaller than `SHORTEST_CUT`
    tokens; short tails are kept. Each segment takes two positions more, for CLS and SEP.

    Returns:
        Start (in the token stream) and length of each segment, and the number of the first segment
        of each sequence, with the number of segments at the end.
    """
    starts: list[int] = []
    lengths: list[int] = []
    first_segment: list[int] = [0]
    room = sequence_length
    shortest_cut = min(SHORTEST_CUT, sequence_length - 2)  # what an empty sequence can take
    position = 0
    for document_length in document_lengths.tolist():
        left = document_length
        while left:
            size = min(left, room - 2)
            if size < min(left, shortest_cut):
                first_segment.append(len(starts))
                room = sequence_length
                continue
            starts.append(position)
            lengths.append(size)
            position += size
            left -= size
            room -= size + 2
    if starts:
        first_segment.append(len(starts))
    return (
        np.array(starts, np.int64),
        np.array(lengths, np.int64),
        np.array(first_segment, np.int64),
    )


def _batch(inputs: np.ndarray, labels: np.ndarray, segments: np.ndarray, *, causal: bool) -> Batch:
    return Batch(
        torch.from_numpy(inputs),
        torch.from_numpy(labels),
        torch.from_numpy(segments),
        torch.from_numpy(positions_in_segments(segments)),
        causal=causal,
        uniform=bool((segments == segments.flat[0]).all() and segments.flat[0] > 0),
    )


def positions_in_segments(segments: np.ndarray) -> np.ndarray:
    """Position of each token within its segment, from 0; shape (B, T), as `segments`."""
    places = np.broadcast_to(np.arange(segments.shape[1]), segments.shape)
    begins = np.ones_like(segments, dtype=bool)
    begins[:, 1:] = segments[:, 1:] != segments[:, :-1]
    return places - np.maximum.accumulate(np.where(begins, places, 0), axis=1)
