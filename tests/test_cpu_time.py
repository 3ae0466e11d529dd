"""The rule for fast tests, on tests of its own."""

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

BUSY = """
import pytest, time
def burn(seconds):
    until = time.process_time() + seconds
    while time.process_time() < until: pass
@pytest.fixture(scope="module")
def shared(): burn(2.2)
def test_quick(shared): pass
{marker}
def test_busy(): burn(3)
"""


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("marker", "tiers", "failed"),
    [("", "not e2e", 1), ("", "not slow", 0), ("@pytest.mark.e2e", "not slow", 0)],
)
def test_a_fast_test_of_three_seconds_fails(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, marker: str, tiers: str, failed: int
) -> None:
    """Unless it is marked as slower, or slower ones run beside it; what a shared fixture takes is
    nobody's fault."""
    pytester.makeini("[pytest]\nmarkers = e2e: slower\n")
    pytester.makepyfile(BUSY.format(marker=marker))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    result = pytester.runpytest_subprocess(
        "-p", "tests.cpu_time", "-p", "no:cacheprovider", "-m", tiers
    )
    result.assert_outcomes(passed=2 - failed, failed=failed)
    if failed:
        result.stdout.fnmatch_lines(["*a fast test used 3.* s of CPU time, more than 2.0 s*"])
