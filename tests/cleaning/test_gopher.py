"""Rules of Gopher: each on both sides of its limit, and repetition by an independent count."""

import itertools
import random
import re
import sysconfig
from collections import Counter
from importlib import import_module
from pathlib import Path

import pytest

from stillhouse.cleaning.step import Page
from stillhouse.cleaning.steps.gopher import (
    LARGEST_REPEATED_RUNS,
    LARGEST_TOP_RUN,
    GopherRecipe,
    make,
)

EVERY_LANGUAGE = GopherRecipe(stop_words=False)


def reason_of(text: str, settings: GopherRecipe = EVERY_LANGUAGE) -> str | None:
    return make(settings)(Page("1", text))


def words(number: int, length: int = 5) -> list[str]:
    """Words of some letters, no two of which are the same."""
    letters = itertools.product("abcdefgh", repeat=min(length, 5))
    return ["".join(each).rjust(length, "z") for each in itertools.islice(letters, number)]


def text_of(number: int, length: int = 5) -> str:
    return " ".join(words(number, length))


def marked(number: int, marks: int, mark: str) -> str:
    """A text with a mark after each of its first words."""
    own = words(number)
    return " ".join([*(f"{word}{mark}" for word in own[:marks]), *own[marks:]])


def sixes(number: int) -> list[str]:
    """Lines of six words."""
    own = words(6 * number)
    return [" ".join(own[start : start + 6]) for start in range(0, 6 * number, 6)]


def lines(number: int, marks: int, form: str) -> str:
    """Lines, the first ones in another form."""
    own = sixes(number)
    return "\n".join([*(form.format(line) for line in own[:marks]), *own[marks:]])


def parts(repeated: int, distinct: int, gap: str) -> str:
    """Lines, and between the first of them one word again and again."""
    own = sixes(distinct)
    found = [part for line in own[: repeated + 1] for part in (line, "xyz")]
    return gap.join([*found, *own[repeated + 1 :]])


def long_part(length: int, gap: str) -> str:
    """Fifty words of three letters, and twice a part that is one word of `length` letters."""
    own = words(50, 3)
    return gap.join(["x" * length, " ".join(own[:25]), "x" * length, " ".join(own[25:])])


LIMITS = {
    "under 50 words": (text_of(50), text_of(49)),
    "mean word length under 3": (text_of(60, 3), text_of(59, 3) + " hi"),
    "mean word length over 10": (text_of(60, 10), text_of(59, 10) + " " + "y" * 11),
    "hash signs over 0.1 of the words": (marked(60, 6, "#"), marked(60, 7, "#")),
    "ellipses over 0.1 of the words": (marked(60, 6, "..."), marked(60, 7, "…")),
    "lines with a bullet over 0.9": (lines(10, 9, "-{}"), lines(10, 10, " • {}")),
    "lines that end with an ellipsis over 0.3": (lines(10, 3, "{}..."), lines(10, 4, "{}… ")),
    "words with a letter under 0.8": (
        " ".join([*words(80), *map(str, range(1000, 1020))]),
        " ".join([*words(79), *map(str, range(1000, 1021))]),
    ),
    "repeated lines over 0.3": (parts(6, 13, "\n"), parts(7, 12, "\n")),
    "repeated paragraphs over 0.3": (parts(6, 13, "\n\n"), parts(7, 12, "\n\n\n")),
    "characters of repeated lines over 0.2": (long_part(66, "\n"), long_part(69, "\n")),
    "characters of repeated paragraphs over 0.2": (long_part(66, "\n\n"), long_part(70, "\n\n")),
}


@pytest.mark.parametrize("reason", LIMITS)
def test_a_text_on_each_side_of_a_limit(reason):
    kept, left_out = LIMITS[reason]
    assert reason_of(kept) is None
    assert reason_of(left_out) == reason


@pytest.mark.parametrize("length", LARGEST_TOP_RUN)
def test_the_most_frequent_run(length):
    """Six times the same words between others: 6 n of the characters."""
    most = LARGEST_TOP_RUN[length]
    run = ["xvxvx", "xvvvx", "xxxvv", "vvxxv"][:length]
    for number, is_kept in ((int(6 * length / most - 6 * length), True), (None, False)):
        others = words(number or int(6 * length / most - 6 * length) - 1)
        text = " ".join([*(word for other in others[:6] for word in (*run, other)), *others[6:]])
        expected = None if is_kept else f"most frequent run of {length} words over {most}"
        assert reason_of(text) == expected


@pytest.mark.parametrize("length", LARGEST_REPEATED_RUNS)
def test_repeated_runs(length):
    """Two runs, each twice: half of their characters repeat something earlier."""
    most = LARGEST_REPEATED_RUNS[length]
    first, second = words(length, 7), [f"y{word}" for word in words(length, 6)]
    enough = -(-2 * length // most) - 4 * length  # other words, with which the share is the limit
    for number, is_kept in ((int(enough) + 1, True), (int(enough) - 1, False)):
        others = [f"x{word}" for word in words(number, 6)]
        text = " ".join(
            [*first, *others[:1], *second, *others[1:2], *first, *others[2:3], *second, *others[3:]]
        )
        expected = None if is_kept else f"repeated runs of {length} words over {most}"
        assert reason_of(text) == expected


def test_most_words_and_stop_words():
    assert reason_of(text_of(60), GopherRecipe(stop_words=False, max_words=60)) is None
    assert reason_of(text_of(61), GopherRecipe(stop_words=False, max_words=60)) == "over 60 words"
    few = "fewer than 2 stop words"
    assert reason_of(f"The {text_of(60)}", GopherRecipe()) == few
    assert reason_of(f"The the {text_of(60)}", GopherRecipe()) == few
    assert reason_of(f"The {text_of(60)} of", GopherRecipe()) is None


def runs_by_hand(text: str) -> set[str]:
    """The rules of repeated runs as the paper has them, by sets of characters' places."""
    own = [(found.start(), found.end()) for found in re.finditer(r"\w+", text.lower())]
    found_words = [text.lower()[start:end] for start, end in own]
    size = sum(map(len, found_words))
    reasons = set()
    for length, most in LARGEST_TOP_RUN.items():
        counts = Counter(zip(*(found_words[k:] for k in range(length)), strict=False))
        top = max(counts.values(), default=0)
        characters = [top * sum(map(len, run)) for run, count in counts.items() if count == top]
        if top > 1 and max(characters) > most * size:
            reasons.add(f"most frequent run of {length} words over {most}")
    for length, most in LARGEST_REPEATED_RUNS.items():
        seen, repeated = set(), set()
        for start in range(len(found_words) - length + 1):
            run = tuple(found_words[start : start + length])
            if run in seen:
                repeated.update(range(start, start + length))
            seen.add(run)
        if sum(len(found_words[place]) for place in repeated) > most * size:
            reasons.add(f"repeated runs of {length} words over {most}")
    return reasons


def test_repetition_of_real_text_by_an_independent_count():
    """Modules of this Python's standard library, many of which repeat themselves."""
    from stillhouse.cleaning.steps.gopher import _repeated_runs, words_of

    folder = Path(sysconfig.get_path("stdlib"))
    paths = [*sorted((folder / "encodings").glob("*.py"))[:40], *sorted(folder.glob("[a-d]*.py"))]
    found_any = set()
    for path in paths:
        text = path.read_text(encoding="utf-8", errors="replace")[:6000]
        expected = runs_by_hand(text)
        assert set(_repeated_runs(words_of(text))) == expected, path
        found_any |= expected
    assert len(found_any) >= 6  # rules that some of them break


@pytest.fixture
def datatrove_filters(monkeypatch):
    """datatrove's filters; its tokenizers of words need models that are not installed."""
    quality = import_module("datatrove.pipeline.filters.gopher_quality_filter")
    repetition = import_module("datatrove.pipeline.filters.gopher_repetition_filter")
    for module in (quality, repetition):
        monkeypatch.setattr(module, "split_into_words", lambda text, language: text.split())
    return quality.GopherQualityFilter(min_stop_words=None), repetition.GopherRepetitionFilter()


def random_text(seed: int) -> str:
    """Lines of random words, of which some repeat, and some are numbers or have marks."""
    draw = random.Random(seed)
    vocabulary = words(draw.choice([10, 400, 400]), draw.choice([2, 5, 12]))
    marks = draw.choice([[""], [""] * 20 + ["#"], [""] * 3 + [" 12"]])
    own = [
        " ".join(draw.choice(vocabulary) + draw.choice(marks) for _ in range(draw.randint(1, 15)))
        for _ in range(draw.randint(3, 30))
    ]
    own += own[: draw.choice([0, 0, len(own) // 2])]
    start = draw.choice(["", "", "- "])
    return "\n".join(f"{start}{line}" for line in own)


def test_verdicts_agree_with_datatrove(datatrove_filters):
    """On texts without punctuation, of which words are the same; near a limit of repetition the
    shares differ, since datatrove's are of the text with its white space."""
    from datatrove.data import Document

    verdicts = Counter()
    for seed in range(200):
        text = random_text(seed)
        theirs = all(
            result is True or result[0] is True
            for each in datatrove_filters
            for result in [each.filter(Document(text=text, id="1"))]
        )
        verdicts[(reason_of(text) is None, theirs)] += 1
    agree = verdicts[(True, True)] + verdicts[(False, False)]
    assert agree >= 197, verdicts
    assert min(verdicts[(True, True)], verdicts[(False, False)]) >= 20, verdicts
