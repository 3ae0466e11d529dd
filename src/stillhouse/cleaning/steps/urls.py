"""Leave out pages by their address: sites such as Wikipedia, and block lists.

A site stands for its subdomains too. A document without an address is kept.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import Field

from stillhouse.cleaning.step import Judge, Page, Step
from stillhouse.data.text import read_lines
from stillhouse.errors import DataError
from stillhouse.section import Section


class UrlsRecipe(Section):
    """Sites whose pages are left out."""

    block: list[str] = Field(default=[])
    """Sites, such as `wikipedia.org`, or addresses, such as `example.com/ads`."""
    block_lists: list[str] = Field(default=[])
    """Files with one site or address in each line; lines that begin with `#` are comments."""


def host_of(url: str) -> str:
    """The host of an address in lower case, without its port; empty where there is none."""
    try:
        return (urlsplit(url).hostname or "").rstrip(".")
    except ValueError:
        return ""


def make(settings: UrlsRecipe) -> Judge:
    is_blocked = blocker([*settings.block, *_listed(settings)])

    def judge(page: Page) -> str | None:
        return is_blocked(page.url) if page.url else None

    return judge


def blocker(entries: Iterable[str]) -> Callable[[str], str | None]:
    """What tells why an address is blocked, or None, for sites and addresses."""
    sites: set[str] = set()
    addresses: set[str] = set()
    for entry in entries:
        bare = _without_scheme(entry).rstrip("/")
        (addresses if "/" in bare else sites).add(bare.lower() if "/" not in bare else bare)

    def reason(url: str) -> str | None:
        host = host_of(url)
        labels = host.split(".")
        for start in range(len(labels)):
            if (site := ".".join(labels[start:])) in sites:
                return f"site {site}" if len(sites) <= 20 else "site in a block list"
        if addresses:
            parts = _without_scheme(url).split("/")
            if any("/".join(parts[:end]) in addresses for end in range(2, len(parts) + 1)):
                return "address in a block list"
        return None

    return reason


def _without_scheme(url: str) -> str:
    bare = url.strip().partition("://")[2] or url.strip()
    host, slash, path = bare.partition("/")
    return f"{host.lower().removeprefix('www.')}{slash}{path}"


def _listed(settings: UrlsRecipe) -> Iterable[str]:
    for path in files(settings):
        for _, line in read_lines(path):
            if (entry := line.strip()) and not entry.startswith("#"):
                yield entry


def files(settings: UrlsRecipe) -> Iterable[Path]:
    for name in settings.block_lists:
        path = Path(name).expanduser()
        if not path.is_file():
            raise DataError(f"cleaning.urls.block_lists: there is no file {name!r:.200}.")
        yield path


STEP = Step(UrlsRecipe, make, files)
