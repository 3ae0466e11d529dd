"""Documents: those of each kind of source, and errors about text that cannot be read."""

import gzip
import json
import os
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pyarrow
import pytest
import zstandard
from pyarrow import parquet

from stillhouse.data import chunks
from stillhouse.data.chunks import MAX_CHUNK_CHARACTERS, chunk_document, split_text
from stillhouse.data.documents import (
    ReadSummary,
    describe_sources,
    read_documents,
    summarize_sources,
)
from stillhouse.data.settings import CorpusRecipe
from stillhouse.data.sources import hub
from stillhouse.errors import DataError, NetworkError, RecipeError


def read(source: Path | str | list[str], **settings: str) -> dict[str, str]:
    """Documents by id, their pieces joined."""
    sources = source if isinstance(source, list) else str(source)
    corpus = CorpusRecipe.model_validate({"source": sources, **settings})
    documents: dict[str, str] = {}
    for piece in read_documents(corpus, offline=True):
        assert piece.starts_document == (piece.document_id not in documents)
        documents[piece.document_id] = documents.get(piece.document_id, "") + piece.text
    return documents


@pytest.fixture
def folder(tmp_path):
    """A folder with one file of each format, one of them in a subfolder."""
    root = tmp_path / "texts"
    (root / "deep").mkdir(parents=True)
    (root / "deep" / "note.txt").write_text("A note.\n")
    (root / "page.md.gz").write_bytes(gzip.compress(b"# A page\n"))
    (root / "story.txt.zst").write_bytes(zstandard.compress(b"A story."))
    (root / "rows.jsonl").write_text(
        '{"text": "one", "id": "first"}\n\n{"text": "three", "id": 3}\n'
    )
    (root / "plain.json").write_text('{"text": "no id"}\n')
    table = pyarrow.table({"text": ["red", "blue"], "id": ["r", "b"], "url": ["x", "y"]})
    parquet.write_table(table, root / "table.parquet")
    (root / "picture.png").write_bytes(b"\x89PNG\x00")
    (root / ".hidden.txt").write_text("hidden")
    return root


ALL = {
    "deep/note.txt": "A note.\n",
    "page.md.gz": "# A page\n",
    "plain.json:1": "no id",
    "first": "one",
    "3": "three",
    "story.txt.zst": "A story.",
    "r": "red",
    "b": "blue",
}


def test_a_folder_gives_every_supported_file_in_order(folder):
    """A folder is read whole, sorted by name; pictures and hidden files are no text."""
    assert list(read(folder).items()) == list(ALL.items())


def test_ids_stay_when_the_folder_moves(folder, tmp_path):
    """A file that is moved on disk, with its source, keeps its id and so its side of the split."""
    before = read(folder)
    shutil.move(folder, tmp_path / "elsewhere")
    assert read(tmp_path / "elsewhere") == before


def test_a_glob_names_files_below_its_fixed_part(folder):
    """`**` reaches subfolders, and ids start where the wildcards start."""
    assert read(f"{folder}/**/*.txt*") == {
        "deep/note.txt": "A note.\n",
        "story.txt.zst": "A story.",
    }


def test_a_single_file_is_known_by_its_name_whatever_its_ending(tmp_path):
    """A file named outright is plain text when its ending is unknown."""
    (tmp_path / "server.log").write_text("started")
    assert read(tmp_path / "server.log") == {"server.log": "started"}


def write_large_window(path: Path, content: bytes) -> bytes:
    """A zstd file as the dumps of Reddit are."""
    settings = zstandard.ZstdCompressionParameters(window_log=31, write_checksum=True)
    stream = zstandard.ZstdCompressor(compression_params=settings).compressobj()
    path.write_bytes(stream.compress(content) + stream.flush())
    return path.read_bytes()


def test_zstd_with_a_window_of_two_gibibytes_is_read(tmp_path):
    """In several frames, one of which is empty."""
    path = tmp_path / "a.txt.zst"
    lines = "".join(f"line {number}\n" for number in range(50_000))
    frames = write_large_window(path, lines.encode())
    frames += write_large_window(path, b"") + zstandard.compress(b"the end")
    path.write_bytes(frames)
    assert read(path) == {"a.txt.zst": f"{lines}the end"}


def test_zstd_with_a_large_window_that_is_damaged_is_named(tmp_path):
    """Cut short anywhere, or broken."""
    path = tmp_path / "a.txt.zst"
    whole = write_large_window(path, b"".join(b"%d" % number**3 for number in range(20_000)))
    for damaged in (whole[:-1], whole[: len(whole) // 2], whole[:900] + bytes(99) + whole[999:]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"a\.txt\.zst is damaged or cut short"):
            read(path)


def test_relative_paths_start_in_the_current_folder(folder, monkeypatch):
    """A recipe's relative path is seen from where the command is given."""
    monkeypatch.chdir(folder)
    assert read("deep") == {"note.txt": "A note.\n"}


def test_a_file_that_two_sources_name_is_read_once(folder):
    """The same text twice would put one copy in training and the other in validation."""
    assert read([str(folder), str(folder / "deep" / "note.txt")]) == ALL


def test_lines_are_documents_with_their_line_numbers(tmp_path):
    """Per line: blank lines are left out but counted, and line ends are cut off."""
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\n\r\n  \ntwo\nthree")
    assert read(tmp_path / "a.txt", documents="per_line") == {
        "a.txt:1": "one",
        "a.txt:4": "two",
        "a.txt:5": "three",
    }


def test_blocks_are_documents_between_blank_lines(tmp_path):
    """Per block: lines stay together until a blank line."""
    (tmp_path / "a.txt").write_bytes(b"\none\r\ntwo\r\n \t\r\n\nthree\n")
    assert read(tmp_path / "a.txt", documents="per_block") == {
        "a.txt:2": "one\ntwo",
        "a.txt:6": "three",
    }


def test_a_file_is_kept_as_it_is(tmp_path):
    """Per file: only the byte order mark goes; line ends and spaces are the author's."""
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf one\r\n\ntwo \n")
    assert read(tmp_path / "a.txt") == {"a.txt": " one\r\n\ntwo \n"}


def test_blank_documents_are_left_out(tmp_path):
    """A document of white space has nothing to learn from."""
    (tmp_path / "a.txt").write_text(" \n\t")
    (tmp_path / "b.txt").write_text("b")
    assert read(tmp_path) == {"b.txt": "b"}


def test_a_character_may_span_two_reads(tmp_path):
    """Decoding resumes where the last block of bytes ended, in the middle of a character."""
    text = "x" + "é" * 2**20
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    assert read(tmp_path / "a.txt") == {"a.txt": text}


@pytest.mark.parametrize("documents", ["per_file", "per_line", "per_block"])
def test_one_huge_line_gives_several_chunks(tmp_path, documents):
    """A line longer than a piece is one document in several pieces, with nothing lost."""
    text = "some words " * 300_000
    (tmp_path / "a.txt").write_text(text)
    (joined,) = read(tmp_path / "a.txt", documents=documents).values()
    assert joined == text


def test_chunks_are_cut_before_a_lone_space():
    """The cut is the last safe place within the limit, so that no token spans it."""
    text = "ab  cd\n\nef " * (MAX_CHUNK_CHARACTERS // 10)
    found = list(chunk_document("a", [text]))
    assert "".join(piece.text for piece in found) == text
    assert [piece.starts_document for piece in found] == [True] + [False] * (len(found) - 1)
    for left, right in pairwise(found):
        assert MAX_CHUNK_CHARACTERS - 11 <= len(left.text) <= MAX_CHUNK_CHARACTERS
        assert left.text.endswith("ef")
        assert right.text.startswith(" ab")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one two", ["one", " two"]),
        ("one\ntwo", ["one", "\ntwo"]),
        ("one  two", ["one  two"]),  # a run of spaces is split elsewhere by the pre-tokenizer
        ("one.\ntwo", ["one.\ntwo"]),  # GPT-4 and Llama 3 join these
        ("onetwothree", ["onetwothree"]),
    ],
)
def test_split_text_cuts_at_safe_positions_only(text, expected):
    """Where there is no safe place, a stretch grows rather than being cut."""
    assert list(split_text(text, 4)) == expected


def test_chunks_do_not_depend_on_read_sizes(monkeypatch):
    """The cuts follow from the text alone, not from the sizes of the reads."""
    monkeypatch.setattr(chunks, "MAX_CHUNK_CHARACTERS", 50)
    text = "The quick brown fox\njumps over  the lazy dog, " * 20 + "x" * 200
    whole = list(chunk_document("a", [text]))
    for size in (1, 7, 64):
        parts = [text[start : start + size] for start in range(0, len(text), size)]
        assert list(chunk_document("a", parts)) == whole


def test_the_sample_is_the_standard_library():
    """The sample source needs no file and no network, and names its documents by module path."""
    documents = read("sample")
    assert documents["json/decoder.py"].startswith('"""Implementation of JSONDecoder')
    assert not any(name.startswith("test/") or "site-packages" in name for name in documents)
    assert 5e6 < sum(map(len, documents.values())) < 5e7


def test_hub_rows_are_streamed(folder, tmp_path):
    """Rows of a dataset are documents, by their own id."""
    shutil.copy(folder / "table.parquet", tmp_path / "train.parquet")
    (tmp_path / "data").mkdir()
    shutil.move(tmp_path / "train.parquet", tmp_path / "data" / "train.parquet")
    found = hub.documents(f"hf://{tmp_path / 'data'}", CorpusRecipe(source="hf://x/y"))
    assert {document.id: "".join(document.parts) for document in found} == {"r": "red", "b": "blue"}


def test_offline_refuses_hub_sources():
    """Offline, a hub source is refused before anything is fetched."""
    with pytest.raises(NetworkError, match=r"hf://a/b.*--offline.*give a folder") as error:
        read("hf://a/b")
    assert error.value.exit_code == 7


def test_a_missing_datasets_package_is_explained(monkeypatch):
    """Without the optional package the error says how to install it."""
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(RecipeError, match=r"pip install 'stillhouse\[hub\]'"):
        list(hub.stream("hf://a/b"))


GZIP = gzip.compress(os.urandom(5000))
ZSTD = zstandard.compress(os.urandom(5000))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"caf\xe9 x", r"a\.txt is not UTF-8: byte 3 is 0xe9 .*iconv"),
        ("a.txt", b"x" * 2**20 + b"caf\xc3", r"a\.txt is not UTF-8: byte 1048579 is 0xc3"),
        ("a.txt", b"one\ntwo\0", r"a\.txt holds a NUL character in line 2.*binary"),
        ("a.txt", b" \n", r"a\.txt holds no text"),
        ("a.txt.gz", GZIP[:-100], r"a\.txt\.gz is damaged or cut short"),
        ("a.txt.gz", b"plain", r"a\.txt\.gz is damaged or cut short"),
        ("a.txt.zst", ZSTD[:-100], r"a\.txt\.zst is damaged or cut short"),
        ("a.txt.zst", b"plain", r"a\.txt\.zst is damaged or cut short"),
        ("a.jsonl", b'{"text": "x"}\n{"text": ', r"a\.jsonl row 2 is not JSON"),
        ("a.jsonl", b"[" * 100_000, r"a\.jsonl row 1 is not JSON"),
        ("a.jsonl", b'["x"]', r"a\.jsonl row 1 is a JSON list, not an object"),
        ("a.jsonl", json.dumps({f"f{n}": n for n in range(99)}).encode(),
         r"its fields are 'f0', .*'f19' and 79 more\. Give"),
        ("a.jsonl", b'{"body": "x"}', r"row 1 has no field 'text'; its fields are 'body'"),
        ("a.jsonl", b'{"text": null}', r"a\.jsonl holds no text: every document is empty or blank"),
        ("a.jsonl", b'{"text": "a", "id": "\\ud83d"}', r"1: the field 'id' holds a lone surrogate"),
        ("a.txt", GZIP, r"a\.txt is not text: .* gzip-compressed\. Rename it to end in \.gz"),
        ("a.txt", ZSTD, r"a\.txt is not text: .* zstd-compressed\. Rename it to end in \.zst"),
        ("a.txt", b"%PDF-1.4\n%\xe2", r"a\.txt is not text: .* a PDF file\. Convert it"),
        ("a.jsonl", b"PAR1\x15", r"a\.jsonl is not text: .* a Parquet file\. Rename"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xe9"}', r"row 2 is not UTF-8: byte 24 of"),
        ("a.jsonl", b'{"text": "\\ud800"}', r"row 1 holds a lone surrogate, \\ud800"),
        ("a.jsonl", b'{"text": "\\u0000"}', r"row 1 holds a NUL character"),
        ("a.parquet", b"PAR1 and then nothing", r"a\.parquet is not a readable Parquet file"),
    ],
)  # fmt: skip
def test_unreadable_text_names_the_file_and_row(tmp_path, name, content, message):
    """The error says which file and where, and has the exit code for data."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        read(tmp_path / name)
    assert error.value.exit_code == 3


def test_a_truncated_compressed_file_is_refused(tmp_path):
    """Text that arrived before the damage is not taken for the whole document."""
    (tmp_path / "a.txt.zst").write_bytes(zstandard.compress(b"words " * 10**5)[:-8])
    corpus = CorpusRecipe(source=str(tmp_path / "a.txt.zst"))
    with pytest.raises(DataError, match="damaged or cut short"):
        list(read_documents(corpus, offline=True))


def test_several_zstandard_frames_are_one_file(tmp_path):
    """Concatenated frames, as parallel compressors write them, are read to the end."""
    (tmp_path / "a.txt.zst").write_bytes(zstandard.compress(b"one ") + zstandard.compress(b"two"))
    assert read(tmp_path / "a.txt.zst") == {"a.txt.zst": "one two"}


def test_an_overlong_json_line_is_refused(tmp_path):
    """A file without line ends is refused before it fills the memory."""
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "' + b"x" * (64 * 2**20) + b'"}')
    with pytest.raises(DataError, match="row 1 is longer than 64 MiB"):
        read(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"body": ["x"]}, "has no field 'text'; its fields are 'body'"),
        ({"text": [1]}, "row 1: the field 'text' holds int"),
        ({"text": [["y"]]}, "row 1: the field 'text' holds list"),
    ],
)
def test_a_parquet_file_without_text_is_named(tmp_path, columns, message):
    """The error names the file, the row and the fields that are there."""
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=message):
        read(tmp_path / "a.parquet")


MIXED = {
    "a.ndjson": '{"text": "one"}\n',
    "b.jsonlines": '{"text": "two"}\n',
    "c.jl": '{"text": "three"}\n',
    "d.json": '[{"text": "four", "id": "d"}, {"text": "five"}]',
    "e.csv": 'id,text\nx,"six, ""6"""\n,seven\n',
    "f.tsv": 'text\tn\n"eight"\t8\n',
    "g.html": "<title>no</title><p>nine<script>no()</script>",
    "h.rst": "ten",
}


def test_known_suffixes_are_read_in_their_format(tmp_path):
    """Never the markup or the JSON itself."""
    for name, content in MIXED.items():
        (tmp_path / name).write_text(content)
    expected = {
        "a.ndjson:1": "one", "b.jsonlines:1": "two", "c.jl:1": "three", "d": "four",
        "d.json:2": "five", "x": 'six, "6"', "e.csv:3": "seven", "f.tsv:2": '"eight"',
        "g.html": "nine", "h.rst": "ten",
    }  # fmt: skip
    assert read(tmp_path) == expected
    for name in MIXED:
        assert read(tmp_path / name).items() <= expected.items()
    summary = summarize_sources(CorpusRecipe(source=[str(tmp_path), f"{tmp_path}/a.*"]))
    assert str(summary) == (
        "3 files as JSON lines, 1 as CSV, 1 as HTML, 1 as JSON, 1 as TSV, 1 as text"
    )


def test_skipped_files_are_counted_by_suffix(tmp_path):
    """By suffix, with hidden files; nothing is passed over without a word."""
    for name in ("a.txt", "b.PDF", "c.pdf", "d.png.gz", "README", ".hidden.txt", ".git/a.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text")
    summary = summarize_sources(CorpusRecipe(source=str(tmp_path)))
    skipped = "skipped 6: 2 .pdf, 2 hidden, 1 .png, 1 without a suffix"
    assert str(summary) == f"1 file as text; {skipped}"
    assert summary.facts() == {
        "files": {"text": 1},
        "skipped": {".pdf": 2, ".png": 1, "hidden": 2, "without a suffix": 1},
        "blank_documents": 0,
    }
    assert read(tmp_path) == {"a.txt": "text"}


def test_a_glob_names_a_suffix(tmp_path):
    """`*.log` asks for logs; `*` asks for what is known, as the folder does."""
    for name in ("a.txt", "b.log", "c.log", "d.pdf", "README"):
        (tmp_path / name).write_text(name)
    assert read(f"{tmp_path}/*.log") == {"b.log": "b.log", "c.log": "c.log"}
    assert read(f"{tmp_path}/*") == {"a.txt": "a.txt"}
    assert read(tmp_path / "README") == {"README": "README"}
    with pytest.raises(DataError, match=r"d\.pdf cannot be read as text.*Convert it to text"):
        read(f"{tmp_path}/*.pdf")
    with pytest.raises(DataError, match=r"No file matches .* except 1 \.pdf, which cannot be read"):
        read(f"{tmp_path}/d*")


@pytest.mark.parametrize("name", ["a.pdf", "a.docx", "a.xlsx", "a.ipynb", "a.zip", "a.epub.gz"])
def test_document_formats_are_refused_with_a_conversion(tmp_path, name):
    """With what to do, also where its bytes would pass for text."""
    (tmp_path / name).write_text("{}")
    with pytest.raises(DataError, match=rf"{name} cannot be read as text.*Convert it"):
        read(tmp_path / name)


def test_blank_documents_are_counted(tmp_path):
    """Of every kind."""
    (tmp_path / "a.txt").write_text("one\n\n two \n")
    (tmp_path / "b.jsonl").write_text('{"text": ""}\n\n{"text": "three"}\n')
    summary = ReadSummary()
    corpus = CorpusRecipe(source=str(tmp_path), documents="per_line")
    assert len(list(read_documents(corpus, offline=True, summary=summary))) == 3
    assert summary.blank_documents == 3


def test_nothing_found_says_where_it_looked(tmp_path, monkeypatch):
    """The error has the pattern and the folder that it is seen from."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=rf"No file matches.*'texts/\*\.txt'.*{tmp_path}"):
        read("texts/*.txt")
    (tmp_path / "texts").mkdir()
    with pytest.raises(DataError, match=r"folder texts holds no file with one of .*; it is empty"):
        read("texts")
    (tmp_path / "texts" / "a.pdf").touch()
    with pytest.raises(DataError, match=r"folder texts holds no file with one.*it holds 1 \.pdf"):
        read("texts")


def test_sources_are_described_without_their_text(folder):
    """Names, sizes and times tell whether a source changed; a changed file changes them."""
    corpus = CorpusRecipe(source=str(folder))
    before = describe_sources(corpus)
    assert [file["name"] for file in before] == [
        "deep/note.txt", "page.md.gz", "plain.json", "rows.jsonl", "story.txt.zst", "table.parquet",
    ]  # fmt: skip
    with (folder / "rows.jsonl").open("a") as file:
        file.write(json.dumps({"text": "more"}))
    assert describe_sources(corpus) != before


MEASURE = """
import re, sys
from stillhouse.data.documents import read_documents
from stillhouse.data.settings import CorpusRecipe
size = sum(len(p.text) for p in read_documents(CorpusRecipe(source=sys.argv[1]), offline=True))
print(size, re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
"""


@pytest.mark.parametrize("ending", [".txt", ".txt.gz", ".txt.zst"])
def test_memory_does_not_grow_with_the_file(tmp_path, ending):
    """Even 60 MB in one line, some kilobytes when compressed, stay within 200 MB of memory."""
    content = b"word " * 12 * 10**6
    compress = {".txt": bytes, ".txt.gz": gzip.compress, ".txt.zst": zstandard.compress}[ending]
    (tmp_path / f"a{ending}").write_bytes(compress(content))
    command = [sys.executable, "-c", MEASURE, str(tmp_path / f"a{ending}")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    size, peak_kilobytes = map(int, done.stdout.split())
    assert size == len(content)
    assert peak_kilobytes < 200_000


def test_a_record_whose_text_is_null_is_a_blank_document(tmp_path):
    """Null, NaN and blank alike: left out and counted, as data frames write missing text."""
    lines = ['{"text": "one"}', '{"text": null}', '{"text": NaN}', '{"text": " "}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    parquet.write_table(pyarrow.table({"text": ["two", None]}), tmp_path / "b.parquet")
    summary = ReadSummary()
    pieces = read_documents(CorpusRecipe(source=str(tmp_path)), offline=True, summary=summary)
    assert [piece.text for piece in pieces] == ["one", "two"]
    assert summary.blank_documents == 4


def test_linked_folders_are_read_and_special_files_counted(tmp_path):
    """Nothing of a folder is passed over unseen; links in a circle end."""
    source, elsewhere = tmp_path / "source", tmp_path / "elsewhere"
    source.mkdir()
    elsewhere.mkdir()
    (source / "a.txt").write_text("here")
    (elsewhere / "b.txt").write_text("there")
    (source / "link").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(source)
    (source / "c.txt").symlink_to(tmp_path / "nowhere")
    os.mkfifo(source / "d.txt")
    assert read(source) == {"a.txt": "here", "link/b.txt": "there"}
    summary = summarize_sources(CorpusRecipe(source=str(source)))
    assert str(summary) == "2 files as text; skipped 2: 1 broken link, 1 special file"


def test_folders_that_a_glob_matches_are_counted(tmp_path):
    """`*` does not look into folders; `**` does, so that no folder is left out there."""
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "deep" / "b.txt").write_text("b")
    assert str(summarize_sources(CorpusRecipe(source=f"{tmp_path}/*"))) == (
        "1 file as text; skipped 1: 1 folder"
    )
    assert str(summarize_sources(CorpusRecipe(source=f"{tmp_path}/**/*"))) == "2 files as text"
