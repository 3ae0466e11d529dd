"""Python code on the pages of docs/ runs as it is shown."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
PAGES = ("python.md",)


@pytest.mark.e2e
@pytest.mark.parametrize("page", PAGES)
def test_python_snippets_of_a_page_run_in_order(page, tmp_path, monkeypatch):
    """The blocks of a page form one program, run in an empty folder."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.DOTALL | re.M)
    assert blocks, f"{page} shows no Python code"
    names: dict[str, object] = {}
    for number, block in enumerate(blocks, 1):
        exec(compile(block, f"{page}, block {number}", "exec"), names)


def test_every_page_with_python_snippets_is_run():
    """Pages whose snippets are parts of other files are the model cards' and the README's alone."""
    shown = {path.name for path in DOCS.glob("*.md") if "```python" in path.read_text()}
    assert shown == set(PAGES)
