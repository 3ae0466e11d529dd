"""The cache on disk: what was written comes back, for any sequences in any order."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch

from stillhouse.errors import DataError
from stillhouse.runs.manifest import Inputs, commit_folder, commit_parts
from stillhouse.tokens.batches import SparseRows, TeacherRows
from stillhouse.tokens.packing import MaskedSequences
from stillhouse.tokens.settings import MaskingRecipe
from stillhouse.tokens.teacher_cache import (
    CacheFormat,
    FixedMaskSource,
    TeacherCache,
    part_folder,
    write_rows,
)

COUNTS = np.array([3, 0, 2, 4, 1])  # rows of five sequences, in parts of two
LAYOUT = CacheFormat("top_k", 2, "predicted", 70_000, 4, sequences_per_part=2)
INPUTS = Inputs("teacher-cache", {}, {})


@pytest.fixture
def taught() -> TeacherRows:
    """Ten rows whose ids need 32 bits and whose weights span what float16 can hold."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(70_000, (10, 2), generator=generator)
    weights = torch.logspace(0, -8, 20).reshape(10, 2)
    hidden = torch.randn(10, 4, generator=generator)
    targets = SparseRows("top_k", ids, weights, torch.rand(10, generator=generator))
    return TeacherRows("predicted", targets, hidden)


@pytest.fixture
def folder(tmp_path, taught):
    bounds = np.concatenate([[0], np.cumsum(COUNTS)])
    for part in range(3):
        counts = COUNTS[2 * part : 2 * part + 2]
        rows = slice(int(bounds[2 * part]), int(bounds[2 * part] + counts.sum()))
        with commit_folder(part_folder(tmp_path, part), INPUTS) as temporary:
            write_rows(temporary, taught[rows], counts, LAYOUT)
    commit_parts(tmp_path, INPUTS, {"format": asdict(LAYOUT), "num_parts": 3})
    return tmp_path


def test_cached_rows_are_read_in_the_requested_order(folder, taught):
    """Sequences 3, 0 and 2: rows 5-8, 0-2 and 3-4, across parts."""
    cache = TeacherCache(folder)
    found = cache.rows(np.array([3, 0, 1, 2]))
    order = [slice(5, 9), slice(0, 3), slice(3, 5)]
    wanted = TeacherRows.join([taught[rows] for rows in order])
    assert cache.num_rows == 10
    assert found.rows == "predicted"
    torch.testing.assert_close(found.targets.ids, wanted.targets.ids)
    torch.testing.assert_close(found.targets.weights, wanted.targets.weights, rtol=2**-11, atol=0)
    torch.testing.assert_close(found.targets.rest, wanted.targets.rest)
    torch.testing.assert_close(found.hidden, wanted.hidden, rtol=2**-10, atol=1e-6)


def test_bytes_per_row_matches_the_files(folder):
    """2 ids of 4 bytes, 2 weights of 2, one rest of 4, 4 hidden numbers of 2: 24 bytes."""
    size = sum(file.stat().st_size for file in folder.glob("part-*/*.bin") if file.stem != "counts")
    assert LAYOUT.bytes_per_row == 24
    assert size == 24 * COUNTS.sum()


def test_an_incomplete_cache_is_refused(folder):
    (folder / "manifest.json").unlink()
    with pytest.raises(DataError, match="not complete"):
        TeacherCache(folder)


def test_a_truncated_cache_file_is_refused(folder):
    file = folder / "part-00001" / "weights.bin"
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(DataError, match=r"weights\.bin is damaged"):
        TeacherCache(folder)


@pytest.mark.parametrize("bad", [float("nan"), 1e6])
def test_a_hidden_state_that_float16_cannot_hold_is_not_written(bad, tmp_path, taught):
    """Nothing that is not finite reaches the disk unseen."""
    taught.hidden[3, 1] = bad
    with pytest.raises(DataError, match="hidden"):
        write_rows(tmp_path, taught, COUNTS, LAYOUT)


def test_the_manifest_lists_every_file_of_every_part(folder):
    files = json.loads((folder / "manifest.json").read_text())["files"]
    assert len(files) == 3 * 5
    assert "part-00002/ids.bin" in files


def test_a_cached_sequence_has_the_same_mask_in_every_epoch(split_of, special):
    """At every epoch and under every seed: the one that the cache's rows belong to."""
    split = split_of([np.arange(5, 55).tolist()] * 4)
    source = MaskedSequences(
        split, 24, special, MaskingRecipe(), vocabulary_size=60, counts=split.counts
    )
    fixed, sequences = FixedMaskSource(source), np.array([0, 1, 2])
    first = fixed.batch(sequences, np.zeros(3, np.int64), 0)
    again = fixed.batch(sequences, np.full(3, 7), 11)
    other = source.batch(sequences, np.full(3, 7), 11)
    assert torch.equal(first.labels, again.labels)
    assert torch.equal(first.input_ids, again.input_ids)
    assert not torch.equal(first.labels, other.labels)
