"""Packing: documents on disk become sequences of a fixed length, without losing a token.

Causal: documents, each after its start token, form one stream; sequence i is the window of T tokens
from i*T, and its labels are the window one token later, so that every token but the first of the
stream is predicted exactly once. Masked: documents are cut into segments between CLS and SEP, and
consecutive segments fill a sequence without attending to each other. No sequence has tokens of two
parts of the text.

Masking: a fraction of the positions is sampled without replacement, with weights
count^-rarity_exponent that favor rare tokens (Sanh et al. 2019, after XLM). Special tokens are
never sampled. Of the sampled tokens most become the mask token, some are kept, some become a random
word. Masks are dynamic: they follow from (seed, epoch, sequence) alone.

Axes: B sequences, T positions.
"""

import math
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from stillhouse.tokens.batches import IGNORED, Batch, SequenceSource, sample_key
from stillhouse.tokens.settings import MaskingRecipe, TokensRecipe
from stillhouse.tokens.shards import TokenSplit, open_split
from stillhouse.tokens.tokenizer import SpecialTokens, num_ids, open_tokenizer, special_tokens

SHORTEST_CUT = 16  # a document is not cut to fill a gap smaller than this


def open_source(tokens_folder: Path, recipe: TokensRecipe, split: str) -> SequenceSource:
    """The sequences of one split, packed and masked as the recipe says."""
    return pack(open_split(tokens_folder, split), open_tokenizer(tokens_folder), recipe)


def pack(
    tokens: TokenSplit, tokenizer: PreTrainedTokenizerFast, recipe: TokensRecipe
) -> SequenceSource:
    """The sequences of a split, packed and masked as the recipe says."""
    special = special_tokens(tokenizer, recipe.language_modeling)
    if recipe.language_modeling == "causal":
        assert special.end_of_text is not None
        return CausalSequences(
            tokens,
            recipe.sequence_length,
            special.end_of_text,
            attend_across_documents=recipe.attend_across_documents,
            document_start=special.document_start,
        )
    return MaskedSequences(
        tokens,
        recipe.sequence_length,
        special,
        recipe.masking,
        vocabulary_size=num_ids(tokenizer),
        counts=tokens.counts,
    )


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
        # The first token and the first sequence of each part, with their numbers at the end.
        self._bounds = split.document_starts[split.part_bounds].astype(np.int64)
        self._first = np.cumsum([0, *-(-np.diff(self._bounds) // sequence_length)])

    @property
    def num_sequences(self) -> int:
        return int(self._first[-1])

    @property
    def parts(self) -> dict[str, range]:
        """The sequences of each part of the text."""
        return ranges_of(self.split.parts, self._first)

    def batch(self, sequences: np.ndarray, epochs: np.ndarray, seed: int) -> Batch:
        """The windows as a batch; they are the same for every epoch and seed."""
        length = self.sequence_length
        inputs = np.full((len(sequences), length), self.end_of_text, np.int64)
        labels = np.full((len(sequences), length), IGNORED, np.int64)
        real = np.zeros((len(sequences), length), bool)
        parts = np.searchsorted(self._first, sequences, side="right") - 1
        starts = self._bounds[parts] + (sequences - self._first[parts]) * length
        ends = self._bounds[parts + 1]
        for row, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
            stop = min(start + length, end)
            window = self.split.read(start, min(stop + 1, end))
            if stop == end:  # the last document ends here
                window = np.append(window, self.end_of_text)
            size = len(window) - 1
            inputs[row, :size], labels[row, :size], real[row, :size] = window[:-1], window[1:], True
        if self.attend_across_documents:
            segments = real.astype(np.int64)
        else:
            segments = np.where(real, 1 + np.cumsum(inputs == self.document_start, axis=1), 0)
        return packed_batch(inputs, labels, segments, causal=True)


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
        self._starts, self._lengths, self._first_segment, self._first = pack_parts(
            np.diff(split.document_starts.astype(np.int64)), split.part_bounds, sequence_length
        )

    @property
    def num_sequences(self) -> int:
        return len(self._first_segment) - 1

    @property
    def parts(self) -> dict[str, range]:
        """The sequences of each part of the text."""
        return ranges_of(self.split.parts, self._first)

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
        return packed_batch(masked, labels, segments, causal=False)


class Masker:
    """Samples and applies masks, weighted by the token counts of the corpus."""

    def __init__(
        self,
        recipe: MaskingRecipe,
        special: SpecialTokens,
        vocabulary_size: int,
        counts: np.ndarray,
    ) -> None:
        self.recipe = recipe
        self.mask_id = special.mask
        counts = np.maximum(counts[:vocabulary_size].astype(np.float64), 1)
        self.weights = counts**-recipe.rarity_exponent
        self.weights[list(special.all_ids)] = 0
        self.words = np.flatnonzero(self.weights)

    def mask(
        self,
        inputs: np.ndarray,
        segments: np.ndarray,
        sequences: np.ndarray,
        epochs: np.ndarray,
        seed: int,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Masked inputs and their labels, both (B, T); positions with segment 0 are padding."""
        weights = np.where(segments > 0, self.weights[inputs], 0)
        if self.recipe.sampling == "per_batch":
            key = sample_key(seed, int(epochs[0]), 2**63 + int(sequences[0]))
            num_sampled = math.ceil(self.recipe.fraction * np.count_nonzero(segments))
            flat = self._corrupt(inputs.reshape(-1), weights.reshape(-1), num_sampled, key)
            return flat[0].reshape(inputs.shape), flat[1].reshape(inputs.shape)
        masked, labels = np.empty_like(inputs), np.empty_like(inputs)
        for row in range(len(inputs)):
            key = sample_key(seed, int(epochs[row]), int(sequences[row]))
            num_sampled = max(1, round(self.recipe.fraction * np.count_nonzero(weights[row])))
            masked[row], labels[row] = self._corrupt(inputs[row], weights[row], num_sampled, key)
        return masked, labels

    def _corrupt(
        self, inputs: np.ndarray, weights: np.ndarray, num_sampled: int, key: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Sample positions in proportion to their weights, and replace them as the recipe says."""
        generator = np.random.Generator(np.random.Philox(key=key))
        candidates = np.flatnonzero(weights)
        # The smallest exponential(1)/weight are a weighted sample without replacement (Efraimidis
        # and Spirakis 2006).
        times = generator.exponential(size=len(inputs))[candidates] / weights[candidates]
        num_sampled = min(num_sampled, len(candidates))
        sampled = candidates[np.argsort(times, kind="stable")[:num_sampled]]
        choices = generator.random(len(inputs))[sampled]
        words = generator.choice(self.words, size=len(inputs))[sampled]
        masked, labels = inputs.copy(), np.full_like(inputs, IGNORED)
        labels[sampled] = inputs[sampled]
        to_mask = choices < self.recipe.mask_fraction
        to_word = choices >= self.recipe.mask_fraction + self.recipe.keep_fraction
        masked[sampled[to_mask]] = self.mask_id
        masked[sampled[to_word]] = words[to_word]
        return masked, labels


def ranges_of(names: Iterable[str], first: np.ndarray) -> dict[str, range]:
    """The numbers of each part, from its first one to the first of the next."""
    return {name: range(*map(int, own)) for name, own in zip(names, pairwise(first), strict=False)}


def pack_parts(
    document_lengths: np.ndarray, part_bounds: np.ndarray, sequence_length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Pack each part of a text on its own.

    Args:
        part_bounds: The number of the first document of each part, with that of documents at the
            end.

    Returns:
        As `pack_segments`; and the number of the first sequence of each part, with the number of
        sequences at the end.
    """
    parts = [
        pack_segments(document_lengths[first:stop], sequence_length)
        for first, stop in pairwise(part_bounds)
    ]
    token = np.cumsum([0, *(lengths.sum() for _, lengths, _ in parts)])
    segment = np.cumsum([0, *(len(starts) for starts, _, _ in parts)])
    firsts = [own[:-1] + offset for (_, _, own), offset in zip(parts, segment, strict=False)]
    return (
        np.concatenate([own + offset for (own, _, _), offset in zip(parts, token, strict=False)]),
        np.concatenate([lengths for _, lengths, _ in parts]),
        np.concatenate([*firsts, segment[-1:]]),
        np.cumsum([0, *map(len, firsts)]),
    )


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


def packed_batch(
    inputs: np.ndarray, labels: np.ndarray, segments: np.ndarray, *, causal: bool
) -> Batch:
    """A batch of packed sequences, whose positions start at 0 in each segment; all (B, T)."""
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
