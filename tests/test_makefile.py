"""The Makefile: what the first command installs, and what `clean` leaves alone."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import stillhouse

MAKEFILE = Path(stillhouse.__file__).parents[2] / "Makefile"
DEVELOPERS = ("test", "test-slow", "lint", "types", "docs", "site", "audit")


def planned(folder: Path, target: str) -> str:
    """The commands that `make TARGET` would run in a fresh copy of the checkout."""
    for name in ("Makefile", "constraints.txt", "pyproject.toml"):
        shutil.copy(MAKEFILE.with_name(name), folder)
    command = ["make", "--dry-run", "--directory", str(folder), target]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_first_command_installs_no_developers_tools(tmp_path):
    """`make quickstart` installs the package alone."""
    commands = planned(tmp_path, "quickstart")
    assert re.findall(r"--editable (.+)", commands) == ["."]
    assert "bin/stillhouse quickstart" in commands


@pytest.mark.parametrize("target", DEVELOPERS)
def test_developers_targets_install_the_tools(tmp_path, target):
    """In the same environment, after the package."""
    assert re.findall(r"--editable (.+)", planned(tmp_path, target)) == [".", "'.[dev]'"]


def test_clean_keeps_trained_models(tmp_path):
    """Whatever is in runs/ is the user's; the environment and builds go."""
    planned(tmp_path, "clean")
    model = tmp_path / "runs/mine/student/model.safetensors"
    for path in (model, tmp_path / ".venv/bin/python", tmp_path / "build/a", tmp_path / "dist/b"):
        path.parent.mkdir(parents=True)
        path.touch()
    subprocess.run(["make", "--directory", str(tmp_path), "clean"], check=True)
    assert model.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "Makefile", "constraints.txt", "pyproject.toml", "runs",
    ]  # fmt: skip


def test_an_environment_that_is_there_keeps_what_is_installed(tmp_path):
    """Such as extras that were installed by hand."""
    own = tmp_path / ".venv" / "lib" / "mine.py"
    own.parent.mkdir(parents=True)
    own.touch()
    first = planned(tmp_path, "quickstart").splitlines()
    made = next(line for line in first if "-m venv" in line)
    subprocess.run(f"{made} --without-pip", shell=True, cwd=tmp_path, check=True)
    assert own.exists()
