"""Writes sentences of books and of SQuAD's contexts and questions, in random order.

    python -m benchmarks.sentence_file data/sentences.jsonl

The training data of `minilm-3layer-embeddings`: no text of STS-B, and no labels of any kind.
Sentences are unique; those of a few letters, or longer than a model's maximum, are excluded.
"""

import argparse
import gzip
import json
import random
from collections.abc import Iterator
from pathlib import Path

from benchmarks.sentences import SENTENCE_END, SHARED, TEXT

SQUAD = SHARED / "squad" / "train-v1.1.json.gz"
SHORTEST, LONGEST = 20, 160  # characters of a sentence
SEED = 0


def book_sentences(path: Path) -> Iterator[str]:
    """Sentences of a JSON lines file of texts, paragraph by paragraph."""
    with gzip.open(path, "rt", encoding="utf-8") as books:
        for line in books:
            for paragraph in json.loads(line)["text"].split("\n\n"):
                yield from SENTENCE_END.split(" ".join(paragraph.split()))


def squad_sentences(path: Path) -> Iterator[str]:
    """Sentences of SQuAD's contexts, and its questions."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for article in json.load(file)["data"]:
            for passage in article["paragraphs"]:
                yield from SENTENCE_END.split(" ".join(passage["context"].split()))
                yield from (" ".join(each["question"].split()) for each in passage["qas"])


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sentence_file", description="Writes sentences, one a line."
    )
    parser.add_argument("output", type=Path, help="the JSON lines file to write")
    parser.add_argument("--books", type=Path, default=TEXT)
    parser.add_argument("--squad", type=Path, default=SQUAD)
    options = parser.parse_args()
    draw = random.Random(SEED)
    chosen = []
    for sentences in (book_sentences(options.books), squad_sentences(options.squad)):
        fit = {each: None for each in sentences if SHORTEST <= len(each) <= LONGEST}
        chosen.append(list(fit))
        draw.shuffle(chosen[-1])
    # As many of the one as of the other.
    number = min(map(len, chosen))
    found = [sentence for kind in chosen for sentence in kind[:number]]
    draw.shuffle(found)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with options.output.open("w", encoding="utf-8") as output:
        output.writelines(json.dumps({"text": each}, ensure_ascii=False) + "\n" for each in found)
    print(f"{options.output}: {len(found):,} sentences")


if __name__ == "__main__":
    main()
