"""Masking: how many positions, which, what replaces them, and that masks are reproducible.

Tolerances are five standard deviations of each count, which a correct sampler exceeds once in two
million seeds. The seeds are fixed, and the mutations are far outside.
"""

import math

import numpy as np
import pytest

from stillhouse.tokens.batches import IGNORED
from stillhouse.tokens.packing import Masker
from stillhouse.tokens.settings import MaskingRecipe

VOCABULARY, MASK, LENGTH = 60, 4, 50
WORDS = range(5, VOCABULARY)


@pytest.fixture
def masker(special):
    """masker(counts=..., **recipe): a masker; by default all tokens are equally frequent."""

    def make(counts=None, **recipe) -> Masker:
        counts = np.full(VOCABULARY, 1000, "<u8") if counts is None else counts
        return Masker(MaskingRecipe(**recipe), special, VOCABULARY, counts)

    return make


def sequences_of(count: int, length: int = LENGTH) -> tuple[np.ndarray, np.ndarray]:
    """Random words wrapped in CLS and SEP, and their segments."""
    inputs = np.random.default_rng(0).integers(5, VOCABULARY, (count, length))
    inputs[:, 0], inputs[:, -1] = 2, 3
    return inputs, np.ones_like(inputs)


def mask(masker: Masker, inputs, segments, *, sequences=None, epoch=0, seed=0):
    sequences = np.arange(len(inputs)) if sequences is None else sequences
    return masker.mask(inputs, segments, sequences, np.full(len(inputs), epoch), seed)


def within(found: float, expected: float, trials: int) -> bool:
    """Whether a count is within five standard deviations of a binomial's mean."""
    deviation = math.sqrt(expected * (1 - expected / trials))
    return abs(found - expected) <= 5 * deviation


@pytest.mark.parametrize("fraction", [0.15, 0.4])
def test_each_sequence_predicts_its_fraction(fraction, masker):
    """round(fraction * words) positions per sequence, special tokens not among the words."""
    inputs, segments = sequences_of(20)
    _, labels = mask(masker(fraction=fraction), inputs, segments)
    assert (np.count_nonzero(labels != IGNORED, axis=1) == round(fraction * (LENGTH - 2))).all()


def test_the_shortest_sequence_predicts_one_token(masker):
    """15 % of two words rounds to 0, but a sequence without labels would be wasted."""
    inputs, segments = sequences_of(5, 4)
    _, labels = mask(masker(), inputs, segments)
    assert (np.count_nonzero(labels != IGNORED, axis=1) == 1).all()


@pytest.mark.law("masks")
def test_labels_are_the_original_tokens(masker):
    """A sampled position's label is its original token; other positions keep token and no label."""
    inputs, segments = sequences_of(20)
    before = inputs.copy()
    masked, labels = mask(masker(), inputs, segments)
    sampled = labels != IGNORED
    assert (labels[sampled] == inputs[sampled]).all()
    assert (masked[~sampled] == inputs[~sampled]).all()
    assert (inputs == before).all()


@pytest.mark.parametrize(
    ("masked_share", "kept_share", "random_share"), [(0.8, 0.1, 0.1), (0.2, 0.5, 0.3)]
)
def test_masked_kept_and_random_fractions(masked_share, kept_share, random_share, masker):
    """Fractions of the sampled tokens; a random word is the original one once in 55."""
    inputs, segments = sequences_of(500)
    recipe = {"mask_fraction": masked_share, "keep_fraction": kept_share}
    masked, labels = mask(masker(**recipe, random_fraction=random_share), inputs, segments)
    sampled = labels != IGNORED
    trials = int(sampled.sum())
    same_word = random_share / len(WORDS)
    found = masked[sampled]
    assert within((found == MASK).sum(), masked_share * trials, trials)
    kept = int((found == inputs[sampled]).sum())
    assert within(kept, (kept_share + same_word) * trials, trials)
    changed = found[(found != MASK) & (found != inputs[sampled])]
    assert within(len(changed), (random_share - same_word) * trials, trials)


def test_random_words_are_uniform_over_non_special_tokens(masker):
    """Every other token of the vocabulary occurs about equally often."""
    inputs, segments = sequences_of(500)
    masked, labels = mask(
        masker(mask_fraction=0, keep_fraction=0, random_fraction=1), inputs, segments
    )
    found = np.bincount(masked[labels != IGNORED], minlength=VOCABULARY)
    assert not found[:5].any()
    trials = int(found.sum())
    assert all(within(count, trials / len(WORDS), trials) for count in found[5:])


@pytest.mark.law("masks")
def test_special_tokens_and_padding_are_never_masked(masker):
    """Not even at a fraction of 0.99: CLS, SEP, unknown, mask and padding keep their place."""
    inputs = np.tile(np.array([2, 7, 1, 8, 4, 9, 3, 0, 9, 9]), (50, 1))
    segments = np.tile(np.array([1, 1, 1, 1, 1, 1, 1, 0, 0, 0]), (50, 1))
    _, labels = mask(masker(fraction=0.99), inputs, segments)
    assert np.flatnonzero((labels != IGNORED).any(axis=0)).tolist() == [1, 3, 5]


@pytest.mark.parametrize("exponent", [0.7, 0.0])
def test_rare_tokens_are_favored(exponent, masker):
    """One token of two is sampled: the rare one with chance w1 / (w1 + w2), w = count^-exponent."""
    counts = np.full(VOCABULARY, 1, "<u8")
    counts[5], counts[6] = 100, 1600
    inputs = np.tile(np.array([2, 5, 6, 3]), (4000, 1))
    _, labels = mask(masker(counts, rarity_exponent=exponent), inputs, np.ones_like(inputs))
    rare, common = (int((labels == token).sum()) for token in (5, 6))
    assert rare + common == 4000
    ratio = (100 / 1600) ** -exponent
    assert within(rare, 4000 * ratio / (1 + ratio), 4000)


def test_a_token_count_of_zero_is_treated_as_one(masker):
    """A token that only the validation split has is as rare as a count of one, not infinitely."""
    counts = np.zeros(VOCABULARY, "<u8")
    counts[6] = 1
    inputs = np.tile(np.array([2, 5, 6, 3]), (4000, 1))
    _, labels = mask(masker(counts), inputs, np.ones_like(inputs))
    assert within((labels == 5).sum(), 2000, 4000)


@pytest.mark.law("masks")
def test_masks_do_not_depend_on_the_rest_of_the_batch(masker):
    """A mask follows from (seed, epoch, sequence) alone, not from the other rows or their order."""
    inputs, segments = sequences_of(10)
    together = mask(masker(), inputs, segments)
    chosen = np.array([7, 2])
    separate = mask(masker(), inputs[chosen], segments[chosen], sequences=chosen)
    for one, other in zip(together, separate, strict=True):
        assert (one[chosen] == other).all()


def test_masks_differ_between_epochs_seeds_and_sequences(masker):
    """Another epoch, seed or sequence number masks other tokens of the same text."""
    inputs, segments = sequences_of(1)
    samples = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))
    sampled = set()
    for sequence, epoch, seed in samples:
        number = np.array([sequence])
        _, labels = mask(masker(), inputs, segments, sequences=number, epoch=epoch, seed=seed)
        sampled.add(tuple(np.flatnonzero(labels[0] != IGNORED)))
    assert len(sampled) == 4


def test_per_batch_sampling_counts_over_the_whole_batch(masker):
    """As in 2019: ceil(fraction * all real positions), special tokens counted but not masked."""
    inputs, segments = sequences_of(7, 30)
    segments[3, 10:] = 0
    _, labels = mask(masker(sampling="per_batch"), inputs, segments)
    assert np.count_nonzero(labels != IGNORED) == math.ceil(0.15 * (7 * 30 - 20))
    assert (labels[segments == 0] == IGNORED).all()
    per_row = np.count_nonzero(labels != IGNORED, axis=1)
    assert len(set(per_row.tolist())) > 1


def test_per_batch_sampling_is_reproducible_and_differs_between_epochs(masker):
    """The same step gives the same mask again, the next epoch another one."""
    inputs, segments = sequences_of(4)
    first, again, later = (
        mask(masker(sampling="per_batch"), inputs, segments, epoch=epoch)[1] for epoch in (0, 0, 1)
    )
    assert (first == again).all()
    assert (first != later).any()
