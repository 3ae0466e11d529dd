"""Batches of tasks: padding, micro-batches, blank batches."""

import numpy as np
import torch

from stillhouse.tasks.encoded import EncodedExample, collate
from stillhouse.tokens.batches import IGNORED


def sequence(length: int, target, output_mask=None) -> EncodedExample:
    ids = np.arange(1, length + 1)
    return EncodedExample(ids, np.zeros_like(ids), target, output_mask)


def test_micro_batches_are_trimmed_slices():
    """Every token and target is in one of them, in order, and none is longer than it must
    be."""
    lengths = [3, 3, 5, 9, 2]
    tags = [np.where(np.arange(length) % 2, IGNORED, length) for length in lengths]
    batch = collate(
        [sequence(*pair) for pair in zip(lengths, tags, strict=True)],
        pad_token_id=7,
        per_token=True,
    )
    parts = list(batch.split(2))
    assert [part.input_ids.shape for part in parts] == [(2, 3), (2, 9), (1, 2)]
    assert sum(part.num_rows("all") for part in parts) == batch.num_rows("all") == sum(lengths)
    asked = [part.targets[part.target_mask].tolist() for part in parts]
    assert asked == [[3, 3, 3, 3], [5, 5, 5, 9, 9, 9, 9, 9], [2]]
    assert sum(part.num_rows("predicted") for part in parts) == batch.num_rows("predicted") == 13
    assert torch.equal(batch.input_ids[0], torch.tensor([1, 2, 3, 7, 7, 7, 7, 7, 7]))


def test_sequence_targets_are_not_trimmed():
    """Four classes, and four tokens in the longest sequence of the whole batch."""
    target = np.array([0.0, 1.0, 1.0, 0.0], np.float32)
    batch = collate([sequence(2, target), sequence(4, target)], pad_token_id=0)
    first, second = batch.split(1)
    assert first.input_ids.shape == (1, 2)
    assert first.targets.tolist() == second.targets.tolist() == [target.tolist()]
    assert first.num_rows("predicted") == 4


def test_blank_batch_has_no_targets():
    """It keeps ranks in step, and counts for nothing."""
    batch = collate([sequence(3, np.array(1)), sequence(4, np.array(0))], pad_token_id=0)
    blank = batch.blank()
    assert batch.num_rows("predicted") == 2
    assert blank.num_rows("predicted") == blank.num_rows("all") == 0
    assert torch.equal(blank.input_ids, batch.input_ids)
    assert sum(part.num_rows("all") for part in blank.split(1)) == 0


def test_any_number_is_a_target():
    """Also the value that means no label elsewhere; an unknown target does not count."""
    numbers = collate(
        [sequence(2, np.array(IGNORED, np.float32)), sequence(2, np.array(1, np.float32))],
        pad_token_id=0,
    )
    assert numbers.num_rows("predicted") == 2
    unknown = collate(
        [sequence(2, np.array(IGNORED)), sequence(3, np.array(IGNORED))], pad_token_id=0
    )
    assert unknown.num_rows("predicted") == 0


def test_units_are_not_split():
    """Sequences that a loss compares stay in one micro-batch."""
    batch = collate(
        [sequence(length, np.array(0, np.float32)) for length in (2, 3, 4, 5)],
        pad_token_id=0,
        unit_size=2,
    )
    parts = list(batch.split(1))
    assert [part.input_ids.shape for part in parts] == [(2, 3), (2, 5)]


def test_output_mask_is_padded_with_false():
    """Padding is never an answer."""
    batch = collate(
        [sequence(2, np.array([0, 1]), np.array([True, True])),
         sequence(3, np.array([0, 2]), np.array([True, False, True]))],
        pad_token_id=0,
    )  # fmt: skip
    assert batch.output_mask is not None
    assert batch.output_mask.tolist() == [[True, True, False], [True, False, True]]
    assert batch.num_rows("predicted") == 4
