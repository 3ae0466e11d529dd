"""Reading lines of a damaged file: what is damaged is left out, the rest is read."""

import pytest

from stillhouse.data import text
from stillhouse.data.text import read_lines
from stillhouse.errors import DataError


@pytest.fixture
def file(tmp_path, monkeypatch):
    """A file of some bytes, read in blocks of 8 bytes, with lines of at most 20 characters."""
    monkeypatch.setattr(text, "BLOCK_BYTES", 8)
    monkeypatch.setattr(text, "MAX_LINE_CHARACTERS", 20)

    def write(content: bytes):
        path = tmp_path / "lines.txt"
        path.write_bytes(content)
        return path

    return write


def lenient(path):
    errors: list[DataError] = []
    return list(read_lines(path, errors.append)), [str(error) for error in errors]


LONG = b"x" * 60


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_a_line_that_is_too_long_is_left_out_alone(file, end):
    """The lines after it keep their numbers."""
    path = file(end.join([b"one", LONG, b"three", LONG, b"five"]))
    lines, errors = lenient(path)
    assert [(number, line.strip()) for number, line in lines] == [
        (1, "one"),
        (3, "three"),
        (5, "five"),
    ]
    assert len(errors) == 2
    assert "row 2 is longer" in errors[0]
    assert "row 4 is longer" in errors[1]


def test_a_line_that_is_too_long_at_the_end_of_the_file(file):
    lines, errors = lenient(file(b"one\n" + LONG))
    assert lines == [(1, "one\n")]
    assert len(errors) == 1


def test_a_line_that_is_too_long_is_an_error_otherwise(file):
    with pytest.raises(DataError, match="row 2 is longer"):
        list(read_lines(file(b"one\n" + LONG + b"\n")))


def test_bytes_that_are_not_utf_8_are_marked_in_their_line_alone(file):
    """As lone surrogates, by which the reader of a record tells that it is damaged."""
    path = file("eins\nzw\udcffei\ndreißig\n".encode("utf-8", "surrogateescape"))
    lines, errors = lenient(path)
    assert lines == [(1, "eins\n"), (2, "zw\udcffei\n"), (3, "dreißig\n")]
    assert errors == []
    with pytest.raises(DataError, match="row 2"):
        list(read_lines(path))


def test_nul_characters_stay_in_their_line(file):
    path = file(b"one\ntw\0o\nthree\n")
    assert lenient(path)[0] == [(1, "one\n"), (2, "tw\0o\n"), (3, "three\n")]
    with pytest.raises(DataError, match="NUL character in row 2"):
        list(read_lines(path))
