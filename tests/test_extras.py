"""Optional dependencies: the table of extras, and the message for a missing one."""

import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from stillhouse.errors import ModelError, RecipeError
from stillhouse.extras import EXTRAS, install_command, missing_modules, require

ROOT = Path(__file__).parents[1]


def requirements() -> dict[str, set[str]]:
    """The packages that each extra of pyproject.toml names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {
        extra: {re.split(r"[^\w.-]", line)[0] for line in lines}
        for extra, lines in project["optional-dependencies"].items()
    }


def test_extras_are_those_of_the_package():
    """The table has each extra of pyproject.toml but `dev`."""
    assert {*EXTRAS, "dev"} == set(requirements())


@pytest.mark.parametrize("extra", EXTRAS)
def test_modules_of_an_extra_come_from_its_requirements(extra):
    """Installing the extra installs what `require` looks for; ray[serve] brings a server."""
    packages = metadata.packages_distributions()
    known = requirements()[extra] | (requirements()["serve"] if extra == "ray" else set())
    for module in EXTRAS[extra].modules:
        assert {name.lower().replace("_", "-") for name in packages[module]} & known


@pytest.mark.parametrize("extra", EXTRAS)
def test_require_passes_where_the_extra_is_installed(extra):
    """All extras are installed for the tests, and their modules are not imported."""
    require(extra)


@pytest.mark.parametrize("extra", EXTRAS)
def test_require_names_the_missing_modules_and_the_install_command(extra, monkeypatch):
    """The message says what needs which modules, and how to get them."""
    module, *others = EXTRAS[extra].modules
    monkeypatch.setitem(sys.modules, module, None)
    assert missing_modules(extra) == [module]
    assert missing_modules(extra, others) == ([] if others else [module])
    message = f"This needs {module}. Install the extra with `{install_command(extra)}`."
    with pytest.raises(ModelError, match=re.escape(message)):
        require(extra, purpose="This", error=ModelError)
    with pytest.raises(RecipeError, match=re.escape(EXTRAS[extra].purpose)):
        require(extra)
