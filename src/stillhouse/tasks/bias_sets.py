"""Sentences of published bias sets, which differ in a group, an attribute or a pronoun.

- CrowS-Pairs (Nangia et al. 2020, arXiv:2010.00133): the more and the less stereotyping sentence.
- StereoSet, intrasentence (Nadeem et al. 2021, arXiv:2004.09456): the attribute of a stereotype, of
  its opposite, and an unrelated one.
- WinoBias (Zhao et al. 2018, arXiv:1804.06876): the pronoun of the gender that most people in the
  occupation have, and the other; one file for each, of the same lines.
- Winogender (Rudinger et al. 2018, arXiv:1804.09301): both pronouns where they refer to the
  occupation, with its share of women in the statistics beside the file.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stillhouse.data.rows import Row, name_of, read_json, read_rows
from stillhouse.data.text import read_lines
from stillhouse.errors import DataError

PRO, ANTI = "pro_stereotyped", "anti_stereotyped"  # in the names of WinoBias's files
STATISTICS = "occupations-stats.tsv"  # beside Winogender's sentences
SHARE_OF_WOMEN = "bls_pct_female"
MARKED = re.compile(r"\[([^\]]*)\]")
OPPOSITE = {
    "he": "she",
    "him": "her",
    "his": "her",
    "himself": "herself",
    "she": "he",
    "her": "him",
    "herself": "himself",
}
BLANK = "BLANK"
# Occupation, other person, whom the pronoun refers to, gender of the pronoun.
NAME = re.compile(r"([^.]+)\.([^.]+)\.([01])\.(male|female|neutral)(?:\.txt)?")
LABELS = ("stereotype", "anti-stereotype", "unrelated")

# The names of published files, by set; of WinoBias one for each type and split.
PUBLISHED: Mapping[str, str] = {
    "crows_pairs": "crows_pairs_anonymized.csv",
    "stereoset": "stereoset/dev.json",
    "winobias": f"{PRO}_type*.txt.*",
    "winogender": "all_sentences.tsv",
}


@dataclass(frozen=True)
class Sentence:
    """A sentence, and the characters of its attribute or pronoun, from one to before another; None
    where sentences differ in more than one place."""

    text: str
    span: tuple[int, int] | None = None


@dataclass(frozen=True)
class Comparison:
    """Sentences that are compared, that of the stereotype first, then its opposite.

    `group` is the kind of bias, `share_of_women` that of an occupation in percent, `is_male` the
    gender of the first sentence's pronoun; `where` names the row in errors.
    """

    sentences: tuple[Sentence, ...]
    group: str = ""
    share_of_women: float | None = None
    is_male: bool | None = None
    where: str = field(default="", compare=False)


def find_sets(folder: Path) -> list[tuple[str, Path]]:
    """The published files in a folder and its subfolders, each with its set.

    Raises:
        DataError: no such folder, or none of them is there.
    """
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}. Give one that has the sets' files.")
    found = [(name, path) for name, own in PUBLISHED.items() for path in sorted(folder.rglob(own))]
    if not found:
        raise DataError(
            f"{folder} has none of the published files {', '.join(PUBLISHED.values())}. Give "
            "another folder, or a single file as --task and --data."
        )
    return found


def companion(path: Path, format: str) -> Path | None:
    """The second file that a set is read from, which lies beside its first."""
    if format == "winobias":
        return path.with_name(path.name.replace(PRO, ANTI))
    return path.with_name(STATISTICS) if format == "winogender" else None


def read_crows_pairs(path: Path) -> list[Comparison]:
    """The pairs of a CSV file, with their `bias_type` where there is one."""
    return [
        Comparison(
            (Sentence(_filled(row, "sent_more")), Sentence(_filled(row, "sent_less"))),
            _group(row),
            where=row.where,
        )
        for row in read_rows(path, "sent_more")
    ]


def read_stereoset(path: Path) -> list[Comparison]:
    """The intrasentence part of StereoSet: its published file, or rows of it."""
    found = read_json(path) if path.suffix == ".json" else None
    if isinstance(found, Mapping):
        data = found.get("data")
        part = data.get("intrasentence") if isinstance(data, Mapping) else None
        if not isinstance(part, list) or not all(isinstance(each, Mapping) for each in part):
            raise DataError(
                f"{name_of(path)} has no data.intrasentence, where StereoSet has its sentences "
                f"with a {BLANK}. Give the published dev.json, or a table of its rows."
            )
        rows = [Row(f"{path} row {number}", each) for number, each in enumerate(part, 1)]
    else:
        rows = read_rows(path, "context")
    return [_of_stereoset(row) for row in rows]


def _of_stereoset(row: Row) -> Comparison:
    """The three sentences of a row: a list of them with a `gold_label` each, or, as on the hub,
    two lists, of which that of labels holds numbers."""
    given, texts = row.value("sentences"), {}
    if isinstance(given, Mapping):
        pairs = zip(given.get("sentence", ()), given.get("gold_label", ()), strict=False)
        order = (LABELS[1], LABELS[0], LABELS[2])
        texts = {order[label] if label in (0, 1, 2) else label: text for text, label in pairs}
    elif isinstance(given, list) and all(isinstance(each, Mapping) for each in given):
        texts = {each.get("gold_label"): each.get("sentence") for each in given}
    if not all(isinstance(texts.get(label), str) for label in LABELS):
        raise row.wrong("sentences", f"a sentence of each gold_label: {', '.join(LABELS)}")
    context = row.text("context")
    sentences = tuple(Sentence(texts[label], _attribute(texts[label], context)) for label in LABELS)
    if any(each.span is None for each in sentences):
        raise row.wrong("context", f"a {BLANK}, and the words around it in each sentence")
    return Comparison(sentences, _group(row), where=row.where)


def _attribute(sentence: str, context: str) -> tuple[int, int] | None:
    """The words in the place of the BLANK, without the punctuation around them."""
    before, blank, after = context.partition(BLANK)
    words = list(re.finditer(r"\S+", sentence))
    first, last = len(before.split()), len(words) - len(re.findall(r"(?<=\s)\S+", after))
    if not blank or first >= last:
        return None
    start, end = words[first].start(), words[last - 1].end()
    kept = re.search(r"\w(.*\w)?", sentence[start:end])
    return None if kept is None else (start + kept.start(), start + kept.end())


def read_winobias(path: Path) -> list[Comparison]:
    """The lines of a file of pro-stereotyped sentences, beside those of the other file."""
    other = companion(path, "winobias")
    if PRO not in path.name or other is None or not other.is_file():
        raise DataError(
            f"{path}: WinoBias is two files of the same lines. Give the one whose name has {PRO}, "
            f"with the one of the same name but {ANTI} beside it."
        )
    lines, others = ([*_lines(each)] for each in (path, other))
    if len(lines) != len(others):
        raise DataError(
            f"{path} has {len(lines):,} lines and {other.name} {len(others):,}; they must be the "
            "same but for the pronouns."
        )
    if not lines:
        raise DataError(f"{path} holds no sentences.")
    return [
        _of_winobias(where, line, opposite)
        for (where, line), (_, opposite) in zip(lines, others, strict=True)
    ]


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """The lines of a text file that are not blank, each after what errors call it."""
    for number, line in read_lines(path):
        if line.strip():
            yield f"{path} row {number}", line.strip()


def _of_winobias(where: str, line: str, opposite: str) -> Comparison:
    """A numbered line without its brackets, and the same with the other gender's pronoun.

    The published lines of some pairs differ in other words too, so `opposite` only tells whether
    `her` stands for `him` or for `his`.
    """
    text = re.sub(r"^\d+\s+", "", line)
    pronoun = next((each for each in MARKED.finditer(text) if each[1] in OPPOSITE), None)
    if pronoun is None:
        raise DataError(
            f"{where}: {text!r:.60} has no pronoun in brackets, such as [she]. Give the file as "
            "published."
        )
    before, after = (
        MARKED.sub(r"\1", each) for each in (text[: pronoun.start()], text[pronoun.end() :])
    )
    swapped = "his" if pronoun[1] == "her" and "[his]" in opposite else OPPOSITE[pronoun[1]]
    sentences = tuple(
        Sentence(before + word + after, (len(before), len(before) + len(word)))
        for word in (pronoun[1], swapped)
    )
    return Comparison(sentences, where=where)


def read_winogender(path: Path) -> list[Comparison]:
    """The sentences whose pronoun refers to the occupation, with male and female pronouns."""
    shares = _shares_of_women(path)
    texts: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in read_rows(path, "sentence"):
        name = row.text("sentid").split(".")
        if (
            len(name) < 4
            or name[2] not in ("0", "1")
            or name[3] not in ("male", "female", "neutral")
        ):
            raise row.wrong("sentid", "a name such as technician.customer.0.male.txt")
        if name[2] == "0":
            texts.setdefault(tuple(name[:3]), {})[name[3]] = row
    return [_of_winogender(key[0], own, shares, path) for key, own in texts.items()]


def _of_winogender(
    occupation: str, rows: Mapping[str, Row], shares: Mapping[str, float], path: Path
) -> Comparison:
    any_row = next(iter(rows.values()))
    if occupation not in shares:
        raise DataError(
            f"{any_row.where}: {companion(path, 'winogender')} has no occupation {occupation!r}."
        )
    if missing := {"male", "female"} - rows.keys():
        raise DataError(
            f"{any_row.where}: there is no {' or '.join(missing)} form of the sentence."
        )
    male, female = (rows[gender].text("sentence") for gender in ("male", "female"))
    spans = _differing_word(male, female)
    if spans is None:
        raise DataError(
            f"{rows['female'].where}: {female!r:.60} differs from the male form in more than the "
            "pronoun. Give the file as published."
        )
    is_male = shares[occupation] < 50
    both = (Sentence(male, spans[0]), Sentence(female, spans[1]))
    return Comparison(
        both if is_male else both[::-1],
        share_of_women=shares[occupation],
        is_male=is_male,
        where=any_row.where,
    )


def _shares_of_women(path: Path) -> dict[str, float]:
    statistics = companion(path, "winogender")
    assert statistics is not None
    if not statistics.is_file():
        raise DataError(
            f"{path}: Winogender's scores need the shares of women in {STATISTICS}, a file of the "
            f"data set. Put it beside {path.name}."
        )
    rows = read_rows(statistics, "occupation")
    return {row.text("occupation"): row.number(SHARE_OF_WOMEN) for row in rows}


def _differing_word(one: str, other: str) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """The characters of the only word that differs between two sentences."""
    sides = [list(re.finditer(r"\w+", text)) for text in (one, other)]
    if len(sides[0]) != len(sides[1]):
        return None
    differing = [pair for pair in zip(*sides, strict=True) if pair[0][0] != pair[1][0]]
    if len(differing) != 1:
        return None
    first, second = (each.span() for each in differing[0])
    return first, second


def _filled(row: Row, column: str) -> str:
    text = row.text(column).strip()
    if not text:
        raise row.wrong(column, "a sentence")
    return text


def _group(row: Row) -> str:
    return row.text("bias_type") if "bias_type" in row.fields else ""


READERS: Mapping[str, Callable[[Path], Sequence[Comparison]]] = {
    "crows_pairs": read_crows_pairs,
    "stereoset": read_stereoset,
    "winobias": read_winobias,
    "winogender": read_winogender,
}
