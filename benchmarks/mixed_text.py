"""Writes the text that a real teacher is distilled on: an encyclopedia, speeches and novels.

    python -m benchmarks.mixed_text runs/mixed.jsonl

WikiText-103's beginning and all speeches are taken whole, an article or a speech a document. Of the
novels, passages of about 6,000 characters are drawn from all books, from a fixed seed.
"""

import argparse
import gzip
import json
import random
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

DATA = Path("../shared/data")
PASSAGE_CHARACTERS = 6_000
NOVEL_CHARACTERS = 6_000_000
ARTICLE = re.compile(r"^ = [^=].* = $", re.MULTILINE)


def articles(path: Path) -> Iterator[str]:
    """The articles of a WikiText file, each with its title; the last, cut off, is left out."""
    text = path.read_text(encoding="utf-8")
    starts = [found.start() for found in ARTICLE.finditer(text)]
    for start, end in pairwise(starts):
        yield text[start:end].strip()


def speeches(path: Path) -> Iterator[str]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)["text"]


def passages(path: Path, characters: int) -> Iterator[str]:
    """Passages of whole paragraphs, about this many characters in all."""
    found = []
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            passage = ""
            for paragraph in json.loads(line)["text"].split("\n\n"):
                passage += " ".join(paragraph.split()) + "\n\n"
                if len(passage) > PASSAGE_CHARACTERS:
                    found.append(passage.strip())
                    passage = ""
    random.Random(0).shuffle(found)
    for passage in found:
        if characters <= 0:
            return
        characters -= len(passage)
        yield passage


def write(output: Path, *, data: Path = DATA, novels: int = NOVEL_CHARACTERS) -> None:
    """Write the mixture as JSON lines, with `novels` characters of novels."""
    sources = {
        "wikitext": articles(data / "wikitext/wikitext-103/wiki.train.prefix.tokens"),
        "speeches": speeches(data / "us_speeches.jsonl.gz"),
        "novels": passages(data / "books/en.jsonl.gz", novels),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("w", encoding="utf-8") as lines:
        for name, texts in sources.items():
            count = characters = 0
            for text in texts:
                lines.write(json.dumps({"id": f"{name}-{count}", "text": text}) + "\n")
                count, characters = count + 1, characters + len(text)
            print(f"{name}: {count:,} documents, {characters:,} characters")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.mixed_text", description="Writes a mixture of real texts."
    )
    parser.add_argument("output", type=Path, help="the JSON lines file to write")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--novels", type=int, default=NOVEL_CHARACTERS, help="characters of novels")
    options = parser.parse_args()
    write(options.output, data=options.data, novels=options.novels)


if __name__ == "__main__":
    main()
