"""Remove what is not the book from e-books: licences, credits and notes of transcribers, tables of
contents at the front, and advertisements at the back.

Written for books of Project Gutenberg and others in their form. Only the beginning and the end of a
document are looked at, and only what is clearly one of these is removed; a document without them
stays as it is.
"""

import re
from collections.abc import Iterable, Iterator, Sequence

from stillhouse.cleaning.step import Judge, Page, Step
from stillhouse.section import Section

MAX_LICENCE_CHARACTERS = 40_000  # before the first or after the last line of the book
MAX_FRONT_LINES = 2_000  # where a table of contents begins
MAX_NOTE_CHARACTERS = 20_000
NUM_EDGE_PARAGRAPHS = 40  # from the beginning and the end, where credits are

GUTENBERG = r"(?:the |this )?project gutenberg(?:'s|\u2019s)?"
START = re.compile(
    rf"^[ \t]*\*{{1,3}} ?start of {GUTENBERG}.*$|^.*\*end\*? ?the small print.*$",
    re.IGNORECASE | re.MULTILINE,
)
END = re.compile(
    rf"^[ \t]*\*{{0,3}} ?end of {GUTENBERG}\b.*$|^[ \t]*\*{{0,3}} ?start: full licen[cs]e.*$",
    re.IGNORECASE | re.MULTILINE,
)
BREAK = re.compile(r"\n(?:[ \t]*\n)+")  # between paragraphs
CREDIT = re.compile(
    r"[\[(_*\s]*(?:(?:this |the )?(?:e-?text|e-?book|(?:html|online) (?:version|edition)) (?:was |is )?"
    r"(?:prepared|produced|created|transcribed|typed|scanned|converted|edited)"
    r"|(?:produced|prepared|transcribed|scanned|digiti[sz]ed|proof-?read|typed|"
    r"scanned and proof-?(?:ed|read)) (?:by|from)\b)",
    re.IGNORECASE,
)
MAX_CREDIT_CHARACTERS = 1_000
ABOUT_GUTENBERG = re.compile(r"project gutenberg|gutenberg\.(?:org|net)\b", re.IGNORECASE)
NOTE = re.compile(r"[\[(_*=+|\s]*transcriber(?:'s|\u2019s|s'|s\u2019|s)? notes?\b", re.IGNORECASE)
NOTE_HEADING = re.compile(rf"{NOTE.pattern}[\s:.\])_*=+|]*", re.IGNORECASE)

CONTENTS = re.compile(
    r"[_*=\s]*(?:the |table of )?(?:contents|illustrations|list of illustrations|inhalt|"
    r"inhaltsverzeichni(?:s|\u00df)|inhalts-verzeichni(?:s|\u00df)|table des mati[e\u00e8]res|table|"
    r"sommaire)[_*=.:\s]*",
    re.IGNORECASE,
)
ROMAN = r"(?=[IVXLC])(?:XC|XL|L?X{0,3})(?:IX|IV|V?I{0,3})"
NUMBERED = re.compile(
    r"(?i:chapter|chap\.|book|part|volume|letter|act|scene|canto|kapitel|buch|teil|theil|band|"
    rf"chapitre|livre|partie|tome)\s+({ROMAN}|\d{{1,3}}|(?i:the )?[^\W\d_]+)\b[.:)\u2014\u2013-]*"
    rf"|({ROMAN}|\d{{1,3}})(?:[.:)\t\u2014\u2013]| {{2,}}|$)"
)
PART = re.compile(r"book|part|volume|buch|teil|theil|band|livre|partie|tome", re.IGNORECASE)
PAGE_NUMBER = re.compile(r"(?:\s*\.){2,}\s*\w*\s*$|\s{2,}(?:\d{1,4}|[ivxlc]+)\s*$", re.IGNORECASE)
MAX_ENTRY_CHARACTERS = 120
MIN_ENTRIES = 3
MAX_BLANK_LINES = 4  # between entries

THE_END = re.compile(r"[_*=\s]*(?:the end|finis|ende|fin)[_*=.!\s]*", re.IGNORECASE)
ADVERTISEMENTS = re.compile(
    r"[_*=\s]*(?:(?:other )?(?:books|works|novels|stories|volumes)?\s?by the same author|"
    r"advertisements?|(?:a )?(?:select(?:ed|ion)? |complete )?(?:list|catalogue) of (?:new )?"
    r"(?:books|works|publications|novels)|(?:new|popular) (?:books|novels|publications)|"
    r"du m[e\u00ea]me auteur|vom (?:gleichen|selben) verfasser)\b.{0,60}",
    re.IGNORECASE,
)
# Sizes and bindings of books, prices, and whom to order from.
SALE = re.compile(
    r"\b(?:crown|demy|post|royal|large|small) 8vo\b|\b(?:8vo|12mo|16mo)\b|\bcloth\b|\bpaper covers?\b|"
    r"\bpostage\b|\bpost[- ]?(?:free|paid)\b|\bnet\b|\bper volume\b|\d\s?s\.|\$\s?\d|\bprix\b|"
    r"\bbrosch\.|\bgeh\.|\bgeb\.|\bM(?:k|ark)\.? \d",
    re.IGNORECASE,
)
MIN_SALES = 5
MAX_CHARACTERS_PER_SALE = 400
MAX_ADVERTISEMENT_SHARE = 0.15  # of the book
MAX_ADVERTISEMENT_CHARACTERS = 100_000


class BooksRecipe(Section):
    """Removal of what is not the book from e-books."""


def make(settings: BooksRecipe) -> Judge:
    def judge(page: Page) -> str | None:
        text = body_of(page.text)
        if text != page.text:
            page.text = text.strip("\n")
        return None if page.text.strip() else "nothing but front and back matter"

    return judge


def body_of(text: str) -> str:
    """A book without front and back matter."""
    for remove in (_without_licence, _without_notes, _without_contents, _without_advertisements):
        text = remove(text)
    return text


def _without_licence(text: str) -> str:
    starts = [found.end() for found in START.finditer(text, 0, MAX_LICENCE_CHARACTERS)]
    start = starts[-1] if starts else 0
    ends = (found.start() for found in END.finditer(text, start))
    end = next((end for end in ends if len(text) - end <= MAX_LICENCE_CHARACTERS), len(text))
    return text[start:end]


def _without_notes(text: str) -> str:
    """Text without credits and notes of transcribers in its first and last paragraphs."""
    spans = list(_paragraphs(text))
    edges = {*range(NUM_EDGE_PARAGRAPHS), *range(len(spans) - NUM_EDGE_PARAGRAPHS, len(spans))}
    removed: list[tuple[int, int]] = []
    for number, (start, end) in enumerate(spans):
        if number not in edges:
            continue
        part = text[start:end]
        if NOTE_HEADING.fullmatch(part):
            is_last = len(text) - start < min(MAX_NOTE_CHARACTERS, len(text) // 2)
            if is_last:
                removed.append((start, len(text)))
                break
            following = spans[number + 1][1] if number + 1 < len(spans) else end
            removed.append((start, following))
        elif _is_note(part):
            removed.append((start, end))
    return _without(text, removed)


def _is_note(part: str) -> bool:
    if NOTE.match(part):
        return len(part) < MAX_NOTE_CHARACTERS
    is_credit = CREDIT.match(part) or ABOUT_GUTENBERG.search(part)
    return bool(is_credit) and len(part) < MAX_CREDIT_CHARACTERS


def _paragraphs(text: str) -> Iterator[tuple[int, int]]:
    """Where the paragraphs of a text are."""
    start = 0
    for found in BREAK.finditer(text):
        if found.start() > start:
            yield start, found.start()
        start = found.end()
    if text[start:].strip():
        yield start, len(text)


def _without(text: str, spans: Iterable[tuple[int, int]]) -> str:
    parts: list[str] = []
    place = 0
    for start, end in spans:
        parts.append(text[place:start])
        place = max(place, end)
    return "".join([*parts, text[place:]])


def _without_contents(text: str) -> str:
    """Text without tables of contents in its first lines."""
    lines = text.split("\n")
    headings: dict[str, int] | None = None
    for number in reversed(range(min(len(lines), MAX_FRONT_LINES))):
        if CONTENTS.fullmatch(lines[number]):
            headings = headings or _headings(lines)
            del lines[number : _end_of_contents(lines, number, headings)]
    return "\n".join(lines)


def _headings(lines: Sequence[str]) -> dict[str, int]:
    """The last of the lines between blank lines that have a title, by that title."""
    blank = [not line.strip() for line in lines]
    return {
        title: number
        for number, line in enumerate(lines)
        if len(line) <= MAX_ENTRY_CHARACTERS
        and blank[max(0, number - 1)]
        and (number + 1 == len(lines) or blank[number + 1])
        and (title := _title_of(line))
    }


def _title_of(line: str) -> str:
    """The words of a heading or an entry, without its number and page; "" for one of no words."""
    bare = NUMBERED.sub("", PAGE_NUMBER.sub("", line).strip(), count=1)
    return " ".join(re.findall(r"[^\W\d_]+", bare.casefold()))


def _end_of_contents(lines: Sequence[str], heading: int, headings: dict[str, int]) -> int:
    """The line after the last entry of a table of contents; `heading` where there is no table.

    An entry has a number, a page, or the title of a later heading. A number that was there before
    is that of the first chapter.
    """
    end, num_entries, num_blank = heading, 0, 0
    numbers: set[str] = set()
    for number in range(heading + 1, len(lines)):
        line = lines[number]
        if not line.strip():
            num_blank += 1
            continue
        is_entry, label = _is_entry(line, number, headings), _number_of(line)
        is_over = num_entries >= MIN_ENTRIES and num_blank >= MAX_BLANK_LINES
        if is_over or (num_entries >= MIN_ENTRIES and label in numbers):
            break
        if not is_entry and not (num_entries and not num_blank and line.startswith("  ")):
            break  # a line that goes on with an entry is indented
        num_entries += is_entry
        end, num_blank = number + 1, 0
        if label:
            numbers.add(label)
    return end if num_entries >= MIN_ENTRIES else heading


def _is_entry(line: str, number: int, headings: dict[str, int]) -> bool:
    if len(line) > MAX_ENTRY_CHARACTERS:
        return False
    has_mark = NUMBERED.match(line.strip()) or PAGE_NUMBER.search(line)
    return bool(has_mark) or headings.get(_title_of(line), -1) > number


def _number_of(line: str) -> str:
    """The number of a chapter, or of a part with that word; "" where the line has none."""
    found = NUMBERED.match(line.strip())
    if found is None:
        return ""
    is_part = PART.match(found[0])
    return (found[0] if is_part else found[1] or found[2]).casefold()


def _without_advertisements(text: str) -> str:
    """Text without advertisements after its end."""
    first = len(text) - min(int(len(text) * MAX_ADVERTISEMENT_SHARE), MAX_ADVERTISEMENT_CHARACTERS)
    place = text.find("\n", first) + 1
    while place:
        end = text.find("\n", place)
        line = text[place : end if end >= 0 else len(text)]
        is_end = THE_END.fullmatch(line) is not None
        if (is_end or ADVERTISEMENTS.fullmatch(line)) and _sells(text[place:]):
            return text[: place + len(line)] if is_end else text[:place].rstrip() + "\n"
        place = end + 1
    return text


def _sells(text: str) -> bool:
    number = sum(1 for _ in SALE.finditer(text))
    return number >= MIN_SALES and number * MAX_CHARACTERS_PER_SALE >= len(text)


STEP = Step(BooksRecipe, make)
