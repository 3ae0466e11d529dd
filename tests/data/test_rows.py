"""Rows of tables: read whole, or refused with file and row."""

import gzip

import pytest

from stillhouse.data.rows import blank_rows, read_rows
from stillhouse.errors import DataError


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'text,label\n"one, ""two""\nthree",1\n\nfour,0\n'),
        (
            "a.jsonl",
            '{"text": "one, \\"two\\"\\nthree", "label": 1}\n\n{"text": "four", "label": 0}',
        ),
        ("a.csv", '\ufefftext,label\r\n"one, ""two""\nthree",1\r\nfour,0\r\n'),
    ],
)
def test_formats_give_the_same_rows(tmp_path, name, content):
    """With quotes, commas, blank lines, a byte order mark and line ends of any kind."""
    first, second = read_rows(write(tmp_path / name, content))
    assert first.text("text") == 'one, "two"\nthree'
    assert second.text("text") == "four"
    assert [str(row.value("label")) for row in (first, second)] == ["1", "0"]


def test_a_tsv_has_no_quotes(tmp_path):
    """As those of GLUE; compressed ones are read as well."""
    path = tmp_path / "a.tsv.gz"
    path.write_bytes(gzip.compress(b'sentence\tscore\n"it is\t1.5\n'))
    (row,) = read_rows(path)
    assert (row.text("sentence"), row.number("score")) == ('"it is', 1.5)


def test_columns_can_be_named_where_the_file_does_not(tmp_path):
    """Then further columns are passed over, as the licences in STS-B; too few are refused."""
    path = write(tmp_path / "a.tsv", "x\t1\tone\nx\t0\ttwo\tmore\n")
    rows = read_rows(path, header=["source", "label", "sentence"])
    assert [row.text("sentence") for row in rows] == ["one", "two"]
    with pytest.raises(DataError, match="row 1 has 3 fields, but the table has 4 columns"):
        read_rows(path, header=["a", "b", "c", "d"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "holds no rows"),
        ("a.csv", "text,label\n", "holds no rows"),
        ("a.csv", "text,text\na,b\n", "row 1 names a column twice"),
        ("a.csv", "text,label\na,1\nb\n", "row 3 has 1 fields, but the table has 2 columns"),
        ("a.csv", "text,label\na,1,2\n", "row 2 has 3 fields"),
        ("a.csv", 'text,label\n"a,1\n', "row 2 cannot be read"),
        ("a.jsonl", '{"text": "a"}\n{"text": ', "row 2 is not JSON"),
        ("a.jsonl", '["a"]\n', "row 1 is a JSON list"),
        ("a.jsonl", b'{"text": "a"}\n\xff\n', "row 2 is not UTF-8"),
        ("a.txt", "a\n", "is not a table: its name must end in"),
    ],
)
def test_malformed_tables_are_refused_with_their_row(tmp_path, name, content, message):
    """One message."""
    path = write(tmp_path / name, content)
    with pytest.raises(DataError, match=message) as error:
        read_rows(path)
    assert str(error.value).startswith(str(path))


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda row: row.text("sentence"), "has no column 'sentence'; it has 'text', 'label'"),
        (lambda row: row.number("label"), "must hold a number; it holds 'maybe'"),
    ],
)
def test_errors_say_what_a_field_must_hold(tmp_path, ask, message):
    """With file and row."""
    (row,) = read_rows(write(tmp_path / "a.csv", "text,label\n ,maybe\n"))
    with pytest.raises(DataError, match=f"a.csv row 2.*{message}"):
        ask(row)


def test_a_number_must_be_finite(tmp_path):
    """NaN would go unseen until the loss."""
    (row,) = read_rows(write(tmp_path / "a.jsonl", '{"score": NaN}\n'))
    with pytest.raises(DataError, match="a finite number"):
        row.number("score")


def test_a_missing_file_is_named(tmp_path):
    """Not a traceback."""
    with pytest.raises(DataError, match=r"none\.csv cannot be read \(No such file"):
        read_rows(tmp_path / "none.csv")


def test_a_header_that_repeats_the_first_line_is_refused(tmp_path):
    """It would be an example whose label is called label."""
    path = write(tmp_path / "a.tsv", "Text\tlabel\nx\t1\n")
    with pytest.raises(DataError, match=r"a.tsv row 1 already names the columns: text, label. Set"):
        read_rows(path, header=["text", "label"])
    assert len(read_rows(path)) == 1


def test_a_file_without_a_header_is_told_how_to_name_its_columns(tmp_path):
    """Its first row looks like none of names."""
    (row,) = read_rows(write(tmp_path / "a.tsv", "a film to see\t1\nx\t0\n"))
    with pytest.raises(DataError, match=r"has no column .text..*name the columns in `header`"):
        row.text("text")


@pytest.mark.parametrize("value", ['["a\\ud83d"]', '"a\\ud83d"', '"a\\u0000"'])
def test_values_with_invalid_characters_are_refused(tmp_path, value):
    """Labels and lists of tokens as well as texts."""
    (row,) = read_rows(write(tmp_path / "a.jsonl", f'{{"tokens": {value}}}'))
    with pytest.raises(DataError, match=r"a.jsonl row 1: the column 'tokens' holds"):
        row.value("tokens")


def test_a_number_fits_float32(tmp_path):
    """What is larger would become infinity in training."""
    good, bad = read_rows(write(tmp_path / "a.csv", "score\n3.4e38\n3.5e38\n"))
    assert good.number("score") == 3.4e38
    with pytest.raises(DataError, match="row 3: the column 'score' must hold a finite number"):
        bad.number("score")


def test_a_line_of_spaces_is_a_blank_row(tmp_path):
    """Also where there are several columns."""
    path = write(tmp_path / "a.csv", "text,label\nx,1\n   \ny,0\n")
    assert (len(read_rows(path)), blank_rows(path)) == (2, [3])
