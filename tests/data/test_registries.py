"""The registries of formats and sources: each entry keeps the contract, and one module adds one."""

import json
from collections import Counter
from importlib import import_module
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from stillhouse.data.documents import describe_sources, read_documents, summarize_sources
from stillhouse.data.formats import SUFFIXES, TABLE_SUFFIXES, Record, TableFile, format_of
from stillhouse.data.rows import fetch, path_of, read_rows
from stillhouse.data.settings import CorpusRecipe
from stillhouse.data.sources import (
    SOURCES,
    Content,
    Source,
    check_access,
    record_documents,
    source_of,
)
from stillhouse.errors import DataError, NetworkError

FORMATS = {format.name: format for format in SUFFIXES.values()}
ROWS = [{"text": "one"}, {"text": "two"}]


def test_every_format_is_registered_and_documented():
    """Found by listing the folder, and listed by the documentation."""
    assert set(FORMATS) >= {"text", "HTML", "JSON lines", "JSON", "CSV", "TSV", "Parquet"}
    page = (Path(__file__).parents[2] / "docs" / "guides" / "data.md").read_text(encoding="utf-8")
    assert [suffix for suffix in SUFFIXES if f"`{suffix}`" not in page] == [], "run `make docs`"
    assert [name for name, format in FORMATS.items() if not format.documents] == []
    suffixes = [suffix for format in FORMATS.values() for suffix in format.suffixes]
    assert sorted(suffixes) == sorted(SUFFIXES), "two formats share a suffix"
    names = ("a.CSV", "a.csv.gz", "a.bin", "a")
    assert [format_of(Path(name)).name for name in names] == ["CSV", "CSV", "", ""]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_format_gives_text_or_records_and_names_a_bad_file(tmp_path, suffix):
    """A missing file and one of binary data are DataErrors with the file's name."""
    format, path = SUFFIXES[suffix], tmp_path / f"a{suffix}"
    assert format.read_text is None or format.read_records is None
    read_file = format.read_records or format.read_pages

    def read() -> list[object]:
        if format.read_text is not None:
            return list(format.read_text(path))
        assert read_file is not None
        return list(read_file(TableFile(path, str(path))))

    for content in (None, b"\xff\xfe\0\x01 not text"):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(DataError, match=rf"a\{suffix}"):
            read()


@pytest.mark.parametrize("suffix", TABLE_SUFFIXES)
def test_a_table_serves_the_corpus_and_tasks_alike(tmp_path, suffix):
    """The same file as documents and as rows. A format's own test can write the file."""
    path = tmp_path / f"a{suffix}"
    own_test = Path(__file__).with_name(f"test_{SUFFIXES[suffix].name.lower()}.py")
    if own_test.exists():
        import_module(f"tests.data.{own_test.stem}").write_rows(path, ROWS)
    elif suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    elif suffix in (".csv", ".tsv"):
        path.write_text("text\none\ntwo\n")
    elif SUFFIXES[suffix].name.startswith("JSON"):
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    else:
        pytest.fail(f"{own_test} is missing: its write_rows(path, rows) writes a {suffix} file")
    chunks = read_documents(CorpusRecipe(source=str(path)), offline=True)
    assert [chunk.text for chunk in chunks] == ["one", "two"]
    assert [{key: row.fields[key] for key in ROWS[0]} for row in read_rows(path)] == ROWS


@pytest.mark.parametrize(
    ("name", "scheme"),
    [("sample", "sample"), ("hf://a/b", "hf://"), ("hf", ""), ("hf/a.csv", ""), ("http://a", "")],
)
def test_the_scheme_decides_the_source(name, scheme):
    """A path that only resembles a scheme is a path."""
    assert source_of(name) is SOURCES[scheme]


def test_a_new_source_serves_the_corpus_and_tasks_alike(tmp_path, monkeypatch):
    """What one module defines is all that both need."""

    def documents(corpus, on_damage=None):
        records = [Record(f"memo row {n}", n, row) for n, row in enumerate(ROWS, start=1)]
        return record_documents("memo", records, corpus)

    def find(source):
        return [Content("a memo", {"name": source}, documents)], Counter()

    source = Source("memo://", find, read_rows=lambda name: iter(ROWS))
    monkeypatch.setitem(SOURCES, source.scheme, source)
    corpus = CorpusRecipe(source="memo://x")
    chunks = list(read_documents(corpus, offline=False))
    assert [(chunk.document_id, chunk.text) for chunk in chunks] == [
        ("memo:1", "one"),
        ("memo:2", "two"),
    ]
    assert describe_sources(corpus) == [{"source": "memo://x", "name": "memo://x"}]
    assert str(summarize_sources(corpus)) == "1 file as a memo"
    fetch("memo://x", tmp_path, "data.train", lambda line: None, offline=False)
    assert [row.fields for row in read_rows(path_of("memo://x", tmp_path))] == ROWS
    for refused in (lambda: list(read_documents(corpus, offline=True)),
                    lambda: check_access("memo://x", "data.train", offline=True)):  # fmt: skip
        with pytest.raises(NetworkError, match=r"memo://x.*--offline"):
            refused()
