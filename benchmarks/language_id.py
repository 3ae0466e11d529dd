"""How often the language of a text is found, by language and length.

    python -m benchmarks.language_id [--data ../shared/data] [--texts 300]
        [--output benchmarks/results/cleaning/language-id.json]

Texts are of XNLI's development sets, whose premises are joined to texts of a length, and passages
of novels. The probability that the step `language` asks for is judged by two shares of the texts:
those whose language is found with it, and those of which another one is. What is read of a long
text is judged on passages of novels after a beginning in another language.

How fast it is, benchmarks/cleaning_steps.py measures.
"""

import argparse
import gzip
import json
import random
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import measure
from stillhouse.data import language
from stillhouse.data.language import identify, sample_of
from stillhouse.data.language_identifier import FastIdentifier

RESULTS = Path(__file__).parent / "results" / "cleaning" / "language-id.json"
XNLI = ("ar", "de", "en", "es", "fr", "ur", "zh")
BOOKS = ("de", "en", "fr")
LENGTHS = (20, 50, 100, 200, 500, 1000, 2000)  # characters
THRESHOLDS = (0.5, 0.65, 0.8, 0.9, 0.95, 0.99)
FOREIGN_STARTS = (500, 1000, 2000)  # characters of another language
LONG = 6000  # characters of a passage that follow them
Texts = Mapping[str, Sequence[str]]  # of each language


def premises(data: Path, code: str) -> list[str]:
    with gzip.open(data / "xnli" / f"dev-{code}.tsv.gz", "rt", encoding="utf-8") as rows:
        return list(dict.fromkeys(row.split("\t")[0].strip() for row in rows))


def joined(sentences: Sequence[str], length: int, number: int) -> list[str]:
    """Texts of `length` characters of sentences that follow each other, each used once."""
    found, held = [], ""
    for sentence in sentences:
        held = f"{held} {sentence}".strip()
        if len(held) >= length:
            found.append(held[:length])
            held = ""
    return found[:number]


def novels(data: Path, code: str) -> list[str]:
    with gzip.open(data / "books" / f"{code}.jsonl.gz", "rt", encoding="utf-8") as rows:
        return [json.loads(row)["text"] for row in rows]


def passages(books: Sequence[str], length: int, number: int, seed: int) -> list[str]:
    """Texts of `length` characters from random places, of each book as many."""
    draw = random.Random(seed)
    found = []
    for place in range(number):
        book = books[place % len(books)]
        start = draw.randrange(max(1, len(book) - length))
        found.append(" ".join(book[start : start + 2 * length].split())[:length])
    return found


def judged(texts: Texts) -> dict[str, Any]:
    """Of each language the share that is found; of each threshold the shares whose language, and
    of which another one, is found with it: over all languages, each with the same weight."""
    answers = {code: [identify(text) for text in own] for code, own in texts.items()}
    accuracy = {
        code: statistics.mean(found == code for found, _ in own) for code, own in answers.items()
    }
    thresholds = {}
    for least in THRESHOLDS:
        kept = {
            code: statistics.mean(found == code and p >= least for found, p in own)
            for code, own in answers.items()
        }
        wrong = {
            code: statistics.mean(found != code and p >= least for found, p in own)
            for code, own in answers.items()
        }
        thresholds[str(least)] = {
            "kept": statistics.mean(kept.values()),
            "kept_least": min(kept.values()),
            "wrong": statistics.mean(wrong.values()),
        }
    return {
        "texts": {code: len(own) for code, own in texts.items()},
        "accuracy": accuracy,
        "thresholds": thresholds,
    }


def starts_of_another(books: Texts, length: int, number: int) -> list[tuple[str, str]]:
    """Passages with their language, after `length` characters of a novel in another one."""
    codes = sorted(books)
    found = []
    for place, code in enumerate(codes):
        other = books[codes[(place + 1) % len(codes)]]
        starts, own = passages(other, length, number, 1), passages(books[code], LONG, number, 2)
        found += [(code, f"{start} {text}") for start, text in zip(starts, own, strict=True)]
    return found


def ways_to_read() -> dict[str, Callable[[str], str]]:
    """What may be read of a long text."""
    size = language.PARTS * language.PART_CHARACTERS
    return {
        "all of it": lambda text: text,
        f"first {size:,} characters": lambda text: text[:size],
        f"{language.PARTS} parts of {language.PART_CHARACTERS}": sample_of,
    }


def reading(books: Texts, number: int) -> dict[str, Any]:
    """The share that is found by each way, by characters of another language at the start."""
    identifier = FastIdentifier.load()
    found: dict[str, Any] = {}
    for name, part in ways_to_read().items():
        found[name] = {}
        for length in (0, *FOREIGN_STARTS):
            texts = starts_of_another(books, length, number)
            right = [identifier.classify(part(text))[0] == code for code, text in texts]
            found[name][str(length)] = statistics.mean(right)
    return found


def measured(data: Path, number: int) -> dict[str, Any]:
    sentences = {code: premises(data, code) for code in XNLI}
    books = {code: novels(data, code) for code in BOOKS}
    return {
        "xnli": {
            str(length): judged(
                {code: joined(own, length, number) for code, own in sentences.items()}
            )
            for length in LENGTHS
        },
        "novels": {
            str(length): judged(
                {code: passages(own, length, number, length) for code, own in books.items()}
            )
            for length in LENGTHS
        },
        "reading": reading(books, number),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.language_id", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--texts", type=int, default=300, help="of each language and length")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    result = measured(options.data, options.texts)
    command = " ".join(["python -m benchmarks.language_id", *sys.argv[1:]])
    measure.write_result(options.output, {"command": command, **measure.environment(), **result})


if __name__ == "__main__":
    main()
