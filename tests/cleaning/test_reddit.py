"""Links of Reddit posts: which posts give one, how addresses are written, and dumps that are
damaged."""

import gzip
import json
import random
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

from stillhouse.__main__ import _run
from stillhouse.cleaning import reddit
from stillhouse.cleaning.reddit import Link, LinkCounts, LinkRules, SeenHashes, link_of, write_links
from stillhouse.errors import DataError, RunError


def post(url: object = "http://a.org/1", **fields: Any) -> dict[str, Any]:
    return {
        "author": "someone", "score": 5, "is_self": False, "over_18": False, "selftext": "",
        "removed_by_category": None, "title": "A title", "url": url, **fields,
    }  # fmt: skip


def lines(posts: Iterable[object]) -> bytes:
    return b"".join(json.dumps(each).encode() + b"\n" for each in posts)


def zst(content: bytes) -> bytes:
    """With the window of the published dumps."""
    settings = zstandard.ZstdCompressionParameters(window_log=31, compression_level=3)
    compressor = zstandard.ZstdCompressor(compression_params=settings)
    stream = compressor.compressobj()
    return stream.compress(content) + stream.flush()


def links(path: Path, posts: Iterable[object], **rules: Any) -> tuple[list[str], LinkCounts]:
    """The links of a dump, and the counts; each post is counted once."""
    path.write_bytes(lines(posts))
    output = path.with_name("urls.txt")
    counts = write_links([path], output, LinkRules(**rules), lambda line: None)
    found = output.read_text(encoding="utf-8").splitlines()
    assert counts.links == len(found)
    assert counts.posts == counts.links + counts.left_out.total()
    return found, counts


@pytest.fixture
def dump(tmp_path):
    return tmp_path / "RS_2019-06"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"is_self": True}, "self post"),
        ({"author": "[deleted]"}, "deleted or removed"),
        ({"selftext": "[removed]"}, "deleted or removed"),
        ({"removed_by_category": "moderator"}, "deleted or removed"),
        ({"crosspost_parent": "t3_abc"}, "crosspost"),
        ({"over_18": True}, "over 18"),
        ({"score": 2}, "score under 3"),
        ({"score": "2"}, "score under 3"),
        ({"score": None}, "no score"),
        ({"score": "many"}, "no score"),
        ({"url": ""}, "no address"),
        ({"url": None}, "no address"),
        ({"url": "ftp://a.org/b"}, "not of the web"),
        ({"url": "/r/pics"}, "malformed address"),
        ({"url": "http://a.org/\ud800"}, "malformed address"),
        ({"url": "http://[a"}, "malformed address"),
        ({"url": "http://a.org:port/"}, "malformed address"),
        ({"url": "http://a.org/b c"}, "malformed address"),
        ({"url": "http://localhost/a"}, "host that is not public"),
        ({"url": "http://192.168.1.1/a"}, "host that is not public"),
        ({"url": "http://[::1]/a"}, "host that is not public"),
        ({"url": "https://i.redd.it/a.jpg"}, "on Reddit"),
        ({"url": "https://old.Reddit.com/r/a"}, "on Reddit"),
    ],
)
def test_a_post_that_gives_no_link_is_counted_by_reason(dump, fields, reason):
    """Among posts that do."""
    found, counts = links(dump, [post("http://x.org/1"), post(**fields), post("http://x.org/2")])
    assert found == ["http://x.org/1", "http://x.org/2"]
    assert counts.left_out == {reason: 1}


def test_scores_may_be_texts_and_the_threshold_can_be_set(dump):
    posts = [post(f"http://a.org/{n}", score=score) for n, score in enumerate(["3", 3, 4, "10.0"])]
    assert len(links(dump, posts)[0]) == 4
    found, counts = links(dump, posts, min_score=4)
    assert found == ["http://a.org/2", "http://a.org/3"]
    assert counts.left_out == {"score under 4": 2}


@pytest.mark.parametrize(
    ("address", "written"),
    [
        ("http://A.org", "http://a.org/"),
        ("HTTP://a.org:80/B", "http://a.org/B"),
        ("https://a.org:443/b#c", "https://a.org/b"),
        ("https://a.org:8443/b?", "https://a.org:8443/b"),
        ("http://a.org/?utm_source=x&amp;b=1&UTM_medium=y&fbclid=z&c", "http://a.org/?b=1&c"),
        ("http://a.org/?b=1&copy=2", "http://a.org/?b=1&copy=2"),
        ("http://me:secret@a.org/", "http://a.org/"),
        ("http://[2606:4700::1]:80/a", "http://[2606:4700::1]/a"),
        (" http://a.org/b/ ", "http://a.org/b/"),
        ("http://a.org./b", "http://a.org/b"),
        ("http://münchen.de/ä", "http://münchen.de/ä"),
    ],
)
def test_an_address_is_normalized(address, written):
    """And what is normalized stays as it is."""
    link = link_of(address)
    assert isinstance(link, Link)
    assert link.url == written
    assert link_of(link.url) == link


def test_the_first_of_addresses_of_one_page_is_written(dump):
    """Whatever scheme, www., fragment, tracking and slash; other paths and parameters are others."""
    same = ["http://www.a.org/b/", "https://a.org/b", "http://A.org/b/?utm_id=1#c", "http://a.org/b"]
    others = ["http://a.org/B", "http://a.org/b?c", "http://b.a.org/b", "http://a.org:81/b"]
    found, counts = links(dump, map(post, [*same, *others]))
    assert found == [same[0], *others]
    assert counts.left_out == {"link of an earlier post": 3}


def test_links_are_unique_over_files_and_batches(tmp_path, monkeypatch):
    """In the order of the posts."""
    monkeypatch.setattr(reddit, "BATCH_LINKS", 7)
    numbers = random.Random(0).choices(range(60), k=200)
    paths = [tmp_path / "a.jsonl", tmp_path / "b.gz", tmp_path / "c.zst"]
    parts = [lines(post(f"http://a.org/{n}") for n in numbers[k::3]) for k in range(3)]
    for path, content in zip(paths, [parts[0], gzip.compress(parts[1]), zst(parts[2])], strict=True):
        path.write_bytes(content)
    write_links(paths, tmp_path / "urls.txt", LinkRules(), lambda line: None)
    expected = dict.fromkeys(n for k in range(3) for n in numbers[k::3])
    found = (tmp_path / "urls.txt").read_text().split()
    assert found == [f"http://a.org/{n}" for n in expected]


def test_seen_hashes_are_a_set():
    """For any batches: a hash is new the first time alone. As many arrays as the logarithm."""
    generator, seen, known = np.random.default_rng(0), SeenHashes(), set[int]()
    for size in generator.integers(0, 300, 100):
        hashes = generator.integers(0, 9_000, size).astype(np.uint64)
        expected = [not (each in known or known.add(each)) for each in hashes.tolist()]
        assert seen.add(hashes).tolist() == expected
    assert sum(map(len, seen._runs)) == len(known)
    assert len(seen._runs) < 12


def test_block_lists_are_those_of_cleaning(dump, tmp_path):
    """Sites with their subdomains, and addresses."""
    (tmp_path / "list.txt").write_text("# sites\nb.org\nc.org/ads\n")
    urls = ["http://en.a.org/1", "http://b.org/1", "http://c.org/1", "http://c.org/ads/2"]
    found, counts = links(
        dump, map(post, urls), block=["a.org"], block_lists=[tmp_path / "list.txt"]
    )
    assert found == ["http://c.org/1"]
    assert counts.left_out.total() == 3


def test_damage_is_counted_and_reading_goes_on(tmp_path):
    """A line that is not JSON, one that is no object, bytes that are not UTF-8, NULs, a frame that
    ends early."""
    bad = b'{"url": \n[1]\n\xff\xfe\0\n\n'
    (tmp_path / "a.jsonl").write_bytes(lines([post()]) + bad + lines([post("http://a.org/2")]))
    whole = zst(lines(post(f"http://b.org/{n}", filler=str(n) * 99) for n in range(20_000)))
    (tmp_path / "b.zst").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "c.jsonl").write_bytes(lines([post("http://c.org/")]))
    paths = sorted(tmp_path.iterdir())
    counts = write_links(paths, tmp_path / "urls.txt", LinkRules(), lambda line: None)
    assert counts.damaged == {"line": 3, "rest of a file": 1}
    assert "a.jsonl row 2 is not JSON" in counts.messages[0]
    assert "b.zst is damaged or cut short" in counts.messages[-1]
    found = (tmp_path / "urls.txt").read_text().split()
    assert found[:2] == ["http://a.org/1", "http://a.org/2"]
    assert found[-1] == "http://c.org/"
    assert 100 < len(found) < 20_003


@pytest.mark.parametrize("content", [b"", b"\n", b"no posts\n", zst(b"")], ids=repr)
def test_without_a_post_nothing_is_written(tmp_path, content):
    """And an older list stays."""
    path, output = tmp_path / "a.zst", tmp_path / "urls.txt"
    path.write_bytes(content)
    output.write_text("older\n")
    with pytest.raises(DataError, match=r"a\.zst holds no posts"):
        write_links([path], output, LinkRules(), lambda line: None)
    assert output.read_text() == "older\n"
    assert sorted(tmp_path.iterdir()) == [path, output]


def test_a_missing_file_or_folder_is_named_first(tmp_path):
    path = tmp_path / "a"
    with pytest.raises(DataError, match="There is no file .*a'"):
        write_links([path], tmp_path / "urls.txt", LinkRules(), lambda line: None)
    path.write_bytes(lines([post()]))
    with pytest.raises(DataError, match=r"There is no file .*list\.txt'"):
        rules = LinkRules(block_lists=[tmp_path / "list.txt"])
        write_links([path], tmp_path / "urls.txt", rules, lambda line: None)
    with pytest.raises(RunError, match="cannot be used"):
        write_links([path], path / "urls.txt", LinkRules(), lambda line: None)


@pytest.mark.parametrize("as_json", [False, True])
def test_the_command_prints_what_it_left_out(dump, capsys, monkeypatch, as_json):
    """On stdout alone; progress and damage on stderr."""
    dump.write_bytes(lines([post(), post(), post(is_self=True)]) + b"{\n")
    arguments = ["links", str(dump), "--output", str(dump.with_name("urls.txt"))]
    monkeypatch.setattr(sys, "argv", ["stillhouse", *arguments, *["--json"] * as_json])
    assert _run() == 0
    out, error = capsys.readouterr()
    assert "3 posts" in error
    assert "row 4 is not JSON" in error
    if as_json:
        found = json.loads(out)
        assert found["left_out"] == {"link of an earlier post": 1, "self post": 1}
        assert (found["posts"], found["links"], found["damaged"]) == (3, 1, {"line": 1})
    else:
        assert "self post" in out
        assert "urls.txt: 1 link" in out
    assert dump.with_name("urls.txt").read_text() == "http://a.org/1\n"
