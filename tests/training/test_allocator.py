"""Freed memory is used again: steps after the first few take next to no new pages."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, torch
from stillhouse.training.device import keep_freed_memory
{call}
def faults():
    for _ in range(4):
        torch.ones(16 * 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):  # the heap grows to what it needs
    first = faults()
print(faults() - first)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
@pytest.mark.e2e
def test_a_block_that_was_freed_costs_no_page_faults():
    """Four blocks of 64 MiB come from the system, or from blocks that were kept."""
    faults = []
    for call in ("", "keep_freed_memory()"):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM.format(call=call)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        faults.append(int(done.stdout))
    assert faults[1] < faults[0] / 20
