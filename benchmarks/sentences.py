"""Real sentences of mixed length: in micro-batches as in 2019, and packed as ours.

Text is split into sentences, each wrapped in CLS and SEP. An epoch uses them in random order; the
sampler of 2019 collects them by length until five of about the same length form a micro-batch.
A step gets successive micro-batches of that sampler, from the middle of the epoch, where its
collections are filled as they are most of the time. Masks are sampled once for each of them.

Axes: B sequences, T positions.
"""

import random
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from benchmarks.reference_2019 import PaddedBatch
from stillhouse.data.documents import read_documents
from stillhouse.data.settings import CorpusRecipe
from stillhouse.errors import DataError
from stillhouse.tokens.batches import IGNORED, Batch
from stillhouse.tokens.packing import Masker, positions_in_segments
from stillhouse.tokens.settings import MaskingRecipe
from stillhouse.tokens.tokenizer import SpecialTokens, load_tokenizer, special_tokens, text_encoder

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
TEXT = SHARED / "books" / "en.jsonl.gz"
VOCABULARY = SHARED / "vocab" / "bert" / "bert-base-uncased-vocab.txt"

POOL = 20_000  # sentences of the text that make up the epoch
SHORTEST = 4  # tokens of a sentence, CLS and SEP included
GROUPED, UNGROUPED = 5, 8  # sentences in a micro-batch: 2019's default, and that of the other step
BIN_WIDTH = 4  # of 2019's collections by length, in tokens
NUM_SENTENCES = 40

# A stop, with or without a closing quotation mark, before a capital; not after a title.
SENTENCE_END = re.compile(
    r"(?:(?<=[.!?])|(?<=[.!?][\"'\u201d\u2019]))(?<!\bMr\.)(?<!\bMrs\.)(?<!\bDr\.)(?<!\bSt\.)\s+"
    r"(?=[\"'\u201c\u2018(]?[A-Z])"
)


@dataclass(frozen=True)
class Source:
    """Text in any form that `corpus.source` supports, and a WordPiece vocabulary.

    Sentences longer than `longest` tokens, including CLS and SEP, are excluded.
    """

    text: Path = TEXT
    vocabulary: Path = VOCABULARY
    longest: int = 128


@dataclass(frozen=True)
class Sentence:
    """Tokens with CLS and SEP, some of them masked; a label where one is predicted, else -100."""

    input_ids: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Drawn:
    """The sentences of one step, in the micro-batches of the 2019 sampler."""

    grouped: list[list[Sentence]]

    @property
    def all(self) -> list[Sentence]:
        return [sentence for group in self.grouped for sentence in group]

    @property
    def ungrouped(self) -> list[list[Sentence]]:
        """The same in an order that is independent of length."""
        order = random.Random(0).sample(self.all, len(self.all))
        return [order[start : start + UNGROUPED] for start in range(0, len(order), UNGROUPED)]


def draw(source: Source, seed: int) -> Drawn:
    """The sentences of one step.

    Raises:
        DataError: a file is missing, or the text is too short.
    """
    for path, option in ((source.text, "--text"), (source.vocabulary, "--vocabulary")):
        if not path.exists():
            raise DataError(
                f"{path} does not exist. Sentences need English text (a text file, or JSON lines "
                f"with `text`) and BERT's vocabulary; give where it is as {option}."
            )
    tokenizer = load_tokenizer(source.vocabulary)
    special = special_tokens(tokenizer, "masked")
    tokens = list(islice(_tokens(source, tokenizer, special), POOL))
    groups = _groups([len(sentence) for sentence in tokens], seed)
    wanted = NUM_SENTENCES // GROUPED
    if len(groups) < 2 * wanted:
        raise DataError(
            f"{source.text} gives {len(tokens)} sentences of {SHORTEST} to {source.longest} "
            f"tokens, too few to draw {NUM_SENTENCES} from. Give a longer text as --text."
        )
    counts = np.bincount(np.concatenate(tokens), minlength=len(tokenizer))
    masker = Masker(MaskingRecipe(sampling="per_batch"), special, len(tokenizer), counts)
    middle = len(groups) // 2
    return Drawn(
        [
            _masked([tokens[index] for index in group], masker, number, seed)
            for number, group in enumerate(groups[middle : middle + wanted])
        ]
    )


def packed(sentences: Sequence[Sentence], length: int) -> Batch:
    """Our batch: each sentence complete and a separate segment, packed longest first.

    (`prepare` splits a sentence rather than leave a gap. Here they stay complete, so that the
    reference reads the same sentences; remaining gaps count as our padding.)
    """
    rows: list[list[Sentence]] = []
    for sentence in sorted(sentences, key=lambda each: -len(each.input_ids)):
        room = (row for row in rows if sum(len(s.input_ids) for s in [*row, sentence]) <= length)
        found = next(room, None)
        if found is None:
            rows.append(found := [])
        found.append(sentence)
    inputs, labels = np.zeros((len(rows), length), np.int64), np.full((len(rows), length), IGNORED)
    segments = np.zeros((len(rows), length), np.int64)
    for row, members in enumerate(rows):
        start = 0
        for number, sentence in enumerate(members, start=1):
            part = slice(start, start + len(sentence.input_ids))
            inputs[row, part], labels[row, part] = sentence.input_ids, sentence.labels
            segments[row, part] = number
            start = part.stop
    positions = positions_in_segments(segments)
    tensors = [torch.from_numpy(array) for array in (inputs, labels, segments, positions)]
    return Batch(*tensors, causal=False, uniform=False)


def padded(sentences: Sequence[Sentence]) -> PaddedBatch:
    """A micro-batch of 2019: one sentence a row, padded to the longest of them."""
    inputs = _rows([sentence.input_ids for sentence in sentences], filler=0)
    labels = _rows([sentence.labels for sentence in sentences], filler=IGNORED)
    real = _rows([np.ones_like(sentence.labels) for sentence in sentences], filler=0)
    return PaddedBatch(*map(torch.from_numpy, (inputs, real, labels)), causal=False)


def _rows(arrays: Sequence[np.ndarray], *, filler: int) -> np.ndarray:
    """Arrays as rows, padded to the longest."""
    rows = np.full((len(arrays), max(map(len, arrays))), filler, np.int64)
    for row, array in zip(rows, arrays, strict=True):
        row[: len(array)] = array
    return rows


def _tokens(
    source: Source, tokenizer: PreTrainedTokenizerFast, special: SpecialTokens
) -> Iterator[np.ndarray]:
    """The text's sentences in order, with CLS and SEP; those too short or too long are excluded."""
    assert special.cls is not None
    assert special.sep is not None
    encode = text_encoder(tokenizer)
    for piece in read_documents(CorpusRecipe(source=str(source.text)), offline=True):
        texts = [
            sentence
            for paragraph in piece.text.split("\n\n")
            for sentence in SENTENCE_END.split(" ".join(paragraph.split()))
        ]
        for ids in encode(texts):
            if SHORTEST <= len(ids) + 2 <= source.longest:
                yield np.concatenate([[special.cls], ids, [special.sep]])


def _groups(lengths: Sequence[int], seed: int) -> list[list[int]]:
    """Micro-batches of one epoch: sentences of similar length form one as soon as it is full."""
    waiting: dict[int, list[int]] = defaultdict(list)
    groups = []
    for index in random.Random(seed).sample(range(len(lengths)), len(lengths)):
        collection = waiting[(lengths[index] + 1) // BIN_WIDTH]
        collection.append(index)
        if len(collection) == GROUPED:
            groups.append(collection.copy())
            collection.clear()
    return groups


def _masked(tokens: Sequence[np.ndarray], masker: Masker, number: int, seed: int) -> list[Sentence]:
    """One sampling over the whole micro-batch, as in 2019."""
    inputs = _rows(tokens, filler=0)
    real = _rows([np.ones_like(sentence) for sentence in tokens], filler=0)
    numbers, epochs = np.full(len(tokens), number), np.zeros(len(tokens), np.int64)
    masked, labels = masker.mask(inputs, real, numbers, epochs, seed)
    return [
        Sentence(masked[row, : len(sentence)], labels[row, : len(sentence)])
        for row, sentence in enumerate(tokens)
    ]
