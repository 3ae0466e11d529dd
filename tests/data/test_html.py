"""The text of HTML pages."""

import gzip
import json

import pytest

from stillhouse.data.documents import read_documents
from stillhouse.data.formats.html import visible_text
from stillhouse.data.settings import CorpusRecipe


def text_of(page: str) -> str:
    return "".join(visible_text([page]))


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("<p>One\n  two <b>three</b>.</p><p>Four", "One two three.\n\nFour"),
        ("a<b>b</b>c", "abc"),
        ("one<br>two<br/>three", "one\ntwo\nthree"),
        ("<ul><li>one</li><li> two </li></ul>after", "one\ntwo\n\nafter"),
        ("<table><tr><td>1</td><td>2</td></tr><tr><td>3</td></tr></table>", "1\t2\n3"),
        ("<pre>a\n  b</pre><p>c", "a\n  b\n\nc"),
        ("AT&amp;T &lt;p&gt; &eacute;&#233; &", "AT&T <p> éé &"),
        ("<!-- no --><!doctype html><title>no</title>yes", "yes"),
        ("<head><title>no</title><style>p {}</style></head><body>yes", "yes"),
        ("<script>if (a < b) { '<p>no</p>' }</script>yes", "yes"),
        ("<nav>no <div>no</div></nav><noscript>no</noscript>yes", "yes"),
        ("<head><noscript>no<body>yes", "yes"),
        ("a < b and <b>c</b>", "a < b and c"),
        ("", ""),
        ("<p> \n </p>", ""),
    ],
)
def test_visible_text_of_html(page, text):
    """White space is that of a browser; markup, scripts and navigation are not there."""
    assert text_of(page) == text


def test_visible_text_does_not_depend_on_read_sizes():
    """A tag or a reference may span two reads."""
    page = "<body><p>One &amp; <i class='x'>two</i></p><script>no</script><pre> a\n</pre>three"
    for size in (1, 2, 5, 7):
        parts = [page[start : start + size] for start in range(0, len(page), size)]
        assert "".join(visible_text(parts)) == text_of(page)


def test_a_compressed_page_is_one_document(tmp_path):
    """Or several, by line or by block, as other text."""
    page = "<h1>Title</h1><p>one<br>two</p>"
    (tmp_path / "a.HTML.gz").write_bytes(gzip.compress(page.encode()))
    for documents, expected in {
        "per_file": ["Title\n\none\ntwo"],
        "per_line": ["Title", "one", "two"],
        "per_block": ["Title", "one\ntwo"],
    }.items():
        corpus = CorpusRecipe.model_validate({"source": str(tmp_path), "documents": documents})
        assert [piece.text for piece in read_documents(corpus, offline=True)] == expected


@pytest.mark.e2e
def test_real_pages_keep_their_article(shared_data, tmp_path):
    """Nearly all words of the articles of news pages are there, and no script or markup."""
    folder = shared_data / "web_html" / "article_extraction_benchmark"
    truth = json.loads((folder / "ground-truth.json").read_text(encoding="utf-8"))
    corpus = CorpusRecipe(source=str(folder / "html"))
    texts: dict[str, str] = {}
    for piece in read_documents(corpus, offline=True):
        name = piece.document_id.partition(".")[0]
        texts[name] = texts.get(name, "") + piece.text
    kept = []
    for name, text in texts.items():
        words = truth[name]["articleBody"].split()
        have = set(text.split())
        kept.append(sum(word in have for word in words) / max(1, len(words)))
        assert "function(" not in text
        assert "</div>" not in text
    assert len(texts) > 100
    assert sum(kept) / len(kept) > 0.97
