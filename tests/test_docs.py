"""The pages of docs/: Python code runs as shown, commands and recipes are valid, references lead
somewhere. `make site` checks links and anchors between them."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from docs.families import LAWS, cell

from stillhouse.cli import app
from stillhouse.recipe_file import load_recipe, parse_recipe, recipe_names
from stillhouse.stages.stage import STAGES

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])

every_page = pytest.mark.parametrize(
    "page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES]
)


def code_blocks(page: str | Path) -> list[str]:
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.M)


@pytest.mark.parametrize(
    ("page", "row"),
    [
        ("docs/reference/run-folder.md", r"^\| `(\w+)` \| [^|\n]+ \| [^|\n]+ \|$"),
        ("docs/contributing/architecture.md", r"\| stage `(\w+)`:"),
    ],
)
def test_pages_list_every_stage_in_order(page, row):
    """The tables of what a stage reads and writes, and of the packages."""
    text = (ROOT / page).read_text(encoding="utf-8")
    assert tuple(re.findall(row, text, re.M)) == STAGES


@pytest.mark.e2e
@pytest.mark.parametrize("page", ["guides/python.md", "guides/chat.md"])
def test_python_code_of_a_page_runs_in_order(page, tmp_path, monkeypatch):
    """Its blocks form one program, run in an empty folder."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for number, block in enumerate(code_blocks(page), 1):
        exec(compile(block, f"{page}, block {number}", "exec"), names)


@pytest.mark.e2e
def test_files_of_the_extending_page_are_found_by_their_registries(tmp_path):
    """A copy of the package with the page's files passes registry tests and runs the last block."""
    for name in ("src/stillhouse", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    *files, program = code_blocks("contributing/extending.md")
    for block in files:
        first, _, content = block.partition("\n")
        path = tmp_path / first.removeprefix("# ")
        assert path.parent.is_dir()
        assert not path.exists()
        path.write_text(content, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "src")}
    tests = ["tests/objectives/test_losses.py", "tests/data/test_registries.py"]
    chosen = ["-n0", "-p", "no:cacheprovider", "-k", "hellinger or org or ltsv"]
    for command in (["-c", program], ["-m", "pytest", *chosen, *tests]):
        done = subprocess.run(
            [sys.executable, *command],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_page_with_python_code_is_run():
    """By the tests above; trainer.md by those of `tests/integrations`, and model cards by those of
    `tests/report`."""
    others = {ROOT, DOCS / "results" / "model-cards"}
    shown = {page.name for page in PAGES if page.parent not in others and code_blocks(page)}
    assert shown == {"python.md", "chat.md", "extending.md", "trainer.md"}


def shell_commands(page: Path) -> Iterator[list[str]]:
    """The commands in the shell blocks of a page, split into words, without comments and what
    follows a `>`, `|` or `&&`."""
    text = page.read_text(encoding="utf-8")
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.M):
        for line in block.replace("\\\n", " ").splitlines() if language in ("", "bash") else ():
            if re.match(r"(stillhouse|make|python3?) ", line):
                words = shlex.split(line, comments=True)
                yield list(takewhile(lambda word: word not in (">", "|", "&&"), words))


GROUP: Any = typer.main.get_command(app)


@every_page
def test_shell_commands_are_valid(page):
    """The command line takes the arguments of `stillhouse`, and a recipe the settings; targets of
    make and modules that Python runs exist."""
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    for command, *arguments in shell_commands(page):
        if command == "stillhouse" and arguments[0].islower():
            name, *rest = arguments
            context = GROUP.commands[name].make_context(name, rest)
            if {"recipe", "overrides"} <= set(context.params):
                recipe = context.params["recipe"]
                known = recipe if recipe in recipe_names() else "quickstart"
                load_recipe(known, context.params["overrides"] or ())
        elif command == "make":
            assert {each for each in arguments if "=" not in each} <= targets, arguments
        elif arguments[:1] == ["-m"] and arguments[1].startswith(("benchmarks.", "tests.")):
            module = ROOT / arguments[1].replace(".", "/")
            assert module.is_dir() or module.with_suffix(".py").is_file(), arguments


@every_page
def test_commands_named_in_a_sentence_have_their_options(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.M)
    for name, rest in re.findall(r"`stillhouse ([a-z-]+)([^`]*)`", text):
        known = {option for each in GROUP.commands[name].params for option in each.opts}
        assert set(re.findall(r"(?<!\S)--[a-z][\w-]*", rest)) <= known, f"stillhouse {name}{rest}"


@every_page
def test_recipes_are_valid(page):
    """Whole ones as they are, sections with the rest of a small recipe."""
    rest = {
        "teacher": "sample",
        "corpus": {"source": "sample"},
        "tokens": {"language_modeling": "causal", "sequence_length": 256},
        "student": {"layer_map": 3},
    }
    text = page.read_text(encoding="utf-8")
    for block in re.findall(r"^```yaml\n(.*?)^```", text, re.DOTALL | re.M):
        found = yaml.safe_load(block)
        whole = "finetuning" in found or {"teacher", "corpus", "student"} <= set(found)
        parse_recipe(block if whole else yaml.safe_dump({**rest, **found}), where=str(page))


@every_page
def test_links_to_files_exist(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.M)
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)]
    local = [target for target in targets if target and "://" not in target]
    assert [target for target in local if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", ["architecture.md", "extending.md"])
def test_modules_named_on_a_page_exist(page):
    """In the package, or from the top of the repository."""
    named = set(re.findall(r"`([\w/]+/\w+\.py)`", (DOCS / "contributing" / page).read_text()))
    folders = (ROOT, ROOT / "src" / "stillhouse")
    wanted = {name for name in named if not re.search("NAME|MODEL_TYPE", name)}
    assert wanted
    assert {name for name in wanted if not any((top / name).exists() for top in folders)} == set()


def test_references_to_experiments_name_a_section():
    sections = re.findall(r"^#+ (.*)$", (DOCS / "results" / "experiments.md").read_text(), re.M)
    assert len(sections) == len(set(sections))
    pages = [*ROOT.joinpath("src").rglob("*.py"), *PAGES]
    for page in pages:
        text = re.sub(r"\s+(# )?", " ", page.read_text(encoding="utf-8"))
        for name in re.findall(r'experiments\.md\)?, "([^"]+)"', text):
            assert any(section.startswith(name) for section in sections), f"{page}: {name}"


@pytest.mark.parametrize("law", LAWS)
def test_a_law_of_families_names_tests_that_exist(law):
    for test in LAWS[law].tests:
        path, _, name = test.partition("::")
        assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), test


def test_the_table_of_families_shows_failures_before_numbers():
    """A number, how many tasks, what is refused, and what failed however small the number."""
    passed = {"tests": 4, "failed": []}
    assert cell("parity", passed | {"difference": 2.4e-6}) == "2e-6"
    assert cell("parity", passed | {"difference": 2.4e-6, "failed": ["one"]}) == "NO"
    assert [cell("tasks", passed), cell("reload", passed)] == ["4", "yes"]
    assert [cell("gguf", passed | {"refused": "why"}), cell("gguf", None)] == ["refused", ""]
