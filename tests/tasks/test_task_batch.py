"""Sequences side by side: padded, cut into micro-batches, blanked, and nothing lost."""

import numpy as np
import torch

from stillhouse.tasks.encoded import EncodedExample, collate
from stillhouse.tokens.batches import IGNORED


def sequence(length: int, target, choices=None) -> EncodedExample:
    ids = np.arange(1, length + 1)
    return EncodedExample(ids, np.zeros_like(ids), target, choices)


def test_micro_batches_are_the_batch_without_its_padding():
    """Every token and target stands in one of them, in order, and none is longer than it must
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
    asked = [part.targets[part.asked].tolist() for part in parts]
    assert asked == [[3, 3, 3, 3], [5, 5, 5, 9, 9, 9, 9, 9], [2]]
    assert sum(part.num_rows("predicted") for part in parts) == batch.num_rows("predicted") == 13
    assert torch.equal(batch.input_ids[0], torch.tensor([1, 2, 3, 7, 7, 7, 7, 7, 7]))


def test_targets_that_are_as_many_as_tokens_are_not_cut_with_them():
    """Four classes, and four tokens in the longest sequence of the whole batch."""
    target = np.array([0.0, 1.0, 1.0, 0.0], np.float32)
    batch = collate([sequence(2, target), sequence(4, target)], pad_token_id=0)
    first, second = batch.split(1)
    assert first.input_ids.shape == (1, 2)
    assert first.targets.tolist() == second.targets.tolist() == [target.tolist()]
    assert first.num_rows("predicted") == 4


def test_of_a_blank_batch_nothing_is_asked():
    """It keeps ranks in step, and counts for nothing."""
    batch = collate([sequence(3, np.array(1)), sequence(4, np.array(0))], pad_token_id=0)
    blank = batch.blank()
    assert batch.num_rows("predicted") == 2
    assert blank.num_rows("predicted") == blank.num_rows("all") == 0
    assert torch.equal(blank.input_ids, batch.input_ids)
    assert sum(part.num_rows("all") for part in blank.split(1)) == 0


def test_a_number_is_asked_whatever_it_is():
    """Also the one that stands for nothing among labels; an unknown target is not asked."""
    numbers = collate(
        [sequence(2, np.array(IGNORED, np.float32)), sequence(2, np.array(1, np.float32))],
        pad_token_id=0,
    )
    assert numbers.num_rows("predicted") == 2
    unknown = collate([sequence(2, None), sequence(3, None)], pad_token_id=0)
    assert unknown.num_rows("predicted") == 0


def test_units_stay_together():
    """Sequences that are compared with each other are never cut apart."""
    batch = collate(
        [sequence(length, np.array(0, np.float32)) for length in (2, 3, 4, 5)],
        pad_token_id=0,
        together=2,
    )
    parts = list(batch.split(1))
    assert [part.input_ids.shape for part in parts] == [(2, 3), (2, 5)]


def test_choices_are_padded_with_no():
    """Padding is never an answer."""
    batch = collate(
        [sequence(2, np.array([0, 1]), np.array([True, True])),
         sequence(3, np.array([0, 2]), np.array([True, False, True]))],
        pad_token_id=0,
    )  # fmt: skip
    assert batch.choices is not None
    assert batch.choices.tolist() == [[True, True, False], [True, False, True]]
    assert batch.num_rows("predicted") == 4
