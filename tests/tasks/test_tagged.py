"""Tagged sentences: CoNLL's columns as they are found, and the schemes of tags."""

import contextlib
import re
import string

import pytest

from stillhouse.errors import DataError
from stillhouse.tasks.settings import TokenClassificationTask
from stillhouse.tasks.tagged import as_iob2, as_scheme, read_tagged, scheme_of

COLUMNS = TokenClassificationTask()


def write(tmp_path, text):
    path = tmp_path / "ner.conll"
    path.write_text(text, encoding="utf-8")
    return path


def test_sentences_end_at_blank_lines(tmp_path):
    """Any number of them, with any white space; the last sentence needs none."""
    path = write(tmp_path, "-DOCSTART- O\n\nIn O\nBern B-LOC\n \n\t\nAnn B-PER\nLee I-PER\n")
    first, second = read_tagged(path, COLUMNS)
    assert (first.tokens, first.tags) == (("In", "Bern"), ("O", "B-LOC"))
    assert (second.tokens, second.tags) == (("Ann", "Lee"), ("B-PER", "I-PER"))
    assert second.where == f"{path} row 7"


def test_columns_and_prefixes_can_be_named(tmp_path):
    """GermEval's files number their tokens and have comments; WikiANN's name the language."""
    text = "#\thttp://a\t[2010]\t\n1\tDer\tO\tO\n2\tRhein\tB-LOC\tO\n"
    (sentence,) = read_tagged(
        write(tmp_path, text), TokenClassificationTask(token_column=1, tag_column=2)
    )
    assert (sentence.tokens, sentence.tags) == (("Der", "Rhein"), ("O", "B-LOC"))
    (sentence,) = read_tagged(
        write(tmp_path, "en:Rhine\tB-LOC\n"), TokenClassificationTask(prefix="en:")
    )
    assert sentence.tokens == ("Rhine",)


def test_iob1_is_read_as_iob2():
    """A span begins with B-, also after one of another kind."""
    old = ["I-PER", "I-PER", "I-LOC", "B-LOC", "O", "I-ORG"]
    assert list(as_iob2(old)) == ["B-PER", "I-PER", "B-LOC", "B-LOC", "O", "B-ORG"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no sentence"),
        ("\n\n", "holds no sentence"),
        ("In O\nBern\n", "row 2: 'Bern' is no token with a tag"),
        ("In O\nBern LOC\n", "row 2: 'Bern LOC' is no token with a tag"),
        ("In O\nBern B-\n", "row 2: 'Bern B-' is no token with a tag"),
        ("In O\n\tO\n", "row 2"),
    ],
)
def test_a_broken_line_is_refused_with_its_row(tmp_path, text, message):
    """One message with the file."""
    path = write(tmp_path, text)
    with pytest.raises(DataError, match=message) as error:
        read_tagged(path, COLUMNS)
    assert str(error.value).startswith(str(path))


def test_too_few_columns_are_refused_with_the_row(tmp_path):
    """The message has the columns that were requested."""
    with pytest.raises(
        DataError, match="row 1 has 2 columns, too few for a token in 1 and a tag in 2"
    ):
        read_tagged(
            write(tmp_path, "In O\n"), TokenClassificationTask(token_column=1, tag_column=2)
        )


@pytest.mark.parametrize(
    "tags",
    [
        ["B-PER", "E-PER", "S-LOC", "S-LOC", "O", "B-ORG", "I-ORG", "E-ORG"],
        ["B-PER", "L-PER", "U-LOC", "U-LOC", "O", "B-ORG", "I-ORG", "L-ORG"],
    ],
)
def test_schemes_that_mark_ends_are_read(tmp_path, tags):
    """IOBES and BILOU; adjacent spans of one kind stay separate."""
    path = write(tmp_path, "".join(f"w {tag}\n" for tag in tags))
    (sentence,) = read_tagged(path, COLUMNS)
    assert sentence.tags == (
        "B-PER", "I-PER", "B-LOC", "B-LOC", "O", "B-ORG", "I-ORG", "I-ORG",
    )  # fmt: skip
    assert scheme_of(tags) == ("IOBES" if "E-PER" in tags else "BILOU")


def test_tags_that_are_numbers_have_names(tmp_path):
    """In lists and in columns; without names, and past them, they are refused."""
    names = ["O", "B-PER", "I-PER"]
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"tokens": ["Ann", "Lee", "sat"], "ner_tags": [1, 2, 0]}\n')
    (sentence,) = read_tagged(rows, COLUMNS, names)
    assert sentence.tags == ("B-PER", "I-PER", "O")
    (sentence,) = read_tagged(write(tmp_path, "Ann 1\nsat 0\n"), COLUMNS, names)
    assert sentence.tags == ("B-PER", "O")
    with pytest.raises(DataError, match=r"row 1: the tags are numbers, .* Name them in `labels`"):
        read_tagged(rows, COLUMNS)
    with pytest.raises(DataError, match=r"row 1: the tag 2 is not one of the 2 of `labels`"):
        read_tagged(rows, COLUMNS, names[:2])


def test_invalid_tag_message_lists_all_prefixes(tmp_path):
    """Each letter that the message lists is a tag; no other is."""
    path = tmp_path / "train.txt"
    path.write_text("London LOC\n")
    with pytest.raises(DataError, match="O, or one of") as raised:
        read_tagged(path, COLUMNS)
    listed = set(re.findall(r"\b([A-Z])-(?=[, ])", str(raised.value)))
    read = set()
    for letter in string.ascii_uppercase:
        path.write_text(f"London {letter}-LOC\n")
        with contextlib.suppress(DataError):
            read_tagged(path, COLUMNS)
            read.add(letter)
    assert listed == read == set("BIESLU")


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("#\tO\nRhine\tB-LOC\n", [("#", "Rhine")]),  # WNUT-17
        ("Rhine\tB-LOC\n#\tO\nx\tO\n", [("Rhine", "#", "x")]),
        ("# O\nRhine B-LOC\n", [("#", "Rhine")]),
        ("# id 3f0c domain=en\nRhine _ _ B-LOC\n", [("Rhine",)]),  # MultiCoNER
        ("# text = The Rhine is O\nRhine B-LOC\nis O\n", [("Rhine", "is")]),
        ("# only a comment\n\nRhine B-LOC\n", [("Rhine",)]),
        ("the\u00a0Rhine B-LOC\n\u3000 O\n", [("the\u00a0Rhine", "\u3000")]),
        ("Rhine B-LOC\t\nis  O \n", [("Rhine", "is")]),
    ],
)
def test_hash_is_a_token_and_comments_are_skipped(tmp_path, text, tokens):
    """By the columns of the lines after it; and only tabs and spaces part columns."""
    assert [sentence.tokens for sentence in read_tagged(write(tmp_path, text), COLUMNS)] == tokens


def test_word_number_column_is_refused(tmp_path):
    """As in files of CoNLL-U and GermEval; the message names the setting."""
    path = write(tmp_path, "1\tDer\tO\n2\tRhein\tB-LOC\n\n1\tJa\tO\n")
    with pytest.raises(DataError, match=r"column 0 .* numbers the words. Set token_column to 1"):
        read_tagged(path, COLUMNS)
    first, _ = read_tagged(path, TokenClassificationTask(token_column=1))
    assert first.tokens == ("Der", "Rhein")


def test_labels_without_a_tag_scheme():
    """LABEL_0 is no last token of a span, and EVENT no end."""
    assert scheme_of(["LABEL_0", "LABEL_1"]) == "IOB2"
    assert scheme_of(["O", "EVENT"]) == "IOB2"
    assert scheme_of(["O", "B-PER", "L-PER"]) == "BILOU"


@pytest.mark.parametrize("scheme", ["IOB2", "IO", "IOBES", "BILOU"])
def test_a_text_without_words_has_no_tags(scheme):
    assert as_scheme([], scheme) == []
