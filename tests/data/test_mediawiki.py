"""Dumps of wikis: which pages are read, their ids and addresses, and files that cannot be read."""

import bz2
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import pytest

from stillhouse.data.documents import read_documents, summarize_sources
from stillhouse.data.formats import Record, TableFile, format_of, mediawiki
from stillhouse.data.settings import CorpusRecipe
from stillhouse.errors import DataError

SITE = """<siteinfo><sitename>Wikipedia</sitename><dbname>dewiki</dbname>
<base>https://de.wikipedia.org/wiki/Wikipedia:Hauptseite</base><namespaces>
<namespace key="0" case="first-letter" /><namespace key="1">Diskussion</namespace>
<namespace key="6">Datei</namespace><namespace key="14">Kategorie</namespace></namespaces>
</siteinfo>"""
HEAD = '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11">'


def page(
    title: str, text: str, *, number: int = 1, ns: str | None = "0", extra: str = "", more: str = ""
) -> str:
    namespace = "" if ns is None else f"<ns>{ns}</ns>"
    return f"""<page><title>{escape(title)}</title>{namespace}<id>{number}</id>{extra}
<revision><id>9{number}</id><contributor><username>A</username><id>77</id></contributor>
<comment>c</comment>{more}<text xml:space="preserve">{escape(text)}</text><sha1>x</sha1></revision>
</page>
"""


def dump(pages: Sequence[str], site: str = SITE) -> str:
    return f"{HEAD}\n{site}{''.join(pages)}</mediawiki>"


def write_rows(path: Path, rows: Sequence[dict[str, str]]) -> None:
    """For the test of the registry."""
    pages = [page(f"T{number}", row["text"], number=number) for number, row in enumerate(rows)]
    path.write_text(dump(pages), encoding="utf-8")


def read(path: Path, content: str | bytes, damage: list[str] | None = None) -> list[Record]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)

    def on_damage(error: DataError) -> None:
        assert damage is not None
        damage.append(str(error))

    callback = None if damage is None else on_damage
    return list(mediawiki.read_dump(TableFile(path, str(path), on_damage=callback)))


def titles(records: Sequence[Record]) -> list[str]:
    return [(record.fields or {})["title"] for record in records]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "dewiki.xml"


def test_an_article_has_id_title_address_and_prose(path):
    """The id is the page's, not that of its revision or author; local names of namespaces count."""
    text = "'''Köln''' ist eine [[Stadt]].[[Datei:Dom.jpg|mini|Der Dom]]\n\n[[Kategorie:Köln]]"
    (record,) = read(path, dump([page("Köln & mehr", text, number=12)]))
    assert record.number == 1
    assert record.fields == {
        "id": "dewiki:12",
        "title": "Köln & mehr",
        "url": "https://de.wikipedia.org/wiki/K%C3%B6ln_%26_mehr",
        "text": "Köln ist eine Stadt.",
    }


def test_only_articles_in_wikitext_are_read(path):
    """No talk, redirect, module or style sheet; numbers count all pages."""
    records = read(
        path,
        dump(
            [
                page("Diskussion:A", "talk", ns="1"),
                page("B", "#WEITERLEITUNG [[A]]", extra='<redirect title="A" />'),
                page("C", "return 1", more="<model>Scribunto</model>"),
                page("D", "text", more="<model>wikitext</model>"),
                page("E: a film", "text"),
            ]
        ),
    )
    assert titles(records) == ["D", "E: a film"]
    assert [record.number for record in records] == [4, 5]


def test_an_old_dump_without_namespaces_of_pages(path):
    """Schemas up to 0.5 give neither namespaces nor redirects of pages."""
    pages = [
        page("Diskussion:A", "talk", ns=None),
        page("B", "#redirect [[A]]", ns=None),
        page("C: a film", "text", ns=None),
    ]
    assert titles(read(path, dump(pages))) == ["C: a film"]


def test_a_dump_without_a_description_of_its_site(path):
    """Ids have the file's name, and there is no address."""
    (record,) = read(path, dump([page("A", "text", number=3)], site=""))
    assert record.fields == {"id": "dewiki.xml:3", "title": "A", "url": "", "text": "text"}


def test_of_several_revisions_the_last_is_read(path):
    both = page("A", "old").replace(
        "</page>", "<revision><id>5</id><text>new</text></revision></page>"
    )
    (record,) = read(path, dump([both]))
    assert (record.fields or {})["text"] == "new"


def test_compressed_parts_are_documents_of_a_corpus(tmp_path):
    """bz2 in several streams, under the names that Wikimedia gives to parts."""
    whole = dump([page("A", "one", number=1), page("B", "zwei ä", number=2)]).encode()
    half = len(whole) // 2
    name = "dewiki-20260101-pages-articles1.xml-p1p41242.bz2"
    (tmp_path / name).write_bytes(bz2.compress(whole[:half]) + bz2.compress(whole[half:]))
    assert format_of(Path(name)).name == "MediaWiki"
    corpus = CorpusRecipe(source=str(tmp_path))
    found = [(chunk.document_id, chunk.text) for chunk in read_documents(corpus, offline=True)]
    assert found == [("dewiki:1", "one"), ("dewiki:2", "zwei ä")]


def test_other_xml_in_a_folder_is_skipped_and_counted(tmp_path):
    """A site map beside the text does no harm; where it is named, it is refused."""
    (tmp_path / "a.txt").write_text("Some text.")
    (tmp_path / "sitemap.xml").write_text("<?xml version='1.0'?><urlset/>")
    summary = summarize_sources(CorpusRecipe(source=str(tmp_path)))
    assert str(summary) == "1 file as text; skipped 1: 1 .xml"
    corpus = CorpusRecipe(source=str(tmp_path / "sitemap.xml"))
    with pytest.raises(DataError, match="urlset"):
        list(read_documents(corpus, offline=True))


def test_a_dump_in_utf_16(path):
    """As its byte order mark says."""
    (record,) = read(path, dump([page("Ä", "Öl")]).encode("utf-16"))
    assert (record.fields or {})["text"] == "Öl"


def test_every_truncation_keeps_the_pages_before_it(path):
    """And is an error."""
    whole = dump([page("A", "ä", number=1), page("B", "text", number=2)]).encode()
    ends = [whole.index(b"</page>") + 7, whole.rindex(b"</page>") + 7]
    for size in [*range(1, len(whole), 11), len(whole) - 1]:
        path.write_bytes(whole[:size])
        found: list[Record] = []
        with pytest.raises(DataError, match=r"dewiki\.xml"):
            found += mediawiki.read_dump(TableFile(path, str(path)))
        assert len(found) == sum(end <= size for end in ends)


def test_the_pages_before_an_error_are_read(path):
    path.write_text(dump([page("A", "a"), page("B", "b"), "<page><title>C &unknown;"]))
    found: list[Record] = []
    with pytest.raises(DataError, match=r"undefined entity.*after page 3"):
        found += mediawiki.read_dump(TableFile(path, str(path)))
    assert titles(found) == ["A", "B"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<html><p>text</html>", "begins with <html>, not with <mediawiki>"),
        ("", "is not whole XML"),
        ("plain text", "is not whole XML"),
        (f"{HEAD}<page>\0</page></mediawiki>", "is not whole XML"),
        (f"{HEAD}<page><title>\xff".encode("latin1"), "is not whole XML"),
        ("<!DOCTYPE a><mediawiki></mediawiki>", "document type declaration"),
        (
            '<!DOCTYPE a [<!ENTITY x "xx"><!ENTITY y "&x;&x;">]><mediawiki>&y;</mediawiki>',
            "document type declaration",
        ),
        (
            '<!DOCTYPE a SYSTEM "file:///etc/passwd"><mediawiki>&x;</mediawiki>',
            "document type declaration",
        ),
        (bz2.compress(b"<mediawiki>"), "bzip2-compressed. Rename it"),
    ],
    ids=["html", "empty", "text", "nul", "charset", "doctype", "bomb", "external", "compressed"],
)
def test_what_is_no_dump_is_refused_by_name(path, content, message):
    with pytest.raises(DataError, match=message) as caught:
        read(path, content)
    assert "dewiki.xml" in str(caught.value)


def test_a_huge_page_is_left_out_alone(path, monkeypatch):
    """Without being held in memory."""
    monkeypatch.setattr(mediawiki, "MAX_PAGE_CHARACTERS", 100)
    content = dump([page("A", "a " * 60), page("B", "b")])
    damage: list[str] = []
    assert titles(read(path, content, damage)) == ["B"]
    assert len(damage) == 1
    assert "dewiki.xml page 1 (A) has over" in damage[0]
    with pytest.raises(DataError, match="page 1"):
        read(path, content)
