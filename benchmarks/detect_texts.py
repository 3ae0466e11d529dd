"""The texts of benchmarks/detect.py: excerpts of human text, and machine texts from their first
words.

An excerpt is split into a prompt, its first 16 tokens, and the human text, the 500 tokens and a few
more that follow. A generator continues the prompt; the machine text is what it adds. Both kinds of
text so begin in the middle of a sentence, on the same subject. White space is single spaces, since
layout is not what is measured. Tokens are those of SmolLM2.

Machine texts do not end: the tokens that end a text have probability zero. They are appended to
`FOLDER/CELL.jsonl` as they are finished, so that an interrupted run resumes, and a run with more
texts keeps those that there are.
"""

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from stillhouse.inference.causal_lm import CausalLM
from stillhouse.inference.engine.batcher import Batcher, Ended, Event, Failed, NewToken, Request
from stillhouse.inference.engine.kv_cache import SlottedModel
from stillhouse.inference.generation import Generation

PROMPT_TOKENS = 16
TEXT_TOKENS = 540  # some more than 500: without its line ends, a text has fewer
EXCERPT_WORDS = 560
SEQUENCES_AT_ONCE = 32
FITTED_GENRES = ("encyclopedia", "novels")
OTHER_GENRES = ("speeches", "news")

FOREIGN_GENRES = ("German novels", "French novels")
RECORDS = {
    "novels": "books/en.jsonl.gz",
    "speeches": "us_speeches.jsonl.gz",
    "German novels": "books/de.jsonl.gz",
    "French novels": "books/fr.jsonl.gz",
}


@dataclass(frozen=True)
class Excerpt:
    """The name of a document, a prompt, and the human text that follows it."""

    document: str
    prompt: str
    text: str


@dataclass(frozen=True)
class Cell:
    """Machine texts of one kind.

    Attributes:
        split: `fit` or `test`: of which excerpts the prompts are.
        settings: Those of `Generation` that differ from sampling from all tokens at temperature 1.
    """

    name: str
    split: str
    generator: str
    genres: Sequence[str] = FITTED_GENRES
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def generation(self) -> Generation:
        return Generation(**{"top_k": 0, "max_new_tokens": TEXT_TOKENS, **self.settings})


CELLS = (
    Cell("fit-0.7", "fit", "smollm2", settings={"temperature": 0.7}),
    Cell("fit-1.0", "fit", "smollm2"),
    Cell("fit-top-p", "fit", "smollm2", settings={"top_p": 0.9}),
    Cell("fit-greedy", "fit", "smollm2", settings={"greedy": True}),
    Cell("same-0.7", "test", "smollm2", settings={"temperature": 0.7}),
    Cell("same-1.0", "test", "smollm2"),
    Cell("temperature-0.85", "test", "smollm2", settings={"temperature": 0.85}),
    Cell("temperature-1.2", "test", "smollm2", settings={"temperature": 1.2}),
    Cell("genre-0.7", "test", "smollm2", OTHER_GENRES, {"temperature": 0.7}),
    Cell("genre-1.0", "test", "smollm2", OTHER_GENRES),
    Cell("student-1.0", "test", "student"),
    Cell("control-1.0", "test", "control"),
    Cell("sample-1.0", "test", "sample"),
    Cell("all-0.85", "test", "student", OTHER_GENRES, {"temperature": 0.85}),
)


def documents(data: Path, genre: str) -> list[tuple[str, str]]:
    """The names and texts of a genre's documents, in the order of the files."""
    if genre == "encyclopedia":  # the paragraphs of Wikipedia's articles, as SQuAD has them
        with gzip.open(data / "squad" / "train-v1.1.json.gz", "rt", encoding="utf-8") as file:
            articles = json.load(file)["data"]
        return [
            (each["title"], "\n\n".join(part["context"] for part in each["paragraphs"]))
            for each in articles
        ]
    if genre == "news":
        folder = data / "web_html" / "article_extraction_benchmark"
        truth = json.loads((folder / "ground-truth.json").read_text(encoding="utf-8"))
        return [(name, each["articleBody"]) for name, each in sorted(truth.items())]
    with gzip.open(data / RECORDS[genre], "rt", encoding="utf-8") as file:
        return [(each["id"], each["text"].lstrip("\ufeff")) for each in map(json.loads, file)]


def excerpts(
    data: Path, genre: str, split: str, number: int, tokenizer: PreTrainedTokenizerFast
) -> list[Excerpt]:
    """At most `number` excerpts of a genre, in turn from the documents of a split.

    Even documents are for fitting, odd ones for tests; the first excerpts are the same whatever the
    number. Each begins with a paragraph. One that is not as long as a prompt and 60 tokens is left
    out.
    """
    own = documents(data, genre)[0 if split == "fit" else 1 :: 2]
    if genre not in FITTED_GENRES:  # of which nothing is fitted
        own = documents(data, genre)
    generator = np.random.default_rng(20_261_130)
    own = [own[place] for place in generator.permutation(len(own))]
    per_document = 1 if genre in ("encyclopedia", "news") else -(-number // len(own))
    found = []
    for turn in range(per_document):
        for name, text in own:
            ids = tokenizer(_cut(name, text, turn), add_special_tokens=False)["input_ids"]
            if len(ids) >= PROMPT_TOKENS + 60:
                parts = ids[:PROMPT_TOKENS], ids[PROMPT_TOKENS : PROMPT_TOKENS + TEXT_TOKENS]
                prompt, rest = (str(tokenizer.decode(part)) for part in parts)
                found.append(Excerpt(name, prompt, rest.strip()))
    return found[:number]


def _cut(name: str, text: str, turn: int) -> str:
    """About `EXCERPT_WORDS` words from the beginning of a paragraph; where the document is long,
    one beyond its front matter."""
    starts = [0, *(place + 2 for place in _breaks(text))]
    last = len(text) - 8 * EXCERPT_WORDS
    inner = [start for start in starts if len(text) // 20 < start < last]
    generator = np.random.default_rng([turn, *name.encode()])
    start = inner[generator.integers(len(inner))] if inner else 0
    return " ".join(text[start : start + 20 * EXCERPT_WORDS].split()[:EXCERPT_WORDS])


def _breaks(text: str) -> Iterator[int]:
    place = text.find("\n\n")
    while place >= 0:
        yield place
        place = text.find("\n\n", place + 2)


def prompts_of(cell: Cell, own: Mapping[str, Sequence[Excerpt]], number: int) -> list[str]:
    """The prompts of a cell, from its genres in turn."""
    count = len(cell.genres)
    return [
        own[cell.genres[place % count]][place // count].prompt
        for place in range(number)
        if place // count < len(own[cell.genres[place % count]])
    ]


def read_texts(folder: Path, cell: Cell, number: int) -> list[str]:
    """The machine texts of a cell that there are, in order of their prompts."""
    file = folder / f"{cell.name}.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    found = {each["prompt"]: each["text"] for each in map(json.loads, lines)}
    return [found[place] for place in range(number) if place in found]


def generate_missing(
    folder: Path, model: CausalLM, work: Sequence[tuple[Cell, Sequence[str]]]
) -> int:
    """Generate the texts of several cells of one generator that are not there yet, in one batch;
    returns their number."""
    batcher = Batcher(
        SlottedModel(
            model.family,
            model.model,
            SEQUENCES_AT_ONCE,
            (*model.unused_ids, *model.end_ids),  # texts do not end
            max_length=model.context,
        ),
        model.tokenizer,
        frozenset(),
    )
    number = 0
    for cell, prompts in work:
        file = folder / f"{cell.name}.jsonl"
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        known = {json.loads(line)["prompt"] for line in lines}
        for place, prompt in enumerate(prompts):
            if place not in known:
                ids = model.prompt_ids(prompt)
                settings = _fitting(cell.generation, model.context - len(ids))
                request = Request(ids, settings, seed=place)
                batcher.submit(request, partial(_write, file, place, []))
                number += 1
    batcher.run()
    return number


def _fitting(settings: Generation, room: int) -> Generation:
    values = {**vars(settings), "max_new_tokens": min(settings.max_new_tokens, room)}
    return Generation(**values)


def _write(file: Path, prompt: int, parts: list[str], event: Event) -> None:
    """Collect a text, and append it to its cell's file when it is complete."""
    if isinstance(event, Failed):
        raise event.error
    if isinstance(event, NewToken | Ended):
        parts.append(event.text)
    if isinstance(event, Ended):
        line = json.dumps({"prompt": prompt, "text": "".join(parts).strip()}, ensure_ascii=False)
        with file.open("a", encoding="utf-8") as content:
            content.write(f"{line}\n")


def replace_words(text: str, fraction: float, words: Sequence[str], seed: int) -> str:
    """The text with this fraction of its words, at least one, replaced by others drawn at random
    with their frequency; punctuation around a word stays."""
    generator = np.random.default_rng(seed)
    own = text.split()
    count = max(1, round(fraction * len(own)))
    for place in generator.choice(len(own), count, replace=False).tolist():
        core = own[place].strip(".,;:!?\"'()[]")
        new = words[int(generator.integers(len(words)))]
        own[place] = own[place].replace(core, new, 1) if core else new
    return " ".join(own)
