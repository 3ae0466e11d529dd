"""Pages that are left out by their address."""

import pytest

from stillhouse.cleaning.step import Page
from stillhouse.cleaning.steps.urls import NAMED_SITES, UrlsRecipe, blocker, files, host_of, make
from stillhouse.errors import DataError


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://Example.COM:8080/a?b#c", "example.com"),
        ("http://user:secret@example.com./", "example.com"),
        ("example.com/path", "example.com"),
        ("//example.com", "example.com"),
        ("https://bücher.example/", "xn--bcher-kva.example"),
        ("https://192.0.2.1:80/", "192.0.2.1"),
        ("https://[2001:db8::1]/", "2001:db8::1"),
        ("http://[::1", ""),
        ("", ""),
        ("/path/only", ""),
        (f"https://{'ü' * 70}.example/", f"{'ü' * 70}.example"),  # too long for IDNA
    ],
)
def test_host_of_an_address(url, host):
    assert host_of(url) == host


@pytest.mark.parametrize(
    "url",
    [
        "https://wikipedia.org",
        "http://en.wikipedia.org/wiki/Cat",
        "https://EN.M.WIKIPEDIA.ORG:443/wiki/Cat?x=1",
        "wikipedia.org/wiki",
        "https://www.wikipedia.org./",
    ],
)
def test_a_site_stands_for_its_subdomains(url):
    assert blocker(["wikipedia.org"])(url) == "site wikipedia.org"


@pytest.mark.parametrize(
    "url",
    [
        "https://notwikipedia.org/",
        "https://wikipedia.org.example/",
        "https://example.com/wikipedia.org",
        "https://example.com/?from=wikipedia.org",
        "https://user@example.com",
        "http://[wikipedia.org",
        "",
    ],
)
def test_other_sites_stay(url):
    assert blocker(["wikipedia.org"])(url) is None


@pytest.mark.parametrize("entry", ["https://www.Example.com:80/", "example.com", " example.com "])
def test_a_site_is_written_in_any_form(entry):
    assert blocker([entry])("http://example.com/page") == "site example.com"


def test_an_international_name_in_either_form():
    for entry in ("bücher.example", "xn--bcher-kva.example"):
        for url in ("https://bücher.example/1", "https://www.xn--bcher-kva.example/1"):
            assert blocker([entry])(url) is not None


@pytest.mark.parametrize(
    ("url", "is_blocked"),
    [
        ("https://example.com/ads", True),
        ("http://www.example.com:8080/ads/", True),
        ("https://example.com/ads/1/2?x=y#z", True),
        ("https://example.com/ads?x=y", True),
        ("https://example.com/adsense", False),
        ("https://example.com/", False),
        ("https://example.com/a/ads", False),
        ("https://other.example/ads", False),
    ],
)
def test_an_address_stands_for_those_below_it(url, is_blocked):
    assert blocker(["example.com/ads"])(url) == ("address in a block list" if is_blocked else None)


def test_an_address_with_a_query_is_that_one_alone():
    is_blocked = blocker(["https://example.com/watch?v=1"])
    assert is_blocked("http://example.com/watch?v=1") is not None
    assert is_blocked("http://example.com/watch?v=2") is None
    assert is_blocked("http://example.com/watch") is None


def test_an_entry_without_a_host_blocks_nothing():
    is_blocked = blocker(["https://", "", "/path", "http://[::1"])
    for url in ("https://example.com/path", "", "/path", "mailto:a@example.com"):
        assert is_blocked(url) is None


def test_the_reason_names_the_site_of_a_short_list_alone():
    """The reasons of a report are few."""
    sites = [f"site{number}.example" for number in range(NAMED_SITES)]
    assert blocker(sites)("https://site7.example") == "site site7.example"
    assert blocker([*sites, "more.example"])("https://site7.example") == "site in a block list"


def test_block_lists_have_comments_and_hosts(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text(
        "# comment with commented.example\n\none.example\n  two.example  # why\r\n"
        "0.0.0.0 three.example\nfour.example/path#part\n",
        encoding="utf-8",
    )
    judge = make(UrlsRecipe(block=["five.example"], block_lists=[str(path)]))
    for name in ("one", "two", "three", "five"):
        assert judge(Page("1", "text", f"https://{name}.example/")) == f"site {name}.example"
    assert judge(Page("1", "text", "https://four.example/path/2")) == "address in a block list"
    for name in ("commented", "four"):
        assert judge(Page("1", "text", f"https://{name}.example/")) is None


def test_a_document_without_an_address_is_kept():
    assert make(UrlsRecipe(block=["example.com"]))(Page("1", "text")) is None


def test_a_block_list_that_is_not_there_is_named():
    with pytest.raises(DataError, match=r"block_lists: there is no file 'none\.txt'"):
        list(files(UrlsRecipe(block_lists=["none.txt"])))
