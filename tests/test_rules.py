"""Rules of the house that a machine can hold: direction of imports, no pickle, a quick --help."""

import ast
import contextlib
import importlib.resources
import io
import re
import subprocess
import sys
import tokenize
from importlib import metadata
from pathlib import Path

import pytest

import stillhouse
from stillhouse.recipe_file import recipe_names

ROOT = Path(stillhouse.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))

BASE = {
    "allocator",
    "errors",
    "extras",
    "kernels",
    "machine",
    "recipe",
    "recipe_file",
    "runs",
    "section",
    "settings",  # of each part, the module `settings`: what a recipe may say of it
    "terminal",
    "units",
    "wording",
}
SHARED = {
    "data",
    "energy",
    "families",
    "inference",
    "models",
    "objectives",
    "samples",
    "stages",
    "tasks",
    "tokens",
    "training",
}
STAGES = {
    "cleaning",
    "corpus",
    "detection",
    "teacher",
    "race",
    "student",
    "distillation",
    "finetuning",
    "evaluation",
    "export",
    "inspection",
    "report",
    "serving",
}
TOP = {
    "__init__",
    "__main__",
    "cli",
    "pipeline",
    "check",
    "doctor",
    "estimate",
    "integrations",
    "verification",
    "watch",
}

# For a shared package, those it may import; for a base module, the base modules it may import.
ARROWS = {
    "data": set(),
    "energy": set(),
    "families": {"tokens"},  # a body runs on a batch
    "inference": {"data", "families", "models", "tasks", "tokens"},
    "models": {"families", "tokens"},
    "objectives": {"families", "tokens"},
    "samples": set(),
    "stages": {"families", "models", "tokens", "training"},
    "tasks": {"data", "families", "models", "tokens"},
    "tokens": set(),
    "training": {"families", "models", "objectives", "tokens"},
    "race": {"student", "distillation", "evaluation"},  # it runs them on each candidate
    "cleaning": {"report"},  # which makes a page of its own
    "report": {"evaluation"},  # the list of metrics
    "serving": {"inspection"},  # a tab of its page
    "inspection": {"student"},  # where channels are, and the text they are measured on
    "detection": {"evaluation"},  # windows over a text, as of perplexity
    "allocator": set(),
    "errors": set(),
    "extras": {"errors"},
    "kernels": {"machine", "runs"},
    "machine": set(),
    "recipe": {"families", "section", "settings"},
    "recipe_file": {"errors", "recipe", "settings"},
    "runs": {"errors", "extras", "machine", "settings"},  # a manifest has the power of its stage
    "section": set(),
    "settings": {
        "cleaning",
        "objectives",
        "section",
    },  # keys are the steps and divergences there are
    "terminal": set(),
    "units": set(),
    "wording": set(),
}
HELP_SECONDS = 0.3

every_module = pytest.mark.parametrize(
    "path", MODULES, ids=[str(path.relative_to(ROOT)) for path in MODULES]
)


def part_of(path: Path) -> str:
    """The top-level package or module that a file belongs to."""
    if path.name == "settings.py":
        return "settings"
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_parts(path: Path) -> set[str]:
    """The parts of stillhouse that a file imports, at the top or inside a function."""
    parts = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            package, _, rest = name.partition(".")
            if package == "stillhouse":
                parts.add(
                    "settings" if rest.split(".")[1:2] == ["settings"] else rest.split(".")[0]
                )
    return parts - {part_of(path), "__version__"}


def allowed_for(part: str) -> set[str]:
    """What a part may import."""
    if part in TOP:
        return BASE | SHARED | STAGES | TOP
    if part in STAGES:
        return BASE | SHARED | ARROWS.get(part, set())
    if part in BASE:
        return ARROWS[part]
    return BASE | ARROWS[part]


def test_every_requirement_is_pinned_to_what_is_installed():
    """The lock names each library that Stillhouse needs, whatever needs it in turn, at one version;
    nothing comes from anywhere but a registry."""
    lines = (ROOT.parents[1] / "constraints.txt").read_text().splitlines()
    assert not [line for line in lines if "://" in line or "@" in line]
    pins = dict(line.lower().replace("_", "-").split("==") for line in lines if line[:1] != "#")
    waiting, seen = ["stillhouse"], set()
    while waiting:
        for requirement in metadata.requires(waiting.pop()) or []:
            wanted, _, marker = requirement.partition(";")
            needed = re.split(r"[^\w.-]", wanted.strip())[0].lower().replace("_", "-")
            if "extra ==" in marker or needed in seen:
                continue
            seen.add(needed)
            with contextlib.suppress(metadata.PackageNotFoundError):  # not for this system
                installed = metadata.version(needed)
                assert pins.get(needed) == installed.partition("+")[0], needed
                waiting.append(needed)
    assert "torch" in seen


@every_module
def test_imports_go_down_and_stages_meet_only_through_files(path):
    """A stage imports shared packages and base modules, a shared package base modules, and either
    what is listed for it."""
    assert part_of(path) in BASE | SHARED | STAGES | TOP, "a part without a layer"
    assert imported_parts(path) <= allowed_for(part_of(path))


def test_the_architecture_page_explains_every_part():
    page = (ROOT.parents[1] / "docs/contributing/architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?) \|", page, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert (BASE | SHARED | STAGES | TOP) - {"__init__", "__main__"} == named


def test_the_table_has_no_arrow_that_nobody_uses():
    """An arrow that is no longer needed is taken out, so that it does not come back unseen."""
    used = {part: set() for part in ARROWS}
    for path in MODULES:
        used.setdefault(part_of(path), set()).update(imported_parts(path))
    for part in (BASE | SHARED) & set(ARROWS):
        assert ARROWS[part] - BASE <= used[part], part


@every_module
def test_every_module_says_what_it_is(path):
    """The first thing in a file is a docstring."""
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


def code_of(path: Path) -> str:
    """A file's code without comments and strings, tokens joined by single spaces."""
    skipped = {tokenize.COMMENT, tokenize.STRING, tokenize.NL, tokenize.NEWLINE}
    source = io.StringIO(path.read_text(encoding="utf-8"))
    tokens = tokenize.generate_tokens(source.readline)
    return " ".join(token.string for token in tokens if token.type not in skipped)


FORBIDDEN = (
    "import pickle",
    "from pickle",
    "pickle .",
    "cloudpickle",
    "import dill",
    "import joblib",
    "import shelve",
    "import marshal",
    "torch . load",
    "torch . save",
    "torch . hub",
    "allow_pickle = True",
    "trust_remote_code = True",
    "weights_only = False",
    "yaml . unsafe_load",
    "yaml . full_load",
    "Loader = yaml . Loader",
    "shell = True",
    "eval (",
    "exec (",
)


@every_module
def test_no_module_can_run_code_from_a_file(path):
    """No pickle, nothing that unpickles, no code from model folders."""
    code = f" {code_of(path)} ".replace(" . eval (", "").replace(" def eval (", "")
    assert [words for words in FORBIDDEN if f" {words}" in code] == []


def test_the_search_for_forbidden_words_finds_them(tmp_path):
    """Each is found in code however it is spaced, and not in a comment or a string."""
    path = tmp_path / "module.py"
    path.write_text('"""torch.load"""\nx = torch.load(f, weights_only = False)  # import pickle\n')
    found = [words for words in FORBIDDEN if f" {words}" in f" {code_of(path)} "]
    assert found == ["torch . load", "weights_only = False"]


HELP = """
import io, os, sys
sys.argv = ["stillhouse", *sys.argv[1:]]
sys.stdout, out = io.StringIO(), sys.stdout
try:
    from stillhouse.__main__ import main
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
times = os.times()
print(times.user + times.system, *sorted(sys.modules), file=out)
"""
# Not pydantic: typer itself loads it to read an option. Ours, the recipe's models, stay out.
HEAVY = {"torch", "transformers", "tokenizers", "pyarrow", "numpy", "datasets", "yaml"}
HEAVY |= {"stillhouse.recipe"}


def run_help(*arguments: str) -> tuple[float, set[str]]:
    """CPU seconds, and the modules that were loaded."""
    command = [sys.executable, "-c", HELP, *arguments, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    seconds, *modules = done.stdout.split()
    return float(seconds), set(modules)


@pytest.mark.parametrize("arguments", [(), ("run",), ("generate",)], ids=["all", "run", "generate"])
def test_help_loads_nothing_heavy_and_answers_at_once(arguments):
    """No torch to print a page; under 0.3 s of CPU time, best of five.

    CPU time, since the wall clock of a busy machine says nothing of us.
    """
    runs = [run_help(*arguments) for _ in range(5)]
    assert runs[0][1] & HEAVY == set()
    assert min(seconds for seconds, _ in runs) < HELP_SECONDS


def test_importing_the_package_is_cheap():
    """`import stillhouse` gives the names of the public API without the libraries behind them."""
    program = "import sys, stillhouse; print(*stillhouse.__all__); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=200
    )
    names, modules = done.stdout.splitlines()
    assert set(modules.split()) & (HEAVY | {"pydantic"}) == set()
    for name in names.split():
        assert hasattr(stillhouse, name)


def test_every_packaged_file_travels_with_the_package():
    """Recipes, the page's style and the typing marker are resources of the installed package."""
    package = importlib.resources.files("stillhouse")
    recipes = {path.stem for path in (ROOT / "recipes").glob("*.yaml")}
    assert recipes == set(recipe_names())
    assert "quickstart" in recipes
    for name in recipes:
        text = (package / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
        assert text.startswith("# "), f"{name} does not say what it is"
    assert (package / "report" / "templates" / "page.css").is_file()
    assert (package / "py.typed").is_file(), "promised by the classifier Typing :: Typed"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_and_files_are_short(path):
    """At most 60 lines of a function, 500 of a file."""
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 500
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    found = [node for node in ast.walk(ast.parse(text)) if isinstance(node, functions)]
    lengths = [(node.name, (node.end_lineno or 0) - node.lineno + 1) for node in found]
    assert [(name, length) for name, length in lengths if length > 60] == []
