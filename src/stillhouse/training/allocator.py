"""Keeps memory that a step frees in the process, for the next step.

glibc returns large blocks to the system immediately; the next step allocates them again, with a
page fault for every 4 KiB, about 100,000 in a step of BERT-base.
"""

import ctypes

# Parameters of mallopt in glibc's malloc.h.
TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4
EVERYTHING = 2**31 - 1
GROWTH_BYTES = 64 * 2**20


def keep_freed_memory() -> None:
    """Set malloc to use no mmap and to return no memory; does nothing without glibc."""
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        library.mallopt(MMAP_MAX, 0)
        library.mallopt(TRIM_THRESHOLD, EVERYTHING)
        library.mallopt(TOP_PAD, GROWTH_BYTES)
