"""The links of Reddit posts, as WebText took them: addresses outside Reddit that users have voted
for (Radford et al. 2019, section 2.1). Fetching the pages is left to a crawler.

Contract: dumps of submissions (JSON lines, in any compression) -> a text file with one address per
line, in the order of the posts. Each post is counted once: as a link, or by the first reason for
which it is left out. Memory is bounded by the window of a zstd file, 2 GiB for published dumps, and
8 bytes for each different link, at times 16. Two addresses are the same where they differ in
nothing but scheme, `www.`, case of the host, default port, fragment, tracking parameters or a slash
at the end; the first one is written.
"""

import hashlib
import ipaddress
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import SplitResult, urlsplit, urlunsplit

import numpy as np
from jaxtyping import Bool, UInt64

from stillhouse.cleaning.step import Page
from stillhouse.cleaning.steps.urls import UrlsRecipe
from stillhouse.cleaning.steps.urls import make as make_urls
from stillhouse.data.formats import TableFile
from stillhouse.data.formats.jsonl import read_json_lines
from stillhouse.errors import DataError
from stillhouse.runs.atomic import atomic_file, explained_os_errors, remove_leftovers

BATCH_LINKS = 2**16
MOST_MESSAGES = 5  # of damage
PORTS = {"http": 80, "https": 443}
REDDIT = ("reddit.com", "redd.it", "redditmedia.com", "redditstatic.com", "reddituploads.com")
# Parameters that tell where a visitor came from; without them the page is the same.
TRACKING = {
    "_ga", "_gl", "_hsenc", "_hsmi", "cmpid", "dclid", "fbclid", "gbraid", "gclid", "gclsrc",
    "igshid", "mc_cid", "mc_eid", "mkt_tok", "msclkid", "ncid", "ocid", "oly_anon_id",
    "oly_enc_id", "srsltid", "twclid", "vero_id", "wbraid", "wickedid", "yclid",
}  # fmt: skip
GONE, GONE_IN = ("[deleted]", "[removed]"), ("author", "selftext", "title", "url")


@dataclass(frozen=True)
class LinkRules:
    """Which posts give a link.

    Attributes:
        block: Sites and addresses that are left out.
        block_lists: Files with such.
    """

    min_score: int = 3
    block: Sequence[str] = ()
    block_lists: Sequence[Path] = ()


@dataclass
class LinkCounts:
    """Posts that were read, links that were written, posts that were left out by reason; what could
    not be read by kind, with the first errors."""

    files: int = 0
    posts: int = 0
    links: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    damaged: Counter[str] = field(default_factory=Counter)
    messages: list[str] = field(default_factory=list)

    def damage(self, kind: str, error: Exception) -> None:
        self.damaged[kind] += 1
        if len(self.messages) < MOST_MESSAGES:
            self.messages.append(str(error))

    def facts(self) -> dict[str, Any]:
        return {
            "files": self.files,
            "posts": self.posts,
            "links": self.links,
            "left_out": dict(self.left_out.most_common()),
            "damaged": dict(self.damaged),
            "messages": self.messages,
        }


class Link(NamedTuple):
    """An address, and a hash that is the same for all ways to write it."""

    url: str
    hash: int


def write_links(
    paths: Sequence[Path], output: Path, rules: LinkRules, say: Callable[[str], None]
) -> LinkCounts:
    """Write the links of the posts of all files.

    Args:
        say: Called with a sentence after each file.

    Raises:
        DataError: a file or block list that is not there, or no post in any file.
        RunError: the output cannot be written.
    """
    for path in [*paths, *rules.block_lists]:
        if not path.is_file():
            raise DataError(f"There is no file {str(path)!r:.200} (seen from {Path.cwd()}).")
    counts, seen = LinkCounts(), SeenHashes()
    with explained_os_errors(output):
        remove_leftovers(output)
        with atomic_file(output) as file:
            found = _links(paths, rules, counts, say)
            while links := list(islice(found, BATCH_LINKS)):
                is_new = seen.add(np.array([link.hash for link in links], np.uint64))
                kept = [link.url for link, keep in zip(links, is_new, strict=True) if keep]
                file.write("".join(f"{url}\n" for url in kept).encode())
                counts.links += len(kept)
                if len(kept) < len(links):
                    counts.left_out["link of an earlier post"] += len(links) - len(kept)
            if not counts.posts:
                damage = f" The first error: {counts.messages[0]}" if counts.messages else ""
                raise DataError(
                    f"{', '.join(map(str, paths))} {'hold' if len(paths) > 1 else 'holds'} no "
                    f"posts. Give dumps of submissions, such as RS_2019-06.zst.{damage}"
                )
    return counts


def _links(
    paths: Iterable[Path], rules: LinkRules, counts: LinkCounts, say: Callable[[str], None]
) -> Iterator[Link]:
    """The links of posts in order, the same ones repeated; counts the posts."""
    settings = UrlsRecipe(block=[*rules.block], block_lists=list(map(str, rules.block_lists)))
    is_blocked = make_urls(settings)
    for path in paths:
        before = counts.posts
        for post in _posts(path, counts):
            counts.posts += 1
            found = _why_not(post, rules.min_score) or link_of(post.get("url"))
            if isinstance(found, Link):
                found = is_blocked(Page("", "", found.url)) or found
            if isinstance(found, Link):
                yield found
            else:
                counts.left_out[found] += 1
        counts.files += 1
        say(f"{path}: {counts.posts - before:,} posts")


def _posts(path: Path, counts: LinkCounts) -> Iterator[dict[str, Any]]:
    """The posts of a file; what cannot be read is counted."""

    def damaged(error: DataError) -> None:
        counts.damage("line", error)

    try:
        for record in read_json_lines(TableFile(path, str(path), on_damage=damaged)):
            if record.fields is not None:
                yield dict(record.fields)
    except DataError as error:
        counts.damage("rest of a file", error)


def _why_not(post: dict[str, Any], min_score: int) -> str | None:
    """Why a post gives no link, whatever its address; None where it may."""
    if post.get("is_self"):
        return "self post"
    if post.get("removed_by_category") or any(post.get(key) in GONE for key in GONE_IN):
        return "deleted or removed"
    if post.get("crosspost_parent"):
        return "crosspost"
    if post.get("over_18"):
        return "over 18"
    try:
        score = float(post["score"])
    except (KeyError, TypeError, ValueError):
        return "no score"
    return None if score >= min_score else f"score under {min_score}"


def link_of(address: object) -> Link | str:
    """The normalized address of a post, or why it cannot be fetched."""
    if not isinstance(address, str) or not address.strip():
        return "no address"
    # The interface of Reddit writes & as &amp; and nothing else in this way.
    address = address.strip().replace("&amp;", "&")
    try:
        parts = urlsplit(address)
        host, port = (parts.hostname or "").rstrip("."), parts.port
    except ValueError:
        return "malformed address"
    if parts.scheme not in PORTS:
        return "not of the web" if parts.scheme else "malformed address"
    if not address.isprintable() or " " in address or not host:
        return "malformed address"
    if not _is_public(host):
        return "host that is not public"
    if any(host == own or host.endswith(f".{own}") for own in REDDIT):
        return "on Reddit"
    return _link(parts, host, None if port == PORTS[parts.scheme] else port)


def _link(parts: SplitResult, host: str, port: int | None) -> Link:
    place = (f"[{host}]" if ":" in host else host) + (f":{port}" if port is not None else "")
    query = "&".join(part for part in parts.query.split("&") if not _is_tracking(part))
    url = urlunsplit((parts.scheme, place, parts.path or "/", query, ""))
    key = f"{place.removeprefix('www.')}{parts.path.rstrip('/')}?{query}"
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return Link(url, int.from_bytes(digest, "little"))


def _is_tracking(parameter: str) -> bool:
    name = parameter.partition("=")[0].lower()
    return name in TRACKING or name.startswith("utm_")


def _is_public(host: str) -> bool:
    """Whether others can reach a host, by its name or address alone."""
    if ":" in host or host.replace(".", "").isdigit():
        try:
            return ipaddress.ip_address(host).is_global
        except ValueError:
            return False
    return "." in host and not host.endswith((".local", ".localhost", ".internal", ".onion"))


class SeenHashes:
    """A set of 64-bit hashes that takes 8 bytes for each: sorted arrays, of which two of similar
    length become one."""

    def __init__(self) -> None:
        self._runs: list[UInt64[np.ndarray, " _"]] = []

    def add(self, hashes: UInt64[np.ndarray, " N"]) -> Bool[np.ndarray, " N"]:
        """Which hashes occur for the first time."""
        new, first = np.unique(hashes, return_index=True)
        is_new = np.ones(len(new), bool)
        for run in self._runs:
            place = np.minimum(np.searchsorted(run, new), len(run) - 1)
            is_new &= run[place] != new
        if is_new.any():
            self._runs.append(new[is_new])
        while len(self._runs) > 1 and len(self._runs[-2]) <= 2 * len(self._runs[-1]):
            merged = np.concatenate([self._runs.pop(), self._runs.pop()])
            merged.sort(kind="stable")
            self._runs.append(merged)
        found = np.zeros(len(hashes), bool)
        found[first[is_new]] = True
        return found


def print_links(counts: LinkCounts, output: Path) -> None:
    """The counts as a table."""
    from stillhouse.terminal import show, table

    rows = [["read", f"{counts.posts:,}"], ["links", f"{counts.links:,}"]]
    rows += [[reason, f"{number:,}"] for reason, number in counts.left_out.most_common()]
    show(table(["posts", ""], rows), f"{output}: {counts.links:,} links")
