"""Prints which laws of tests/families/test_laws.py hold for which family, as a table.

.venv/bin/python -m benchmarks.family_laws
"""

import re
import sys
from collections import defaultdict
from typing import Any

import pytest

TESTS = "tests/families/test_laws.py"


class Results:
    """Collects whether all tests of a law passed, by family."""

    def __init__(self) -> None:
        self.passed: dict[str, dict[str, bool]] = defaultdict(dict)

    def pytest_runtest_logreport(self, report: Any) -> None:
        found = re.search(r"::test_(\w+)\[(?:(?:own|body)-)?([\w-]+)\]", report.nodeid)
        if found and (report.when == "call" or report.failed):
            law, family = found[1].replace("_", " "), found[2]
            self.passed[family][law] = self.passed[family].get(law, True) and report.passed

    def table(self) -> str:
        laws = list(dict.fromkeys(law for found in self.passed.values() for law in found))
        lines = [["family", *laws], ["---"] * (len(laws) + 1)]
        for family, found in self.passed.items():
            lines.append([family, *("yes" if found.get(law) else "NO" for law in laws)])
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> int:
    """Run the tests and print the table."""
    results = Results()
    code = pytest.main(["-n0", "-q", "-p", "no:cacheprovider", TESTS], plugins=[results])
    print(results.table())
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
