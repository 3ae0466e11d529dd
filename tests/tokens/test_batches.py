"""Batches: the order of samples is a pure function of (seed, step), and no sequence is lost."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from stillhouse.errors import DataError
from stillhouse.tokens.batches import IGNORED, StepBatches, epoch_order, sample_key
from stillhouse.tokens.packing import CausalSequences

DOCUMENTS = [[0, *range(5, 25)], [0, *range(25, 37)], [0, *range(5, 38)]]  # 67 tokens


@pytest.fixture
def source(split_of):
    """Seventeen windows of four tokens."""
    return CausalSequences(split_of(DOCUMENTS), 4, 0, attend_across_documents=False)


def steps_of(source, *, seed=3, sequences_per_step=5, num_samples=51) -> StepBatches:
    return StepBatches(
        source, seed=seed, sequences_per_step=sequences_per_step, num_samples=num_samples
    )


@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_an_epoch_order_is_a_permutation(epoch):
    """The order is a permutation, and not the order on disk."""
    order = epoch_order(3, epoch, 100)
    assert sorted(order.tolist()) == list(range(100))
    assert order.tolist() != list(range(100))


def test_orders_differ_between_epochs_and_between_seeds():
    """Each (seed, epoch) has its own order; the same pair always the same."""
    orders = {
        (seed, epoch): tuple(epoch_order(seed, epoch, 50))
        for seed in (0, 1, -1)
        for epoch in (0, 1)
    }
    assert len(set(orders.values())) == len(orders)
    assert tuple(epoch_order(1, 1, 50)) == orders[1, 1]


def test_sample_keys_are_distinct():
    """Seed, epoch and sequence each change the key; no two samples share one."""
    samples = [
        (seed, epoch, sequence) for seed in (0, 1, -1) for epoch in (0, 1) for sequence in (0, 1)
    ]
    assert len({tuple(sample_key(*sample)) for sample in samples}) == len(samples)


def test_steps_of_an_epoch_contain_every_sequence_once(source):
    """17 sequences in steps of 5: a step crosses into the next epoch, and nothing is left out."""
    steps = steps_of(source)
    samples = [
        (int(epoch), int(sequence))
        for step in range(steps.num_steps)
        for sequence, epoch in zip(*steps.samples(step), strict=True)
    ]
    assert len(samples) == 51
    assert sorted(samples) == [(epoch, sequence) for epoch in range(3) for sequence in range(17)]
    assert [epoch for epoch, _ in samples] == sorted(epoch for epoch, _ in samples)


def test_each_epoch_of_a_run_has_its_own_order(source):
    """The second epoch does not repeat the first."""
    steps = steps_of(source, sequences_per_step=17)
    orders = [tuple(steps.samples(step)[0].tolist()) for step in range(3)]
    assert len(set(orders)) == 3


def test_the_last_step_may_be_short(source):
    """51 samples are ten steps of five and one of one."""
    steps = steps_of(source)
    assert steps.num_steps == 11
    assert [len(steps.samples(step)[0]) for step in range(11)] == [5] * 10 + [1]


def test_a_step_does_not_depend_on_the_steps_before(source):
    """Resuming at any step gives the batch that an uninterrupted run had there."""
    through, resumed = steps_of(source), steps_of(source)
    batches = [through.step(step) for step in range(through.num_steps)]
    for step in (9, 2, 10, 3, 0):
        batch = resumed.step(step)
        for name in ("input_ids", "labels", "segment_ids", "position_ids"):
            assert torch.equal(getattr(batch, name), getattr(batches[step], name))


def test_another_seed_is_another_order(source):
    """The seed reaches the samples."""
    one, other = (steps_of(source, seed=seed).samples(0)[0].tolist() for seed in (3, 4))
    assert one != other


def test_a_text_shorter_than_one_step_is_refused(source):
    """17 sequences do not fill a step of 18; the error says what would fit."""
    with pytest.raises(DataError, match=r"17 sequences of 4 tokens, fewer than the 18.*at most 68"):
        steps_of(source, sequences_per_step=18)
    steps_of(source, sequences_per_step=17)


def test_micro_batches_concatenate_to_the_batch(source):
    """Splitting loses no sequence and keeps their order, whatever the size."""
    batch = source.batch(np.arange(5), np.zeros(5, np.int64), 0)
    for size in (1, 2, 5, 9):
        parts = list(batch.split(size))
        assert max(len(part.input_ids) for part in parts) == min(size, 5)
        for name in ("input_ids", "labels", "segment_ids", "position_ids"):
            joined = torch.cat([getattr(part, name) for part in parts])
            assert torch.equal(joined, getattr(batch, name))
        for rows in ("all", "predicted"):
            assert sum(part.num_rows(rows) for part in parts) == batch.num_rows(rows)


@pytest.mark.parametrize("causal", [True, False])
def test_attention_mask_is_block_diagonal_and_causal(causal, batch_of):
    """A position sees its own segment, causal ones only backwards; written out by hand."""
    batch = batch_of([[[7, 8], [9]]], 4, causal=causal)
    above = 0 if causal else 1
    expected = [[1, above, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    mask = batch.attention_mask()
    assert mask is not None
    assert mask.int().tolist() == [[expected]]


def test_padding_counts_in_no_rows(batch_of):
    """`all` is what is real; `predicted` what has a label."""
    batch = batch_of([[[7, 8, 9], [6]], [[5]]], 6, causal=True)
    assert batch.rows("all").int().tolist() == [[1, 1, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0]]
    assert batch.rows("predicted").int().tolist() == [[1, 1, 0, 0, 0, 0], [0] * 6]
    assert (batch.num_rows("all"), batch.num_rows("predicted")) == (5, 2)


def test_moving_a_batch_changes_nothing(batch_of):
    """`to` keeps every field in its place."""
    batch = batch_of([[[7, 8, 9], [6]]], 6, causal=True)
    moved = batch.to(torch.device("cpu"))
    for name in ("input_ids", "labels", "segment_ids", "position_ids"):
        assert torch.equal(getattr(moved, name), getattr(batch, name))
    assert (moved.causal, moved.uniform) == (True, False)


def test_row_indices_match_the_boolean_mask(source):
    """Both kinds, in order, here and after a move; a batch with other labels numbers its own."""
    batch = steps_of(source).step(3)
    fewer = replace(batch, labels=batch.labels.where(batch.position_ids % 2 == 0, IGNORED))
    for each in (batch, batch.to(torch.device("cpu")), fewer, fewer.to(torch.device("cpu"))):
        for rows in ("all", "predicted"):
            numbers = each.row_numbers(rows)
            assert torch.equal(each.input_ids.flatten()[numbers], each.input_ids[each.rows(rows)])
            assert len(numbers) == each.num_rows(rows)
    assert 0 < fewer.num_rows("predicted") < batch.num_rows("predicted")
