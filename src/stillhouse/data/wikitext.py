"""The prose of a wiki page: plain text of MediaWiki's markup.

Contract: paragraphs of running text, a blank line between them. Left out are headings, lists,
tables, templates, references, files, categories, formulas, code, galleries and comments. Of a link
its label is left, of bold and italic text the text. A few templates that stand in the middle of
sentences, such as numbers with units, give their text. Time is linear in the length of the page,
whatever its markup; markup that nothing closes is taken as text.

Source: https://www.mediawiki.org/wiki/Help:Formatting and Markup spec.
"""

import html
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

# Stands where something was taken out of a sentence, until the marks around it are mended. XML
# cannot hold it.
GAP = "\0"

# Elements whose content is not running text.
RAW = (
    "ce", "chem", "code-block", "gallery", "graph", "h1", "h2", "h3", "h4", "h5", "h6", "hiero",
    "imagemap", "indicator", "inputbox", "mapframe", "maplink", "math", "pre", "ref", "references",
    "score", "source", "syntaxhighlight", "templatedata", "templatestyles", "timeline",
)  # fmt: skip
RAW_OR_COMMENT = re.compile(rf"<!--|<(nowiki|{'|'.join(RAW)})(?=[\s/>])[^<>]*>", re.IGNORECASE)
BLOCKS = ("table", "ul", "ol", "dl")
PAIRED = re.compile(
    rf"\{{{{+|}}}}+|^[: \t]*\{{\||^[ \t]*\|}}(?!}})|<(/?)({'|'.join(BLOCKS)})(?=[\s/>])[^<>]*>",
    re.IGNORECASE | re.MULTILINE,
)
LINK = re.compile(r"\[\[([^\[\]]*(?:(?:\[(?!\[)|\](?!\]))[^\[\]]*)*)\]\]")
MAX_LINK_DEPTH = 8  # links in captions of files in captions of files
WEB_LINK = re.compile(r"\[(?:(?:https?|ftps?|irc|news):)?//[^\s\[\]]+\s*([^\[\]\n]*)\]")
FILE_NAME = re.compile(
    r"\.(?:jpe?g|png|gif|svg|tiff?|webp|xcf|pdf|djvu|og[gav]|opus|mid|flac|wav|mp3|webm|mp4|stl)$",
    re.IGNORECASE,
)
LANGUAGE = re.compile(r"[a-z]{2,3}(?:-[a-z]+)*")
HIDDEN_NAMESPACES = frozenset({"category", "file", "image", "media"})
LINE_TAG = re.compile(
    r"</?(?:blockquote|br|center|dd|div|dt|hr|li|p|poem|td|tr)(?=[\s/>])[^<>]*>", re.IGNORECASE
)
POWER = re.compile(r"<sup(?:\s[^<>]*)?>(?=\s*[-+\u2212]?\d)", re.IGNORECASE)
TAG = re.compile(r"</?[a-z][^<>]*>", re.IGNORECASE)
QUOTES = re.compile("'{2,}")
SWITCH = re.compile(r"__[^\W\d_]+__")  # such as __NOTOC__, in any language
SPACES = re.compile("  +")
GAPS = re.compile(rf"{GAP}(?: ?{GAP})+")
EMPTY_BRACKETS = re.compile(rf"\([\s,;:/{GAP}]*\)")
AROUND_GAPS = (
    (re.compile(rf"\((?:[ ,;:]{{0,4}}{GAP})+[ ,;:]*"), "("),
    (re.compile(rf"{GAP}[ ,;:{GAP}]{{0,9}}\)"), f"{GAP})"),
    (re.compile(rf"[,;:] ?{GAP}\)"), ")"),
    (re.compile(rf"([,;])(?: ?{GAP} ?[,;])+"), r"\1"),
    (re.compile(rf" ?{GAP} ?(?=[,.;:)])"), ""),
)
SENTENCE_END = re.compile(r"[.!?] ")
NOT_PROSE = ("*", "#", ":", ";", "|", "!", "{|", "----")


@dataclass(frozen=True)
class Wikitext:
    """Makes text of the pages of one wiki.

    Attributes:
        hidden: The names of the namespaces of files and categories, in lower case.
    """

    hidden: frozenset[str] = field(default=HIDDEN_NAMESPACES)

    def prose(self, source: str) -> str:
        """The prose of a page."""
        text = _without_raw(source.replace(GAP, ""))
        text = self._marked_up(text)
        text = SWITCH.sub("", QUOTES.sub(_without_quotes, text))
        text = _mended(html.unescape(text).replace("\xa0", " "))
        return "\n\n".join(_paragraphs(text))

    def _marked_up(self, text: str) -> str:
        text = _without_templates(text, 0)
        text = WEB_LINK.sub(lambda found: found[1] or GAP, text)
        for _ in range(MAX_LINK_DEPTH):
            text, number = LINK.subn(lambda found: self._label(found[1]), text)
            if not number:
                break
        text = POWER.sub("^", LINE_TAG.sub("\n", text))
        return TAG.sub("", text).replace("[[", "").replace("]]", "")

    def _label(self, link: str) -> str:
        """What the page shows of a link."""
        target, *labels = link.split("|")
        prefix, colon, rest = target.partition(":")
        prefix = prefix.strip()
        if colon and (prefix.lower() in self.hidden or FILE_NAME.search(target.strip())):
            return GAP
        if not labels:
            is_of_page = colon and rest and LANGUAGE.fullmatch(prefix)
            return GAP if is_of_page else target.strip().removeprefix(":").partition("#")[0]
        if labels[-1].strip():
            return "|".join(labels)
        # [[Target (a note)|]] is saved as [[Target (a note)|Target]].
        return (rest or target).partition("(")[0].strip()


def _without_raw(text: str) -> str:
    """Text without comments and elements whose content is no text; what is in <nowiki> is kept from
    being taken as markup."""
    parts: list[str] = []
    unclosed: set[str] = set()  # kinds of which no end follows
    place = 0
    while (found := RAW_OR_COMMENT.search(text, place)) is not None:
        parts.append(text[place : found.start()])
        place = found.end()
        name = (found[1] or "").lower()
        if name and found[0].endswith("/>"):
            parts.append(GAP if name != "nowiki" else "")
            continue
        end = None
        if name not in unclosed:
            closing = re.compile(rf"</{name}\s*>" if name else "-->", re.IGNORECASE)
            end = closing.search(text, place)
        if end is None:
            unclosed.add(name)
            if not name:  # a comment that nothing closes is one to the end
                place = len(text)
        elif name == "nowiki":
            parts.append(_escaped(text[place : end.start()]))
            place = end.end()
        else:
            parts.append(GAP if name else "")
            place = end.end()
    return "".join([*parts, text[place:]])


def _escaped(text: str) -> str:
    return re.sub(r"[^\w\s&;]", lambda found: f"&#{ord(found[0])};", text)


def _without_templates(text: str, depth: int) -> str:
    """Text without templates and tables, but for the text of `INLINE` templates."""
    parts: list[str] = []
    place = 0
    for start, end, is_template in _spans(text):
        parts.append(text[place:start])
        parts.append(_rendered(text[start:end], depth) if is_template else "\n")
        place = end
    return "".join([*parts, text[place:]]).replace("{{", "").replace("}}", "")


def _spans(text: str) -> list[tuple[int, int, bool]]:
    """The outermost templates and tables, as (start, end, whether it is a template); what is opened
    and not closed, or closed and not opened, is none."""
    stack: list[tuple[str, int]] = []  # what is open: its kind, and where it starts
    numbers: dict[str, int] = {}  # of what is open, by kind
    spans: list[tuple[int, int, bool]] = []
    for found in PAIRED.finditer(text):
        kind, is_opening, number = _kind(found)
        if is_opening:
            stack += [(kind, found.start())] * number
            numbers[kind] = numbers.get(kind, 0) + number
            continue
        for _ in range(min(number, numbers.get(kind, 0))):
            last, start = stack.pop()
            while last != kind:  # was never closed
                numbers[last] -= 1
                last, start = stack.pop()
            numbers[kind] -= 1
            while spans and spans[-1][0] >= start:
                spans.pop()
            spans.append((start, found.end(), kind == "{{"))
    return spans


def _kind(found: re.Match[str]) -> tuple[str, bool, int]:
    """The kind of a mark, whether it opens, and how many it stands for."""
    mark = found[0]
    if mark.startswith("{{"):
        return "{{", True, len(mark) // 2
    if mark.startswith("}}"):
        return "{{", False, len(mark) // 2
    if found[2]:
        is_empty = mark.endswith("/>")
        return found[2].lower(), not found[1], 0 if is_empty else 1
    return "{|", mark.endswith("{|"), 1


MAX_TEMPLATE_DEPTH = 5  # of templates in the arguments of those that give text


def _rendered(template: str, depth: int) -> str:
    """The text of a template in curly brackets."""
    name, *arguments = template[2:-2].split("|", 1)
    render = INLINE.get(name.strip().lower().replace("_", " "))
    if render is None and name.strip().lower().startswith("lang-"):
        render = _first
    if render is None or depth >= MAX_TEMPLATE_DEPTH:
        return GAP
    inner = _without_templates("".join(arguments), depth + 1)
    values = [value.strip() for value in _split(inner)]
    positional = [value.removeprefix("1=") for value in values if not NAMED.match(value)]
    return render(positional) or GAP


NAMED = re.compile(r"[^\W\d][\w -]*=")
LINKS_OR_BAR = re.compile(r"\[\[|\]\]|\|")


def _split(text: str) -> Iterator[str]:
    """The arguments of a template: parts between bars that are not in a link."""
    start = depth = 0
    for found in LINKS_OR_BAR.finditer(text):
        if found[0] == "|" and depth == 0:
            yield text[start : found.start()]
            start = found.end()
        else:
            depth = max(0, depth + {"[[": 1, "]]": -1, "|": 0}[found[0]])
    yield text[start:]


def _first(values: Sequence[str]) -> str:
    return values[0] if values else ""


def _last(values: Sequence[str]) -> str:
    return values[-1] if values else ""


def _quantity(values: Sequence[str]) -> str:
    """Of {{convert|5|km|mi}} "5 km", of {{convert|5|-|7|km}} "5-7 km"."""
    if len(values) > 3 and values[1] in RANGES:
        return f"{values[0]}{RANGES[values[1]]}{values[2]} {values[3]}"
    return " ".join(values[:2])


def _fraction(values: Sequence[str]) -> str:
    return "/".join(values[-2:]) if len(values) < 3 else f"{values[0]} {values[1]}/{values[2]}"


RANGES = {"-": "\u2013", "\u2013": "\u2013", "to": " to ", "and": " and ", "or": " or ", "by": " by ",
          "x": " x ", "to(-)": " to "}  # fmt: skip
INLINE: dict[str, Callable[[Sequence[str]], str]] = {
    **dict.fromkeys(("convert", "cvt"), _quantity),
    **dict.fromkeys(("frac", "sfrac", "fraction"), _fraction),
    **dict.fromkeys(("lang", "transl", "transliteration", "rtl-lang"), _last),
    **dict.fromkeys(
        ("abbr", "angbr", "big", "em", "ipa", "linktext", "midsize", "nihongo", "nobold", "nobr",
         "nowrap", "sc", "small", "smaller", "smallcaps", "strong", "val", "vanchor", "visible anchor"),
        _first,
    ),
    **dict.fromkeys(("blockquote", "cquote", "quote"), lambda values: f"\n\n{_first(values)}\n\n"),
    "as of": lambda values: f"as of {' '.join(values)}".strip(),
    **dict.fromkeys(("circa", "c."), lambda values: f"c. {_first(values)}"),
    **dict.fromkeys(("nbsp", "spaces", "space"), lambda values: " "),
    **dict.fromkeys(("ndash", "en dash"), lambda values: "\u2013"),
    **dict.fromkeys(("mdash", "em dash", "mdashb"), lambda values: "\u2014"),
    **dict.fromkeys(("snd", "spnd", "spaced ndash", "spaced en dash"), lambda values: " \u2013 "),
    "'": lambda values: "&#39;",  # which is no part of bold or italic marks
    "'s": lambda values: "&#39;s",
    "!": lambda values: "|",
    "=": lambda values: "=",
}  # fmt: skip


def _without_quotes(found: re.Match[str]) -> str:
    """Two apostrophes are italic, three bold, five both; others are apostrophes."""
    return "'" * {2: 0, 3: 0, 4: 1}.get(len(found[0]), len(found[0]) - 5)


def _mended(text: str) -> str:
    """Text without what gaps leave around them: empty brackets, spaces before commas."""
    if GAP not in text:
        return text
    text = GAPS.sub(GAP, SPACES.sub(" ", text.replace("\t", " ")))
    text = EMPTY_BRACKETS.sub(lambda found: GAP if GAP in found[0] else found[0], text)
    for pattern, replacement in AROUND_GAPS:
        text = pattern.sub(replacement, text)
    return text.replace(GAP, "")


def _paragraphs(text: str) -> list[str]:
    """Blocks of lines, without those that are no running text, and without a line such as "Novels:"
    before a list or a heading."""
    blocks: list[list[str]] = [[]]
    for line in text.split("\n"):
        spaced = " ".join(line.split())
        is_heading = spaced.startswith("=") and spaced.endswith("=")
        if not spaced:
            if blocks[-1]:
                blocks.append([])
        elif is_heading or spaced.startswith(NOT_PROSE):
            last = blocks[-1] or blocks[-2:][0]
            if last and last[-1].endswith(":") and not SENTENCE_END.search(last[-1]):
                last.pop()
        else:
            blocks[-1].append(spaced)
    return ["\n".join(block) for block in blocks if block]
