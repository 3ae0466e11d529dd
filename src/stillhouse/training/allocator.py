"""Memory that a step frees stays with the process, for the next step to use.

A C library gives large blocks back to the system at once; the next step then takes them anew, and
the processor stops at every page of 4 KiB to clear it, about 100,000 times a step of BERT-base.
"""

import ctypes

# Parameters of mallopt in glibc's malloc.h.
TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4
EVERYTHING = 2**31 - 1
GROWTH_BYTES = 64 * 2**20


def keep_freed_memory() -> None:
    """Take no block from the system by itself, and give nothing back; only where glibc is."""
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        library.mallopt(MMAP_MAX, 0)
        library.mallopt(TRIM_THRESHOLD, EVERYTHING)
        library.mallopt(TOP_PAD, GROWTH_BYTES)
