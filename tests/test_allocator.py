"""Freed memory is used again: steps after the first few take next to no new pages."""

import subprocess
import sys

import pytest

PROGRAM = """
import contextlib, resource, torch
import stillhouse.cli
from stillhouse.__main__ import main
from stillhouse.allocator import keep_freed_memory
stillhouse.cli.app = lambda: None
with contextlib.suppress(SystemExit):
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
    """Four blocks of 64 MiB come from the system, or from blocks that were kept: by the function,
    and in every command."""
    faults = {}
    for call in ("pass", "keep_freed_memory()", "main()"):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM.format(call=call)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        faults[call] = int(done.stdout)
    assert faults["keep_freed_memory()"] < faults["pass"] / 20
    assert faults["main()"] < faults["pass"] / 20
