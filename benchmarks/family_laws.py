"""Which laws of docs/reference/families.md hold for which family, by running their tests.

    python -m benchmarks.family_laws --output benchmarks/results/family-laws.json

`make docs` writes the tables from that file. Models are tiny and random, with fixed seeds, in
float32 on the CPU.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from docs.families import LAWS, cell

from benchmarks import measure


class Results:
    """Collects the outcome of every test of a law, by family."""

    def __init__(self) -> None:
        self.families: dict[str, dict[str, Any]] = {}
        self._cases: dict[str, tuple[str, str]] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Function]) -> None:
        """Note each test's law and family."""
        laws = {test: law for law, own in LAWS.items() for test in own.tests}
        for item in items:
            law = laws[item.nodeid.partition("[")[0]]
            parameters = item.callspec.params
            self._cases[item.nodeid] = law, str(parameters.get("family", parameters.get("name")))

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when != "call" and not report.failed:
            return
        law, family = self._cases[report.nodeid]
        found = self.families.setdefault(family, {}).setdefault(law, {"tests": 0, "failed": []})
        found["tests"] += 1
        if not report.passed:
            found["failed"].append(report.nodeid)
        properties = dict(report.user_properties)
        if "refused" in properties:
            found["refused"] = properties["refused"]
        if "difference" in properties:
            found["difference"] = max(found.get("difference", 0.0), properties["difference"])


def main() -> int:
    """Run the tests; write or print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="a JSON file; by default the table is printed")
    output = parser.parse_args().output
    results, started = Results(), time.perf_counter()
    tests = [test for law in LAWS.values() for test in law.tests]
    # Of every tier, and without checks of types, for which nothing may be imported before.
    options = ["-q", "-p", "no:cacheprovider", "-o", "addopts=--import-mode=importlib"]
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
    code = pytest.main([*options, *tests], plugins=[results])
    for family, found in results.families.items():
        print(family, *(f"{law}: {cell(law, found.get(law)) or '-'}" for law in LAWS), sep="  ")
    if output is not None:
        report = {
            **measure.environment(),
            "seconds": round(time.perf_counter() - started, 1),
            "families": results.families,
        }
        output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
