"""What malloc does with memory that is freed."""

import ctypes
import sys

# Parameters of mallopt in glibc's malloc.h.
TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4
EVERYTHING = 2**31 - 1
GROWTH_BYTES = 64 * 2**20


def keep_freed_memory() -> None:
    """Keep memory that a step frees in the process, for the next step: malloc uses no mmap and
    returns nothing to the system. Does nothing without glibc.

    glibc returns large blocks immediately; the next step allocates them again, with a page fault
    for every 4 KiB, about 100,000 in a step of BERT-base.
    """
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        library.mallopt(MMAP_MAX, 0)
        library.mallopt(TRIM_THRESHOLD, EVERYTHING)
        library.mallopt(TOP_PAD, GROWTH_BYTES)
