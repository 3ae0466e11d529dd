"""Mixtures: parts are drawn as often as the formula says, nothing is lost, and all is a function of
(seed, step)."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from stillhouse.data.settings import MixtureRecipe
from stillhouse.tokens.batches import IGNORED, StepBatches
from stillhouse.tokens.mixture import MixedSequences, drawn_parts, mean_repeats, repeats_of
from stillhouse.tokens.packing import CausalSequences, MaskedSequences
from stillhouse.tokens.settings import MaskingRecipe
from stillhouse.tokens.shards import TokenSplit
from stillhouse.tokens.teacher_cache import FixedMaskSource

VOCABULARY, LENGTH = 60, 8
DOCUMENTS = {"en": (70, 31, 96, 44, 120), "de": (41, 17, 29), "fr": (11, 15)}  # their lengths
FIRST = {"en": 5, "de": 20, "fr": 40}  # each part has tokens of its own, from this one on


def split_of_parts() -> TokenSplit:
    """Documents of three parts, of which each token tells its part; 0 begins each document."""
    draw = np.random.default_rng(0)
    documents = [
        np.concatenate([[0], draw.integers(FIRST[part], FIRST[part] + 15, size - 1)])
        for part, sizes in DOCUMENTS.items()
        for size in sizes
    ]
    found = TokenSplit.in_memory(documents, VOCABULARY)
    parts = {part: len(sizes) for part, sizes in DOCUMENTS.items()}
    return TokenSplit(VOCABULARY, found.shards, found.document_starts, found.counts, None, parts)


@pytest.fixture(params=["causal", "masked"])
def source(request, special):
    split = split_of_parts()
    if request.param == "causal":
        return CausalSequences(split, LENGTH, 0, attend_across_documents=False)
    masking = MaskingRecipe()
    return MaskedSequences(
        split, LENGTH, special, masking, vocabulary_size=VOCABULARY, counts=split.counts
    )


def tokens_of_parts() -> dict[str, int]:
    return {part: sum(sizes) for part, sizes in DOCUMENTS.items()}


def mixed(source, **mixture: object) -> MixedSequences:
    recipe = MixtureRecipe.model_validate(mixture)
    return MixedSequences(source, repeats_of(tokens_of_parts(), recipe))


@pytest.mark.parametrize("exponent", [0.0, 0.3, 0.5, 0.7, 1.0])
def test_shares_are_those_of_the_formula(exponent):
    """n_i^exponent / sum n_j^exponent, and no part is read less than once."""
    sizes = {"en": 16_000_000, "de": 4_000_000, "fr": 1_000}
    found = drawn_parts(sizes, MixtureRecipe(exponent=exponent))
    powers = {name: size**exponent for name, size in sizes.items()}
    for name, own in found.items():
        assert own["share"] == pytest.approx(powers[name] / sum(powers.values()), rel=1e-12)
    assert min(own["repeats"] for own in found.values()) == 1


def test_shares_by_weights_do_not_depend_on_sizes():
    sizes = {"en": 900, "de": 100, "fr": 7}
    weights = {"en": 2, "de": 1, "fr": 1}
    found = drawn_parts(sizes, MixtureRecipe.model_validate({"weights": weights}))
    total = sum(weights.values())
    for name, own in found.items():
        assert own["share"] == pytest.approx(float(Fraction(weights[name], total)), rel=1e-12)
    assert found["en"]["repeats"] == 1  # 450 tokens for each of its weight, the most
    assert found["fr"]["repeats"] == pytest.approx(450 / 7)
    assert mean_repeats(found) == pytest.approx((900 + 450 + 450) / 1007)


def test_a_text_is_drawn_once_without_a_mixture():
    """As at exponent 1, exactly."""
    sizes = {"en": 123_457, "de": 7_919, "fr": 3}
    once = dict.fromkeys(sizes, 1.0)
    assert repeats_of(sizes, None) == repeats_of(sizes, MixtureRecipe(exponent=1)) == once


def test_no_sequence_has_tokens_of_two_parts(source):
    """Every token of a part is in its own sequences, and in no other."""
    numbers = np.arange(source.num_sequences)
    batch = source.batch(numbers, np.zeros_like(numbers), 0)
    labels = batch.labels == IGNORED
    tokens = batch.input_ids if batch.causal else torch.where(labels, batch.input_ids, batch.labels)
    stored = split_of_parts()
    for part, own in source.parts.items():
        low, high = FIRST[part], FIRST[part] + 15
        words = tokens[own.start : own.stop]
        words = words[words >= FIRST["en"]]
        assert ((words >= low) & (words < high)).all(), part
        assert len(words) == int(stored.counts[low:high].sum()), part
    assert [own.stop for own in source.parts.values()][-1] == source.num_sequences


@pytest.mark.parametrize(
    "mixture", [{"exponent": 0.0}, {"exponent": 0.7}, {"weights": {"en": 2, "de": 1, "fr": 3}}]
)
def test_an_epoch_draws_each_part_as_often_as_it_should(source, mixture):
    """Within one sequence of each part; each sequence as often as any other of its part, or once
    more; in every epoch."""
    drawing = mixed(source, **mixture)
    repeats = repeats_of(tokens_of_parts(), MixtureRecipe.model_validate(mixture))
    extra = []
    for epoch in range(3):
        numbers = np.arange(drawing.num_sequences)
        sequences, _ = drawing.drawn(numbers, np.full_like(numbers, epoch), 3)
        times = np.bincount(sequences, minlength=source.num_sequences)
        for part, own in source.parts.items():
            found = times[own.start : own.stop]
            assert abs(found.sum() - repeats[part] * len(own)) < 1, part
            assert found.min() >= 1, part
            assert found.max() - found.min() <= 1, part
        extra.append(times.tolist())
    assert extra[0] != extra[1]  # which sequences are repeated once more changes


@pytest.mark.parametrize("seed", [0, 5])
def test_exponent_one_is_the_text_as_it_is(source, seed):
    """The same batches, masks included, as without a mixture."""
    options = {"seed": seed, "sequences_per_step": 7, "num_samples": 150}
    plain, drawn = StepBatches(source, **options), StepBatches(mixed(source, exponent=1), **options)
    for step in range(plain.num_steps):
        one, other = plain.step(step), drawn.step(step)
        assert torch.equal(one.input_ids, other.input_ids)
        assert torch.equal(one.labels, other.labels)


def steps_of(source, **mixture: object) -> StepBatches:
    drawing = mixed(source, **mixture)
    samples = 2 * drawing.num_sequences + 3  # into a third epoch
    return StepBatches(drawing, seed=4, sequences_per_step=6, num_samples=samples)


def test_a_step_depends_on_nothing_but_its_number(source):
    """Resumed anywhere in an epoch, a run has the steps that it would have had."""
    run = steps_of(source, exponent=0.3)
    whole = [run.step(step) for step in range(run.num_steps)]
    for step in reversed(range(len(whole))):
        resumed = steps_of(source, exponent=0.3).step(step)
        assert torch.equal(resumed.input_ids, whole[step].input_ids)
        assert torch.equal(resumed.labels, whole[step].labels)


def test_two_ranks_read_together_what_one_reads(source):
    """Each takes its part of a step; nothing is read twice or left out."""
    alone, first, second = (steps_of(source, exponent=0.0) for _ in range(3))
    for step in range(alone.num_steps - 1):
        own = [first.step(step, slice(0, 2)), second.step(step, slice(2, None))]
        for name in ("input_ids", "labels"):
            union = torch.cat([getattr(batch, name) for batch in own])
            assert torch.equal(union, getattr(alone.step(step), name))


def test_repeated_sequences_are_masked_differently(special):
    """The copies of a sequence in an epoch have the same tokens under different masks, and none
    has the mask of another epoch."""
    split = split_of_parts()
    source = MaskedSequences(
        split, 64, special, MaskingRecipe(), vocabulary_size=VOCABULARY, counts=split.counts
    )
    drawing = mixed(source, exponent=0.0)
    numbers = np.concatenate([np.arange(drawing.num_sequences)] * 2)
    epochs = np.repeat([0, 1], drawing.num_sequences)
    sequences, _ = drawing.drawn(numbers, epochs, 1)
    batch = drawing.batch(numbers, epochs, 1)
    french = np.flatnonzero(sequences == source.parts["fr"].start)
    assert len(french) > 10
    tokens = torch.where(batch.labels == IGNORED, batch.input_ids, batch.labels)[french]
    assert (tokens == tokens[0]).all()
    masks = {tuple(row.tolist()) for row in (batch.labels[french] != IGNORED)}
    assert len(masks) > 0.7 * len(french)


def test_a_cached_teacher_is_read_for_the_sequences_of_the_text(special):
    """Repeated sequences have the masks, hence the rows, of the one that the cache holds."""
    split = split_of_parts()
    source = MaskedSequences(
        split, LENGTH, special, MaskingRecipe(), vocabulary_size=VOCABULARY, counts=split.counts
    )
    fixed = FixedMaskSource(source)
    drawing = mixed(fixed, exponent=0.3)
    numbers = np.arange(drawing.num_sequences)
    sequences, _ = drawing.drawn(numbers, np.full_like(numbers, 2), 9)
    batch = drawing.batch(numbers, np.full_like(numbers, 2), 9)
    stored = fixed.batch(sequences, np.zeros_like(numbers), 0)
    assert len(set(sequences.tolist())) == source.num_sequences < len(numbers)
    assert torch.equal(batch.labels, stored.labels)
