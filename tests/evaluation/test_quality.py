"""Texts that models are scored on: read as the corpus is."""

import gzip

import pytest

from stillhouse.errors import DataError
from stillhouse.evaluation.quality import read_text


def test_a_byte_order_mark_compression_and_line_ends_are_no_text(tmp_path):
    """The same text, however it is stored."""
    contents = {
        "a.txt": b"one\ntwo",
        "b.txt": b"\xef\xbb\xbfone\r\ntwo",
        "c.txt.gz": gzip.compress(b"one\ntwo"),
        "d.log": b"one\rtwo",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        assert read_text(tmp_path / name) == "one\ntwo", name


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}', "is a file of JSON lines, of which the markup would be"),
        ("a.html", b"<p>x", "is a file of HTML, of which the markup"),
        ("a.pdf", b"%PDF-1.4", "it is a .pdf file. Convert it to text"),
        ("a.txt", b"caf\xe9", "is not UTF-8: byte 3"),
        ("a.txt", b"a\0b", "holds a NUL character in line 1"),
        ("a.txt", None, "There is no text file .*working directory"),
    ],
)
def test_file_that_is_not_plain_text_is_an_error(tmp_path, name, content, message):
    """Its markup would be scored, or its bytes guessed."""
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_text(tmp_path / name)
