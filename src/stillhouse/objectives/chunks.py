"""Number of rows of logits in memory at once.

Axes: V vocabulary.
"""

from collections.abc import Iterator

import torch

# Two sizes. Matrix products are fastest with many rows; elementwise passes with few, which stay in
# the CPU's caches and in memory that is already mapped (a new page costs a fault).
CHUNK_BYTES = {"cpu": 256 * 2**20, "cuda": 1024 * 2**20}
CHUNK_TENSORS = {"cpu": 2, "cuda": 8}  # of (n, V), float32 at most, that live at once
BLOCK_BYTES = 2**20  # of one float32 tensor, per CPU thread


def rows_per_chunk(vocabulary_size: int, device: torch.device) -> int:
    """Rows of a chunk whose logits fit the device's budget; at least 16."""
    kind = device.type if device.type in CHUNK_BYTES else "cpu"
    return max(16, CHUNK_BYTES[kind] // (4 * CHUNK_TENSORS[kind] * vocabulary_size))


def rows_per_block(vocabulary_size: int, device: torch.device) -> int | None:
    """Rows of a chunk that the losses process at a time; None for the whole chunk."""
    if device.type != "cpu":
        return None
    return max(1, BLOCK_BYTES * torch.get_num_threads() // (4 * vocabulary_size))


def blocks(num_rows: int, block_rows: int) -> Iterator[slice]:
    """Consecutive slices of at most `block_rows` rows."""
    for first in range(0, num_rows, block_rows):
        yield slice(first, min(first + block_rows, num_rows))
