"""SQLite databases: the table that is read, its rows, and databases that cannot be read."""

import hashlib
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from stillhouse.data.documents import ReadSummary, read_documents
from stillhouse.data.formats import sqlite
from stillhouse.data.rows import blank_rows, read_rows
from stillhouse.data.settings import CorpusRecipe
from stillhouse.errors import DataError
from stillhouse.tasks.encoded import read_texts
from stillhouse.tasks.settings import Columns


@contextmanager
def changing(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path)) as database:
        yield database
        database.commit()


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A database of one table."""
    columns = list(rows[0])
    with changing(path) as database:
        database.execute(f"CREATE TABLE documents ({', '.join(columns)})")
        values = [tuple(row.values()) for row in rows]
        database.executemany(
            f"INSERT INTO documents VALUES ({', '.join('?' * len(columns))})", values
        )


def texts(path: Path, text_field: str = "text", summary: ReadSummary | None = None):
    """Documents by id."""
    corpus = CorpusRecipe(source=str(path), text_field=text_field)
    chunks = read_documents(corpus, offline=True, summary=summary)
    return {chunk.document_id: chunk.text for chunk in chunks}


@pytest.fixture
def forum(tmp_path) -> Path:
    """Three tables, of which two have a column `text`."""
    path = tmp_path / "a forum?.db"
    with changing(path) as database:
        database.executescript(
            """
            CREATE TABLE users (age INTEGER, name VARCHAR(80));
            INSERT INTO users VALUES (40, 'ann');
            CREATE TABLE "the posts" (id INTEGER PRIMARY KEY, text TEXT, body TEXT, score REAL);
            INSERT INTO "the posts" VALUES (7, 'z', 'last', 1.5), (3, 'y', 'first', 2);
            CREATE INDEX covering ON "the posts" (body, id);
            CREATE TABLE notes (text TEXT PRIMARY KEY) WITHOUT ROWID;
            INSERT INTO notes VALUES ('b'), ('a');
            """
        )
    return path


def test_the_table_is_the_one_with_the_named_column(forum):
    """Rows in the order of the table, under their own ids, for a corpus and for tasks."""
    assert texts(forum, "body") == {"3": "first", "7": "last"}
    assert texts(forum, "name") == {"a forum?.db:1": "ann"}
    (row,) = read_rows(forum, "age")
    assert (row.fields, row.where) == ({"name": "ann", "age": 40}, f"{forum} row 1")
    assert blank_rows(forum) == []


def test_a_column_of_several_tables_is_named_with_its_table(forum):
    """The same form in a corpus and in a task; the other columns keep their names."""
    assert texts(forum, "the posts.text") == {"3": "y", "7": "z"}
    assert list(texts(forum, "notes.text").values()) == ["a", "b"]
    columns = Columns(text="the posts.text", pair="body", target="score")
    examples = read_texts(forum, columns, None, lambda row, column: row.number(column))
    found = [(each.text, each.pair, each.target) for each in examples]
    assert found == [("y", "first", 2.0), ("z", "last", 1.5)]


@pytest.mark.parametrize(
    ("column", "number", "example"),
    [("text", "2 tables", "the posts.text"), ("title", "no table", "users.name")],
)
def test_an_unclear_column_gives_the_tables_and_what_to_write(forum, column, number, example):
    """The same for a corpus and for tasks."""
    for read in (texts, read_rows):
        with pytest.raises(DataError) as refusal:
            read(forum, column)
        message = str(refusal.value)
        assert f"{number} with a column {column!r}" in message
        assert "users (age, name); the posts (id, text, body, score); notes (text)" in message
        assert f"such as {example}: in corpus.text_field" in message


def test_a_view_is_a_table_and_an_empty_database_is_refused(tmp_path):
    """So that a query can choose the rows."""
    path = tmp_path / "a.sqlite3"
    with changing(path) as database:
        database.execute("CREATE TABLE kept (title, body)")
        database.execute("INSERT INTO kept VALUES ('x', 'one'), ('y', 'two')")
        database.execute("CREATE VIEW chosen AS SELECT body AS text FROM kept WHERE title = 'y'")
        database.execute("CREATE VIEW broken AS SELECT body AS text FROM gone")
    assert list(texts(path).values()) == ["two"]
    with changing(path) as database:
        database.executescript("DROP VIEW chosen; DROP VIEW broken; DROP TABLE kept")
    with pytest.raises(DataError, match=r"a\.sqlite3 holds no tables"):
        texts(path)


def test_null_is_a_blank_document_and_other_values_are_refused(tmp_path):
    """As in the other formats, with the number of the row."""
    path = tmp_path / "a.db"
    write_rows(path, [{"text": "one"}, {"text": None}, {"text": " "}])
    summary = ReadSummary()
    assert texts(path, summary=summary) == {"a.db:1": "one"}
    assert summary.blank_documents == 2
    assert [row.text("text") for row in read_rows(path)] == ["one", "", " "]
    for value, reason in ((b"\1\2", "holds bytes"), (3, "holds int"), ("a\0b", "NUL character")):
        with changing(path) as database:
            database.execute("UPDATE documents SET text = ? WHERE rowid = 2", [value])
        with pytest.raises(DataError, match=rf"a\.db row 2.*{reason}"):
            texts(path)
        with pytest.raises(DataError, match=r"a\.db row 2"):
            _ = [row.text("text") for row in read_rows(path)]


def test_text_that_is_not_utf_8_is_refused_with_its_row(tmp_path):
    """A column that is not read may hold anything."""
    path = tmp_path / "a.db"
    write_rows(
        path, [{"text": "one", "id": 1, "other": "x"}, {"text": "two", "id": 2, "other": "y"}]
    )
    with changing(path) as database:
        database.execute("UPDATE documents SET other = CAST(x'61ff' AS TEXT) WHERE id = 2")
    assert texts(path) == {"1": "one", "2": "two"}
    with changing(path) as database:
        database.execute("UPDATE documents SET text = other")
    with pytest.raises(
        DataError, match=r"a\.db row 2 holds text that is not UTF-8: byte 1 is 0xff"
    ):
        texts(path)


def test_a_damaged_database_is_refused(tmp_path):
    """Cut short, with a page overwritten, or another file of that name."""
    path = tmp_path / "a.db"
    write_rows(path, [{"text": f"{number} " * 300} for number in range(400)])
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], content[:8192] + bytes(8192) + content[16384:]):
        path.write_bytes(damaged)
        with pytest.raises(
            DataError, match=r"a\.db is not a readable SQLite.*after row \d+.*again"
        ):
            texts(path)
    for other in (b"", b"\x1f\x8b" + content, b"something else" * 100):
        path.write_bytes(other)
        with pytest.raises(DataError, match=r"a\.db is not a SQLite database"):
            texts(path)


def test_a_locked_database_is_refused(tmp_path, monkeypatch):
    """After a wait for the program that writes; a program that only reads is no obstacle."""
    monkeypatch.setattr(sqlite, "LOCK_SECONDS", 0.05)
    path = tmp_path / "a.db"
    write_rows(path, [{"text": "one"}])
    with closing(sqlite3.connect(path)) as other:
        other.execute("SELECT * FROM documents").fetchall()
        assert list(texts(path).values()) == ["one"]
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(DataError, match=r"a\.db is locked by another program"):
            texts(path)


def test_nothing_is_written_in_any_journal_mode(tmp_path):
    """The folder has the same files with the same content before and after."""
    for mode in ("DELETE", "WAL"):
        path = tmp_path / f"{mode}.db"
        write_rows(path, [{"text": mode}])
        with changing(path) as database:
            database.execute(f"PRAGMA journal_mode = {mode}")
    before = {path: hashlib.sha256(path.read_bytes()).digest() for path in tmp_path.iterdir()}
    assert list(texts(tmp_path).values()) == ["DELETE", "WAL"]
    after = {path: hashlib.sha256(path.read_bytes()).digest() for path in tmp_path.iterdir()}
    assert after == before


def test_changes_in_a_write_ahead_log_are_not_left_out_silently(tmp_path):
    """The file would not tell of them: refused, until they are in the file."""
    path, link = tmp_path / "a.db", tmp_path / "link.sqlite"
    write_rows(path, [{"text": "one"}])
    link.symlink_to(path)
    with closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA journal_mode = WAL")
        other.execute("INSERT INTO documents VALUES ('two')")
        other.commit()
        for name in (path, link):
            with pytest.raises(DataError, match=r"last changes are in a\.db-wal.*VACUUM INTO"):
                texts(name)
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        assert list(texts(path).values()) == ["one", "two"]
    assert list(texts(link).values()) == ["one", "two"]
