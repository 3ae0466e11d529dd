"""Records: the same from every format, with their types, in bounded memory."""

import bz2
import csv
import gzip
import json
import lzma
import math

import pyarrow
import pytest
import zstandard
from datasets import ClassLabel, Dataset, Features, Sequence, Value
from pyarrow import parquet

from stillhouse.data import text
from stillhouse.data.formats import TableFile, format_of
from stillhouse.data.rows import blank_rows, read_rows
from stillhouse.errors import DataError

TYPED = [
    {"text": "one", "flag": True, "number": 3, "share": 0.5, "tags": [1, 2], "deep": {"a": ["b"]}},
    {"text": "", "flag": False, "number": -7, "share": 1e-9, "tags": [], "deep": {"a": []}},
]


def records(path, **settings):
    format = format_of(path)
    assert format.read_records is not None
    return list(format.read_records(TableFile(path, str(path), **settings)))


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    "ending", ["jsonl", "ndjson", "jsonlines", "jl", "json", "array", "parquet"]
)
def test_values_keep_their_types(tmp_path, ending):
    """Booleans, whole numbers, floats, lists and nested objects, in every format that has them."""
    path = tmp_path / f"a.{'json' if ending == 'array' else ending}"
    if ending == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist(TYPED), path)
    elif ending == "array":
        path.write_text(json.dumps(TYPED, indent=2))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in TYPED))
    found = [dict(row.fields) for row in read_rows(path)]
    assert found == TYPED
    assert [type(value) for value in found[0].values()] == [str, bool, int, float, list, dict]


@pytest.mark.parametrize("block", [1, 7, 2**20])
@pytest.mark.parametrize("indent", [None, 1])
def test_json_arrays_do_not_depend_on_read_sizes(tmp_path, monkeypatch, block, indent):
    """Brackets, quotes and escapes may span two reads."""
    monkeypatch.setattr(text, "BLOCK_BYTES", block)
    rows = [{"text": f'[{{"é\\ {number}\n', "n": [number, {"x": None}]} for number in range(20)]
    path = write(tmp_path / "a.json", "\ufeff \n" + json.dumps(rows, indent=indent) + "\n\n")
    found = records(path)
    assert [record.fields for record in found] == rows
    assert [record.number for record in found] == list(range(1, 21))


def test_an_empty_array_has_no_records(tmp_path):
    """As an empty file has none."""
    assert records(write(tmp_path / "a.json", " [ ] ")) == []
    assert records(write(tmp_path / "b.json", " \n")) == [(f"{tmp_path}/b.json row 1", 1, None)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '[{"a": 1}, {"a": ', r"row 2 is not JSON"),
        ("a.json", '[{"a": 1} {"a": 2}]', r"row 1 is not JSON \(, or \] is missing, found '\{'\)"),
        ("a.json", '[{"a": 1}, ]', r"row 2 is not JSON"),
        ("a.json", '[{"a": 1}', r"row 1 is not JSON \(, or \] is missing, found 'the end'"),
        ("a.json", '[{"a": 1}] x', r"row 1 is not JSON \('x' follows the end of the array\)"),
        ("a.json", "[1]", "row 1 is a JSON number, not an object"),
        ("a.json", '{"a":\n 1}\n', "row 1 is not JSON .* may also be one array of objects"),
        ("a.jsonl", '[{"a": 1}]', "row 1 is a JSON list, not an object"),
        ("a.jsonl", '{"a": 1}\nnull\n', "row 2 is a JSON null, not an object"),
        ("a.csv", "text;label\nx;1\n", "row 1 names one column, 'text;label': the file looks like "
         r"semicolon-separated values, not CSV; save it with commas\."),
        ("a.csv", '"text";"label"\n"x";"1"\n', "looks like semicolon-separated values, not CSV"),
        ("a.csv", "text\tlabel\nx\t1\n", "tab-separated values, not CSV; rename it to end in .tsv"),
        ("a.tsv", "text,label\nx,1\n", "comma-separated values, not TSV; rename it to end in .csv"),
        ("a.csv", "text,label\n\"a,1\n", "row 2 cannot be read .*Correct its quotes"),
        ("a.csv", "text, text\na,b\n", "row 1 names a column twice: text, text. Rename one"),
        ("a.csv", "text,label\na\0,1\n", "a.csv holds a NUL character in row 2"),
        ("a.csv", "text,label\na,1\n".encode("utf-16"), "iconv -f UTF-16 -t UTF-8"),
        ("a.csv", "text\r\rcaf\xe9\r".encode("latin1"), "a.csv row 3 is not UTF-8: byte 9"),
        ("a.parquet", b"PAR1", "is not a readable Parquet file"),
    ],
)  # fmt: skip
def test_malformed_tables_are_refused_with_their_row(tmp_path, name, content, message):
    """One message, with the file first."""
    path = write(tmp_path / name, content)
    with pytest.raises(DataError, match=message) as error:
        read_rows(path)
    assert str(error.value).startswith(str(path))


def test_a_wrong_separator_is_named_with_a_header_of_the_recipe(tmp_path):
    """Without a header of its own, too, a file with semicolons is named as such."""
    path = write(tmp_path / "a.csv", "one;1\ntwo;0\n")
    with pytest.raises(DataError, match=r"row 1 has 1 fields.*looks like semicolon-separated"):
        read_rows(path, header=["text", "label"])


def test_one_column_of_text_may_hold_semicolons(tmp_path):
    """Only the line with the names tells how a table is separated."""
    (row,) = read_rows(write(tmp_path / "a.csv", "text\none; two\n"))
    assert row.text("text") == "one; two"


def test_a_field_may_be_long(tmp_path):
    """Beyond the standard library's 131,072 characters; nobody's higher limit is lowered."""
    text = "word, " * 25_000
    path = write(tmp_path / "a.csv", f'text,label\n"{text}",1\n')
    before = csv.field_size_limit(10**9)
    try:
        (row,) = read_rows(path)
        assert csv.field_size_limit() == 10**9
    finally:
        csv.field_size_limit(before)
    assert row.text("text") == text
    csv.field_size_limit(131_072)
    assert read_rows(path)[0].text("text") == text


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("block", [1, 2**20])
def test_lines_may_end_in_any_way(tmp_path, monkeypatch, end, block):
    """As spreadsheets of three systems write them; a line end inside quotes stays what it is."""
    monkeypatch.setattr(text, "BLOCK_BYTES", block)
    table = f'text,label{end}"one{end}two",1{end}three\u2028,0'
    found = records(write(tmp_path / "a.csv", table))
    assert [record.fields for record in found] == [
        {"text": f"one{end}two", "label": "1"},
        {"text": "three\u2028", "label": "0"},
    ]
    assert [record.number for record in found] == [2, 4]
    jsonl = f'{{"text": "one"}}{end}{end}{{"text": "two\u2028"}}{end}'
    found = records(write(tmp_path / "a.jsonl", jsonl))
    assert [record.fields for record in found] == [{"text": "one"}, None, {"text": "two\u2028"}]


def test_only_rows_without_any_field_are_blank(tmp_path):
    """Empty fields are fields; a blank line has none, and is counted."""
    path = write(tmp_path / "a.csv", 'text,pair\n,\n\n"",x\n')
    assert [row.fields for row in read_rows(path)] == [
        {"text": "", "pair": ""},
        {"text": "", "pair": "x"},
    ]
    assert blank_rows(path) == [3]
    kept = read_rows(path, keep_blank=True)
    assert [row.where.rpartition(" row ")[2] for row in kept] == ["2", "3", "4"]
    assert [row.text("pair") for row in kept] == ["", "", "x"]


def test_a_missing_field_is_null(tmp_path):
    """Where other rows have it; a name that no row has is wrong."""
    path = write(
        tmp_path / "a.jsonl", '{"text": "a"}\n{"text": "b", "pair": "c"}\n{"pair": null}\n'
    )
    rows = read_rows(path)
    assert [(row.text("text"), row.text("pair")) for row in rows] == [
        ("a", ""),
        ("b", "c"),
        ("", ""),
    ]
    with pytest.raises(DataError, match="row 1 has no column 'label'; it has 'text', 'pair'"):
        rows[0].text("label")


def test_null_and_nan_are_empty_texts_but_not_numbers(tmp_path):
    """As tables of pandas have them."""
    table = pyarrow.table({"text": [None, "x"], "other": [math.nan, 1.0]})
    parquet.write_table(table, tmp_path / "a.parquet")
    first, _ = read_rows(tmp_path / "a.parquet")
    assert (first.text("text"), first.text("other")) == ("", "")
    with pytest.raises(DataError, match=r"row 1: the column 'other' must hold a finite number"):
        first.number("other")
    with pytest.raises(DataError, match=r"row 1: the column 'text' must hold a number"):
        first.number("text")


@pytest.mark.parametrize("value", ["true", '"1_000"', "null", '"x"', "[1]"])
def test_values_that_are_not_numbers_are_refused(tmp_path, value):
    """Python would take the first two for numbers."""
    (row,) = read_rows(write(tmp_path / "a.jsonl", f'{{"score": {value}}}'))
    with pytest.raises(DataError, match="must hold a number"):
        row.number("score")


def test_a_lone_surrogate_is_refused(tmp_path):
    """It would stop the tokenizer."""
    (row,) = read_rows(write(tmp_path / "a.jsonl", '{"text": "\\ud800"}'))
    with pytest.raises(DataError, match=r"row 1: the column 'text' holds a lone surrogate"):
        row.text("text")


def test_parquet_classes_are_given_by_name(tmp_path):
    """As on the hub, so that both give the same labels; a class below 0 is not known."""
    features = Features(
        text=Value("string"),
        label=ClassLabel(names=["negative", "positive"]),
        ner_tags=Sequence(ClassLabel(names=["O", "B-LOC"])),
    )
    rows = [
        {"text": "a", "label": 1, "ner_tags": [0, 1]},
        {"text": "b", "label": -1, "ner_tags": []},
    ]
    Dataset.from_list(rows, features=features).to_parquet(tmp_path / "a.parquet")
    first, second = read_rows(tmp_path / "a.parquet")
    assert first.fields == {"text": "a", "label": "positive", "ner_tags": ["O", "B-LOC"]}
    assert second.fields == {"text": "b", "label": None, "ner_tags": []}


COMPRESSIONS = [
    (".gz", gzip.compress),
    (".zst", zstandard.compress),
    (".bz2", bz2.compress),
    (".xz", lzma.compress),
]


@pytest.mark.parametrize(("ending", "compress"), COMPRESSIONS)
def test_compressed_files_are_read_and_damage_is_named(tmp_path, ending, compress):
    """Whatever the compression; a file that is cut short is not taken for a whole one."""
    content = json.dumps([{"text": f"{number} {hash(str(number))}"} for number in range(999)])
    path = write(tmp_path / f"a.json{ending}", compress(content.encode()))
    assert len(read_rows(path)) == 999
    for damaged in (path.read_bytes()[:-20], b"plain", path.read_bytes()[:30]):
        write(path, damaged)
        with pytest.raises(DataError, match=rf"a\.json{ending} is damaged or cut short"):
            read_rows(path)


@pytest.mark.parametrize(("ending", "compress"), COMPRESSIONS)
def test_a_decompression_bomb_ends_before_it_fills_memory_or_time(
    tmp_path, monkeypatch, ending, compress
):
    """Text that is as repetitive as text can be is read, whatever its size."""
    monkeypatch.setattr(text, "FREE_BYTES", 2**16)
    rows = (json.dumps({"text": f"The same words, line {number % 100}."}) for number in range(4000))
    fair = write(tmp_path / f"fair.jsonl{ending}", compress("\n".join(rows).encode()))
    assert len(records(fair)) == 4000
    bomb = write(tmp_path / f"bomb.jsonl{ending}", compress(b" " * 2**22))
    with pytest.raises(
        DataError, match=rf"bomb\.jsonl{ending} is a decompression bomb: its [\d,]+"
    ):
        records(bomb)


@pytest.mark.parametrize(
    ("name", "content", "blank"),
    [
        ("a.jsonl", '{"text": "a", "pair": "b"}\n{}\n  \n', [2, 3]),
        ("a.json", '[{"text": "a", "pair": "b"}, {}]', [2]),
        ("a.csv", "text,pair\na,b\n  \n\n", [3, 4]),
        ("a.tsv", "text\tpair\na\tb\n  \n\n", [3, 4]),
    ],
)
def test_empty_objects_and_lines_of_white_space_are_blank(tmp_path, name, content, blank):
    """They have no field, and are counted."""
    path = write(tmp_path / name, content)
    assert [row.fields for row in read_rows(path)] == [{"text": "a", "pair": "b"}]
    assert blank_rows(path) == blank


def test_lines_of_a_text_file_are_rows_of_a_single_column(tmp_path):
    """Elsewhere it is no table."""
    path = write(tmp_path / "a.txt", "one, two\r\n\nthree")
    rows = read_rows(path, plain=True)
    assert [row.fields for row in rows] == [{"text": "one, two"}, {"text": "three"}]
    assert rows[1].where.endswith("a.txt row 3")
    with pytest.raises(DataError, match=r"a\.txt is not a table: its name must end in \.jsonl"):
        read_rows(path)
