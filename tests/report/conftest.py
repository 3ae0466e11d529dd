"""Fixtures: run folders with handmade results."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.report.handmade import FIGURES, write_results

from stillhouse.runs.paths import RunFolder


@pytest.fixture
def losses() -> dict[str, float | None]:
    """The validation losses of teacher, student and control; the student is the better."""
    return {name: FIGURES[name][0] for name in ("teacher", "student", "control")}


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., RunFolder]:
    """Makes a run folder with one seed's results."""

    def make(losses: dict[str, float | None], **changes: Any) -> RunFolder:
        run = RunFolder.at(tmp_path / "a run")
        write_results(run, losses, **changes)
        return run

    return make
