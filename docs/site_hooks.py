"""Hooks of mkdocs (mkdocs.yml): pages may link to any file of the repository, as they do on GitHub.

A linked file outside docs/ becomes a part of the site, below `repository/`. Anchors of headings are
GitHub's, so that a link works in both places.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pymdownx.slugs import slugify

ROOT = Path(__file__).parents[1]
OUTSIDE = "repository"
CODE = re.compile(r"(^```.*?^```)", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s#]+)(#[^)\s]*)?\)")


def on_config(config: MkDocsConfig) -> None:
    config["mdx_configs"]["toc"]["slugify"] = slugify(case="lower")


def on_files(files: Files, *, config: MkDocsConfig) -> None:
    """Add the files outside docs/ that pages link to, and those that these link to in turn."""
    waiting = [file for file in files if file.is_documentation_page()]
    wanted = [path for item in config["nav"] for path in _outside_of_nav(item)]
    while waiting or wanted:
        if waiting:
            page = Path(waiting.pop().abs_src_path or "")
            text = page.read_text(encoding="utf-8")
            wanted += [path for path in _targets(page, text) if _address(path) != _inside(path)]
        else:
            path = wanted.pop()
            if _address(path) not in files.src_uris:
                added = File.generated(config, _address(path), abs_src_path=str(path))
                files.append(added)
                waiting += [added] if added.is_documentation_page() else []


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links lead to where the site has the files."""
    source, here = Path(page.file.abs_src_path or ""), os.path.dirname(page.file.src_uri)

    def link(match: re.Match[str]) -> str:
        path = _file(source, match[1])
        if path is None:
            return match[0]
        return f"]({os.path.relpath(_address(path), here or '.')}{match[2] or ''})"

    parts = CODE.split(markdown)
    return "".join(part if at % 2 else LINK.sub(link, part) for at, part in enumerate(parts))


def _outside_of_nav(item: object) -> Iterator[Path]:
    """The files of the navigation that are outside docs/."""
    if isinstance(item, str):
        if item.startswith(f"{OUTSIDE}/"):
            yield ROOT / item.removeprefix(f"{OUTSIDE}/")
    elif isinstance(item, dict):
        for part in item.values():
            yield from _outside_of_nav(part)
    elif isinstance(item, list):
        for part in item:
            yield from _outside_of_nav(part)


def _targets(page: Path, text: str) -> Iterator[Path]:
    """The files of the repository that a page links to."""
    for target, _ in LINK.findall(CODE.sub("", text)):
        if path := _file(page, target):
            yield path


def _file(page: Path, target: str) -> Path | None:
    """The file that a link means; of a folder its README.md."""
    path = Path(os.path.normpath(page.parent / target))
    if (path / "README.md").is_file():
        path /= "README.md"
    return path if path.is_file() and path.is_relative_to(ROOT) else None


def _inside(path: Path) -> str:
    return os.path.relpath(path, ROOT / "docs").replace(os.sep, "/")


def _address(path: Path) -> str:
    """Where the site has a file: its path in docs/, or below `repository/`."""
    inside = _inside(path)
    if not inside.startswith("../"):
        return inside
    return f"{OUTSIDE}/{path.relative_to(ROOT).as_posix()}"
