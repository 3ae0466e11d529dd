"""Rules of FineWeb, each on both sides of its limit."""

import random
from importlib import import_module

import pytest

from stillhouse.cleaning.step import Page
from stillhouse.cleaning.steps.fineweb import FinewebRecipe, make
from stillhouse.cleaning.words import tokens_of


def reason_of(text: str, settings: FinewebRecipe | None = None) -> str | None:
    return make(settings or FinewebRecipe())(Page("1", text))


def lines(number: int, end: str = ".", words: int = 8) -> list[str]:
    """Lines of different words, of at least 30 characters from six words on."""
    return [
        " ".join(f"word{10 * line + place:03d}" for place in range(words)) + end
        for line in range(number)
    ]


def test_lines_with_punctuation_at_their_end():
    for marked, reason in ((3, None), (2, "lines with punctuation under 0.12")):
        text = "\n".join([*lines(marked), *lines(25, "")[marked:]])
        assert reason_of(text) == reason


@pytest.mark.parametrize("end", [".", "!", "?", '"', "'", "\u201d", "\u2026", "。", "؟", "।"])
def test_marks_of_several_languages_end_a_line(end):
    assert reason_of("\n".join(lines(4, end))) is None


def test_short_lines():
    """Of fewer than 30 characters."""
    for number, reason in ((67, None), (68, "short lines over 0.67")):
        short = [f"{place:02d} words of a short line {'x' * 3}." for place in range(number)]
        assert {*map(len, short)} == {29}
        assert reason_of("\n".join([*short, *lines(100 - number)])) == reason
        longer = [f"x{line}" for line in short]
        assert reason_of("\n".join([*longer, *lines(100 - number)])) is None


def test_characters_of_repeated_lines():
    own = ["x" * 89 + " a b c d.", "y" * 889 + " a b c d."]
    kept, left_out = "\n".join([own[0], own[0], own[1]]), "\n".join([*[own[0]] * 3, own[1]])
    assert reason_of(kept) is None  # 98 of 1,094
    assert reason_of(left_out) == "characters of repeated lines over 0.1"
    strict = FinewebRecipe(max_repeated_characters=0.01)
    assert reason_of(kept, strict) == "characters of repeated lines over 0.01"


def test_line_ends_per_word():
    """Words and marks count; three of ten are kept."""
    own = [f"{'x' * 30}{place} and that" for place in range(3)]
    kept = "\n".join([*own, "x" * 40 + "."])  # 3 line ends, 10 words and a mark
    assert len(tokens_of(kept)) == 11
    assert reason_of(kept) is None
    left_out = "\n".join([*(line.removesuffix(" and that") + "." for line in own), "x" * 40])
    assert len(tokens_of(left_out)) == 7
    assert reason_of(left_out) == "lines per word over 0.3"


def test_a_text_without_lines():
    assert reason_of(" \n ") == "no text"


def test_verdicts_agree_with_datatrove(monkeypatch):
    """With the same words, at the paper's share of repeated characters; its lines are short at 30
    characters, too, so these texts have none of 30."""
    filters = import_module("datatrove.pipeline.filters.fineweb_quality_filter")
    from datatrove.data import Document

    monkeypatch.setattr(filters, "split_into_words", lambda text, language: tokens_of(text))
    theirs = filters.FineWebQualityFilter(char_duplicates_ratio=0.1)
    reasons = set()
    for seed in range(200):
        draw = random.Random(seed)
        number = draw.choice([1, 2, 9, 20])
        own = [
            " ".join(draw.choices(["ab", "cde", "fghi"], k=number)) + draw.choice(["", "x" * 40])
            for _ in range(draw.randint(1, 30))
        ]
        own = [line if len(line) != 29 else line + "x" for line in own]
        own += draw.choices(own, k=draw.choice([0, 0, 1, 3]))
        end = draw.choice(["", ".", "!"])
        text = "\n".join(line + (end if draw.random() < 0.3 else "") for line in own)
        if any(len(line) == 30 for line in text.split("\n")):
            continue
        is_kept = theirs.filter(Document(text=text, id="1")) is True
        reason = reason_of(text)
        assert (reason is None) == is_kept, text
        reasons.add(reason)
    assert len(reasons) == 5
