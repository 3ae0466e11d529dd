"""What lists the pages of the site: docs/llms.txt, and the table of decisions.

docs/llms.txt has one line for each page of the navigation in mkdocs.yml: title, address, and the
first sentence of the page, which says what it is about.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
DECISIONS = DOCS / "contributing" / "decisions"
OUTSIDE = "repository/"


def llms_page(pages: Mapping[Path, str]) -> str:
    """The list of pages.

    Args:
        pages: Texts that are about to be written, which come before those on the disk.
    """
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    lines = [f"# {config['site_name']}", "", f"> {config['site_description']}", ""]
    for title, addresses in sections(config["nav"]):
        lines += [f"## {title}", ""]
        for address in addresses:
            path = source_of(address)
            text = pages.get(path) or path.read_text(encoding="utf-8")
            html = re.sub(r"README\.md$", "index.html", address).replace(".md", ".html")
            lines.append(f"- [{title_of(text)}]({html}): {first_sentence(text)}")
        lines.append("")
    return "\n".join(lines)


def sections(nav: list[Any]) -> Iterator[tuple[str, list[str]]]:
    """The sections of the navigation, each with the addresses of its pages."""
    for item in nav:
        ((title, content),) = item.items()
        yield title, list(_addresses(content))


def _addresses(item: Any) -> Iterator[str]:
    if isinstance(item, str):
        yield item
    else:
        for part in item.values() if isinstance(item, dict) else item:
            yield from _addresses(part)


def source_of(address: str) -> Path:
    """The file of a page of the navigation."""
    if address.startswith(OUTSIDE):
        return ROOT / address.removeprefix(OUTSIDE)
    return DOCS / address


def title_of(text: str) -> str:
    """The heading of a page."""
    return text.partition("\n")[0].removeprefix("# ")


def first_sentence(text: str) -> str:
    """The first sentence after the heading, without links and line breaks.

    Raises:
        ValueError: The page does not begin with a heading and a paragraph.
    """
    paragraphs = [part for part in text.split("\n\n")[1:] if part.strip()]
    if not text.startswith("# ") or not re.match(r"[`\w*\[]", paragraphs[0]):
        raise ValueError(f"{title_of(text)}: a page begins with a heading and a paragraph.")
    plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", " ".join(paragraphs[0].split()))
    return re.split(r"(?<=\.)\s", plain)[0]


def decision_list() -> str:
    """A list of the decisions."""
    files = sorted(DECISIONS.glob("0*.md"))
    titles = [title_of(file.read_text(encoding="utf-8")) for file in files]
    return "\n".join(f"- [{title}]({file.name})" for title, file in zip(titles, files, strict=True))
