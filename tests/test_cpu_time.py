"""The rule for fast tests, on tests of its own."""

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

BUSY = """
import pytest, time
def burn(request, share):
    limit = request.config.pluginmanager.get_plugin("fast-tests").limit
    assert limit >= {least}
    until = time.process_time() + share * limit
    while time.process_time() < until: pass
@pytest.fixture(scope="module")
def shared(request): burn(request, 1.1)
def test_quick(shared): pass
{marker}
def test_busy(request): burn(request, {share})
"""


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("marker", "tiers", "least", "share", "failed"),
    [
        ("", "not e2e", 2, 1.2, 1),
        ("", "not e2e", 2, 0.8, 0),
        ("", "not slow", 4, 0.8, 0),
        ("@pytest.mark.e2e", "not slow", 4, 1.2, 0),
    ],
)
def test_a_fast_test_that_takes_too_long_fails(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, marker, tiers, least, share, failed
) -> None:
    """Unless it is marked as slower; beside slower ones it has twice the time. What a shared
    fixture takes is nobody's fault."""
    pytester.makeini("[pytest]\nmarkers = e2e: slower\n")
    pytester.makepyfile(BUSY.format(marker=marker, least=least, share=share))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    result = pytester.runpytest_subprocess(
        "-p", "tests.cpu_time", "-p", "no:cacheprovider", "-m", tiers
    )
    result.assert_outcomes(passed=2 - failed, failed=failed)
    if failed:
        result.stdout.fnmatch_lines(["*a fast test used *.* s of CPU time, more than *.* s*"])
