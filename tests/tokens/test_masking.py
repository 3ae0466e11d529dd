"""Masking: how many, which, what stands in their place, and that it can be drawn again.

Tolerances are five standard deviations of the counts in question, so that a right draw would miss
them once in two million seeds; the seeds are fixed, and the mutations are far outside.
"""

import math

import numpy as np
import pytest

from stillhouse.tokens.batches import IGNORED
from stillhouse.tokens.masking import Masker
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
    """15 % of two words is none; a sequence that teaches nothing would be waste."""
    inputs, segments = sequences_of(5, 4)
    _, labels = mask(masker(), inputs, segments)
    assert (np.count_nonzero(labels != IGNORED, axis=1) == 1).all()


@pytest.mark.law("masks")
def test_labels_are_the_tokens_that_stood_there(masker):
    """A drawn position's label is its original token; elsewhere there is none and no change."""
    inputs, segments = sequences_of(20)
    before = inputs.copy()
    masked, labels = mask(masker(), inputs, segments)
    drawn = labels != IGNORED
    assert (labels[drawn] == inputs[drawn]).all()
    assert (masked[~drawn] == inputs[~drawn]).all()
    assert (inputs == before).all()


@pytest.mark.parametrize(
    "shares", [{"mask": 0.8, "keep": 0.1, "random": 0.1}, {"mask": 0.2, "keep": 0.5, "random": 0.3}]
)
def test_drawn_tokens_become_mask_stay_or_become_a_word_by_their_shares(shares, masker):
    """Shares of the drawn tokens; a random word may be the same one, once in 55."""
    inputs, segments = sequences_of(500)
    masked, labels = mask(masker(**shares), inputs, segments)
    drawn = labels != IGNORED
    trials = int(drawn.sum())
    same_word = shares["random"] / len(WORDS)
    found = masked[drawn]
    assert within((found == MASK).sum(), shares["mask"] * trials, trials)
    kept = int((found == inputs[drawn]).sum())
    assert within(kept, (shares["keep"] + same_word) * trials, trials)
    changed = found[(found != MASK) & (found != inputs[drawn])]
    assert within(len(changed), (shares["random"] - same_word) * trials, trials)


def test_random_words_are_any_word_but_no_special_token(masker):
    """Every word of the vocabulary turns up about equally often, special tokens never."""
    inputs, segments = sequences_of(500)
    masked, labels = mask(masker(mask=0, keep=0, random=1), inputs, segments)
    found = np.bincount(masked[labels != IGNORED], minlength=VOCABULARY)
    assert not found[:5].any()
    trials = int(found.sum())
    assert all(within(count, trials / len(WORDS), trials) for count in found[5:])


@pytest.mark.law("masks")
def test_special_tokens_and_padding_are_never_drawn(masker):
    """Even when everything may be drawn, CLS, SEP, unknown, mask and padding are not."""
    inputs = np.tile(np.array([2, 7, 1, 8, 4, 9, 3, 0, 9, 9]), (50, 1))
    segments = np.tile(np.array([1, 1, 1, 1, 1, 1, 1, 0, 0, 0]), (50, 1))
    _, labels = mask(masker(fraction=0.99), inputs, segments)
    assert np.flatnonzero((labels != IGNORED).any(axis=0)).tolist() == [1, 3, 5]


@pytest.mark.parametrize("exponent", [0.7, 0.0])
def test_rare_tokens_are_favored(exponent, masker):
    """One token of two is drawn: the rare one with chance w1 / (w1 + w2), w = count^-exponent."""
    counts = np.full(VOCABULARY, 1, "<u8")
    counts[5], counts[6] = 100, 1600
    inputs = np.tile(np.array([2, 5, 6, 3]), (4000, 1))
    _, labels = mask(masker(counts, rarity_exponent=exponent), inputs, np.ones_like(inputs))
    rare, common = (int((labels == token).sum()) for token in (5, 6))
    assert rare + common == 4000
    ratio = (100 / 1600) ** -exponent
    assert within(rare, 4000 * ratio / (1 + ratio), 4000)


def test_a_token_that_never_occurred_does_not_break_the_draw(masker):
    """A count of zero (a validation token) is as rare as a count of one, not infinitely rare."""
    counts = np.zeros(VOCABULARY, "<u8")
    counts[6] = 1
    inputs = np.tile(np.array([2, 5, 6, 3]), (4000, 1))
    _, labels = mask(masker(counts), inputs, np.ones_like(inputs))
    assert within((labels == 5).sum(), 2000, 4000)


@pytest.mark.law("masks")
def test_a_visit_is_masked_the_same_in_any_batch(masker):
    """(seed, epoch, sequence) alone decide, whatever else is in the batch, in whatever place."""
    inputs, segments = sequences_of(10)
    together = mask(masker(), inputs, segments)
    chosen = np.array([7, 2])
    apart = mask(masker(), inputs[chosen], segments[chosen], sequences=chosen)
    for one, other in zip(together, apart, strict=True):
        assert (one[chosen] == other).all()


def test_masks_are_drawn_anew_at_every_epoch_and_seed(masker):
    """Another epoch, seed or sequence number hides other tokens of the same text."""
    inputs, segments = sequences_of(1)
    visits = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))
    drawn = set()
    for sequence, epoch, seed in visits:
        number = np.array([sequence])
        _, labels = mask(masker(), inputs, segments, sequences=number, epoch=epoch, seed=seed)
        drawn.add(tuple(np.flatnonzero(labels[0] != IGNORED)))
    assert len(drawn) == 4


def test_drawing_per_batch_counts_over_the_whole_batch(masker):
    """2019's way: ceil(fraction * all real positions), special tokens counted but not drawn."""
    inputs, segments = sequences_of(7, 30)
    segments[3, 10:] = 0
    _, labels = mask(masker(draw="per_batch"), inputs, segments)
    assert np.count_nonzero(labels != IGNORED) == math.ceil(0.15 * (7 * 30 - 20))
    assert (labels[segments == 0] == IGNORED).all()
    per_row = np.count_nonzero(labels != IGNORED, axis=1)
    assert len(set(per_row.tolist())) > 1


def test_drawing_per_batch_is_repeatable_and_new_at_every_epoch(masker):
    """The same step again gives the same mask; the next epoch another one."""
    inputs, segments = sequences_of(4)
    first, again, later = (
        mask(masker(draw="per_batch"), inputs, segments, epoch=epoch)[1] for epoch in (0, 0, 1)
    )
    assert (first == again).all()
    assert (first != later).any()
