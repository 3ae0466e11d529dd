"""The charset of a web page."""

import codecs

import pytest

from stillhouse.data.formats.html import NAMED_BYTES, decode_page

GERMAN, RUSSIAN, JAPANESE, CHINESE = "Größe für 5 €", "Привет, мир", "日本語のページ", "中文网页"


def named(charset: str, text: str, encoding: str) -> bytes:
    return f'<html><head><meta charset="{charset}"></head><body>{text}</body></html>'.encode(
        encoding
    )


@pytest.mark.parametrize(
    ("charset", "text", "encoding"),
    [
        ("utf-8", GERMAN, "utf-8"),
        ("iso-8859-1", GERMAN, "cp1252"),  # as browsers, which show its € sign
        ("ASCII", GERMAN, "cp1252"),
        ("iso-8859-15", GERMAN, "iso8859-15"),
        ("koi8-r", RUSSIAN, "koi8-r"),
        ("windows-1251", RUSSIAN, "cp1251"),
        ("Shift_JIS", JAPANESE, "cp932"),
        ("x-sjis", JAPANESE, "cp932"),
        ("iso-2022-jp", JAPANESE, "iso2022_jp"),
        ("gb2312", CHINESE + "镕", "gbk"),  # a character of GBK alone
        ("big5", "中文網頁", "big5"),
        ("euc-kr", "한국어", "euc_kr"),
    ],
)
def test_a_page_is_in_the_charset_that_it_names(charset, text, encoding):
    assert f"<body>{text}</body>" in decode_page(named(charset, text, encoding))


@pytest.mark.parametrize("mark", [codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE])
def test_a_byte_order_mark_comes_first(mark):
    encoding = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}.get(
        mark, "utf-8"
    )
    assert decode_page(mark + GERMAN.encode(encoding), "iso-8859-1") == GERMAN


def test_the_charset_of_the_server_comes_before_that_of_the_page():
    page = named("windows-1252", RUSSIAN, "cp1251")
    assert RUSSIAN in decode_page(page, "windows-1251")
    assert RUSSIAN not in decode_page(page)


@pytest.mark.parametrize("charset", ["iso-8859-1", "shift_jis", "utf-16", "no-charset", None])
def test_what_is_utf_8_is_read_as_that_whatever_it_is_said_to_be(charset):
    page = named(charset or "", GERMAN + RUSSIAN, "utf-8")
    assert GERMAN + RUSSIAN in decode_page(page)
    assert GERMAN + RUSSIAN in decode_page(page, charset)


@pytest.mark.parametrize(
    "charset", ["hex", "idna", "unicode_escape", "undefined", "punycode", "rot13", "utf-7", "\0"]
)
def test_names_of_other_codecs_are_no_charsets(charset):
    """Python has codecs that fail on any text, or are no charset of a page."""
    assert decode_page(GERMAN.encode("cp1252") + rb"\d", charset) == GERMAN + r"\d"


def test_without_a_name_text_that_is_not_utf_8_is_windows_1252():
    assert decode_page(GERMAN.encode("cp1252")) == GERMAN


def test_bytes_that_are_not_of_the_charset_are_replaced():
    assert decode_page(b"a\xffb\x81", "utf-8") == "a\ufffdb\ufffd"
    assert decode_page(b"a\x81\xe4") == "a\ufffdä"


def test_the_charset_of_an_xml_declaration():
    page = f'<?xml version="1.0" encoding="windows-1251"?><html>{RUSSIAN}</html>'
    assert RUSSIAN in decode_page(page.encode("cp1251"))


def test_a_charset_is_looked_for_at_the_start_alone():
    page = b"<!--" + b"x" * NAMED_BYTES + b"-->" + named("windows-1251", RUSSIAN, "cp1251")
    assert RUSSIAN not in decode_page(page)


@pytest.mark.parametrize("form", ["<meta charset=%s>", "<META CHARSET = '%s'>"])
def test_forms_of_the_charset(form):
    page = form % "windows-1251" + RUSSIAN
    assert RUSSIAN in decode_page(page.encode("cp1251"))
    old = '<meta http-equiv="Content-Type" content="text/html; charset=windows-1251">' + RUSSIAN
    assert RUSSIAN in decode_page(old.encode("cp1251"))
