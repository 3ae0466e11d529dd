"""Leave out pages by their address: sites such as Wikipedia, and block lists.

A site stands for its subdomains too, and an address for those below it. Schemes, ports, a leading
`www.` and the case of a host make no difference. A document without an address is kept.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from pydantic import Field

from stillhouse.cleaning.step import Judge, Page, Step, existing_file
from stillhouse.data.text import read_lines
from stillhouse.section import Section

NAMED_SITES = 20  # above this many, the reason does not name the site


class UrlsRecipe(Section):
    """Sites whose pages are left out."""

    block: list[str] = Field(default=[])
    """Sites, such as `wikipedia.org`, or addresses, such as `example.com/ads`."""
    block_lists: list[str] = Field(default=[])
    """Files with one site or address in each line, or a hosts file; `#` begins a comment."""


def host_of(url: str) -> str:
    """The host of an address in lower case and in ASCII (IDNA), without its port; empty where there
    is none."""
    return _host(_split(url))


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
        parts = _split(entry)
        host = _without_www(_host(parts))
        if host and (parts.path.strip("/") or parts.query):
            addresses.add(_address(host, parts))
        elif host:
            sites.add(host)

    def reason(url: str) -> str | None:
        parts = _split(url)
        host = _host(parts)
        labels = host.split(".")
        for start in range(len(labels)):
            if (site := ".".join(labels[start:])) in sites:
                return f"site {site}" if len(sites) <= NAMED_SITES else "site in a block list"
        if addresses and any(each in addresses for each in _addresses_above(host, parts)):
            return "address in a block list"
        return None

    return reason


def _split(url: str) -> SplitResult:
    """The parts of an address, with or without a scheme; all empty for one that is malformed."""
    url = url.strip()
    try:
        return urlsplit(url if "://" in url or url.startswith("//") else f"//{url}")
    except ValueError:  # such as a bracket without its other
        return urlsplit("")


def _host(parts: SplitResult) -> str:
    host = (parts.hostname or "").rstrip(".")
    if host.isascii():
        return host
    try:
        return host.encode("idna").decode()
    except UnicodeError:
        return host


def _without_www(host: str) -> str:
    return host.removeprefix("www.")


def _address(host: str, parts: SplitResult) -> str:
    query = f"?{parts.query}" if parts.query else ""
    return f"{host}{parts.path.rstrip('/')}{query}"


def _addresses_above(host: str, parts: SplitResult) -> Iterable[str]:
    """An address as it is, and those of which it is a part."""
    host = _without_www(host)
    yield _address(host, parts)
    names = parts.path.rstrip("/").split("/")
    for end in range(len(names), 1, -1):
        yield "/".join([host, *names[1:end]])


def _listed(settings: UrlsRecipe) -> Iterable[str]:
    for path in files(settings):
        for _, line in read_lines(path):
            fields = f" {line}".partition(" #")[0].split()
            if fields:
                yield fields[-1]  # a hosts file has an IP address before the site


def files(settings: UrlsRecipe) -> Iterable[Path]:
    return [existing_file(name, "cleaning.urls.block_lists") for name in settings.block_lists]


STEP = Step(UrlsRecipe, make, files)
