"""The pages of docs/: Python code runs as shown, links and references lead somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
PAGES_WITH_CODE = ("python.md",)

every_page = pytest.mark.parametrize(
    "page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES]
)


@pytest.mark.e2e
@pytest.mark.parametrize("page", PAGES_WITH_CODE)
def test_python_code_of_a_page_runs_in_order(page, tmp_path, monkeypatch):
    """The blocks of a page form one program, run in an empty folder."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.DOTALL | re.M)
    names: dict[str, object] = {}
    for number, block in enumerate(blocks, 1):
        exec(compile(block, f"{page}, block {number}", "exec"), names)


def test_every_page_with_python_code_is_run():
    shown = {page.name for page in DOCS.glob("*.md") if "```python" in page.read_text()}
    assert shown == set(PAGES_WITH_CODE)


@every_page
def test_links_to_files_exist(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.M)
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)]
    local = [target for target in targets if target and "://" not in target]
    assert [target for target in local if not (page.parent / target).exists()] == []


def test_references_to_experiments_name_a_section():
    sections = re.findall(r"^#+ (.*)$", (DOCS / "experiments.md").read_text(), re.M)
    assert len(sections) == len(set(sections))
    pages = [*ROOT.joinpath("src").rglob("*.py"), *PAGES]
    for page in pages:
        text = re.sub(r"\s+(# )?", " ", page.read_text(encoding="utf-8"))
        for name in re.findall(r'experiments\.md\)?, "([^"]+)"', text):
            assert any(section.startswith(name) for section in sections), f"{page}: {name}"
