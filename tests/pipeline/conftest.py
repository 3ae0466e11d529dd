"""Runs of a tiny recipe, shared by tests: one that is ready to distil, and one that is finished."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.pipeline.processes import Server, serving
from tests.pipeline.tiny_run import TinyRun, write_recipe


@pytest.fixture(scope="session")
def initialized(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """A run with tokens, teacher and initial student. Never modify it: use `ready`."""
    folder = tmp_path_factory.mktemp("initialized")
    run = TinyRun(write_recipe(folder), folder / "run")
    outcome = run.call("run", "--until", "init")
    assert outcome.code == 0, outcome.err
    return run


@pytest.fixture(scope="session")
def finished(initialized: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """The same run with student, control, evaluation and report. Never modify it: use `done`."""
    folder = initialized.copy(tmp_path_factory.mktemp("finished") / "run").folder
    recipe = initialized.recipe.with_name("finished.yaml")
    text = initialized.recipe.read_text(encoding="utf-8")
    recipe.write_text(text.replace("control: none", "control: same_tokens"), encoding="utf-8")
    run = TinyRun(recipe, folder)
    outcome = run.call("run")
    assert outcome.code == 0, outcome.err
    return run


@pytest.fixture
def ready(initialized: TinyRun, tmp_path: Path) -> TinyRun:
    """A copy of a run that is ready to distil."""
    return initialized.copy(tmp_path / "run")


@pytest.fixture
def done(finished: TinyRun, tmp_path: Path) -> TinyRun:
    """A copy of a finished run."""
    return finished.copy(tmp_path / "run")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Commands in separate processes."""
    with serving(tmp_path_factory.mktemp("server")) as server:
        yield server
