"""Entities in sentences: a tag for each word, asked at the word's first token.

Data may have tags of any scheme; a new model has those of IOB2, and one from elsewhere keeps its
own. A word without a token, such as an empty one, is not asked, and is predicted as no entity. A
sentence longer than the model's sequences is cut into several, so that every word is asked.

Axes: B sequences, T tokens, C tags, W words.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from tokenizers import Encoding
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from stillhouse.data.formats.registry import format_name, has_records
from stillhouse.data.rows import Row, read_rows
from stillhouse.data.text import read_lines
from stillhouse.errors import DataError, RecipeError
from stillhouse.models.task_models import TaskHead
from stillhouse.tasks.encoded import EncodedExample, OutputKind, TaskBatch
from stillhouse.tasks.labels import is_generic, listed
from stillhouse.tasks.metrics import MetricSamples, span_counts, span_f1
from stillhouse.tasks.model_inputs import run
from stillhouse.tasks.settings import TokenClassificationTask
from stillhouse.tasks.tagged import (
    TAG,
    Scheme,
    Sentence,
    as_iob2,
    as_scheme,
    read_tagged,
    read_tagged_rows,
    scheme_of,
    words_in_row,
)
from stillhouse.tasks.text_classification import labelled
from stillhouse.tasks.texts import ids_and_types
from stillhouse.tokens.batches import IGNORED

WORD = re.compile(r"\w+|[^\w\s]")
NO_WORD = -1
LISTS = ("JSON lines", "JSON", "Parquet")  # formats whose rows are sentences


@dataclass(frozen=True)
class Words:
    """A text, the begin and end of each of its words, and the tag of each (IOB2) where known."""

    text: str
    spans: tuple[tuple[int, int], ...]
    tags: tuple[str, ...] | None = None


@dataclass(frozen=True)
class TaggedWords:
    """A model's tag for each word of a text, and the tag's probability."""

    words: Words
    tags: list[str]
    scores: list[float]


class TokenClassification:
    """A tag for each word."""

    head: TaskHead = "TokenClassification"
    says: OutputKind = "classes"
    per_token = True

    def __init__(
        self, recipe: TokenClassificationTask, labels: Sequence[str], *, names: Sequence[str] = ()
    ) -> None:
        """The tags in the order of the model's outputs.

        Args:
            names: Of tags that are numbers in data, where the recipe does not name them.
        """
        self.recipe = recipe
        self.names = names
        self.labels = list(labels)
        self.scheme: Scheme = scheme_of(self.labels)

    @property
    def settings(self) -> Mapping[str, Any]:
        return labelled(self.labels)

    def read(self, path: Path, *, targets: bool = True) -> list[Words]:
        """Tagged sentences; or, without targets, rows with `text` or with a list of tokens, or
        columns as those of training data, with or without tags."""
        if not targets and _has_texts(path):
            return [self._untagged(row) for row in read_rows(path, keep_blank=True)]
        if not targets:
            sentences = _read_columns(self.recipe, path, tagged=False)
            return [words_of(sentence.tokens) for sentence in sentences]
        found = []
        for sentence in read_sentences(self.recipe, path, self.names):
            if unknown := set(as_scheme(sentence.tags, self.scheme)) - set(self.labels):
                raise DataError(
                    f"{sentence.where}: the tag {min(unknown)!r} is none of the model's, which are "
                    f"{listed(self.labels)}. Correct it, or add its kind to the training data."
                )
            found.append(words_of(sentence.tokens, sentence.tags))
        return found

    def _untagged(self, row: Row) -> Words:
        tokens = self.recipe.tokens
        if tokens in row.fields and "text" not in row.fields:
            return words_of(words_in_row(row, tokens))
        return words_in(row.text("text"))

    def read_training(self, path: Path) -> list[Words]:
        return self.read(path)

    def encode(
        self, examples: Sequence[Words], tokenizer: PreTrainedTokenizerFast
    ) -> list[list[EncodedExample]]:
        if not examples:
            return []
        found = tokenizer(
            [words.text for words in examples],
            truncation=True,
            max_length=self.recipe.length,
            return_overflowing_tokens=True,
            return_token_type_ids=True,
            split_special_tokens=True,
        )
        assert found.encodings is not None
        sequences: list[list[EncodedExample]] = [[] for _ in examples]
        for number, encoding in zip(
            found["overflow_to_sample_mapping"], found.encodings, strict=True
        ):
            own = sequences[number]
            last = max((int(each.source.max(initial=NO_WORD)) for each in own), default=NO_WORD)
            own.append(self._encoded(encoding, examples[number], last, tokenizer))
        return sequences

    def _encoded(
        self, encoding: Encoding, words: Words, last: int, tokenizer: PreTrainedTokenizerFast
    ) -> EncodedExample:
        """A sequence whose `source` is the word that each token begins, if it begins one.

        Args:
            last: The last word that the sequences before have begun.
        """
        begins = begun_words(encoding, words, last) if encoding.ids else np.array([NO_WORD])
        known = as_scheme(words.tags or (), self.scheme)
        tags = known or self.labels[:1] * len(words.spans)
        numbers = np.array([self.labels.index(tag) for tag in tags] or [IGNORED])
        target = np.where(begins == NO_WORD, IGNORED, numbers[begins])
        ids, types = ids_and_types(encoding, tokenizer)
        return EncodedExample(ids, types, target, source=begins, is_labeled=words.tags is not None)

    def outputs(self, model: PreTrainedModel, batch: TaskBatch) -> Float[Tensor, "B T C"]:
        return run(model, batch).logits

    def predict(
        self, example: Words, sequences: Sequence[EncodedExample], outputs: Sequence[Tensor]
    ) -> TaggedWords:
        """A word without a token, such as an empty one or a control character, is no entity."""
        tags, scores = ["O"] * len(example.spans), [0.0] * len(example.spans)
        for sequence, logits in zip(sequences, outputs, strict=True):
            shares = logits.double().softmax(-1).numpy()
            for place in np.flatnonzero(sequence.source != NO_WORD):
                word, best = sequence.source[place], int(shares[place].argmax())
                tags[word], scores[word] = self.labels[best], float(shares[place, best])
        return TaggedWords(example, tags, scores)

    def measures(
        self, predictions: Sequence[TaggedWords], examples: Sequence[Words]
    ) -> dict[str, MetricSamples]:
        """F1 over entities: `strict` takes what the scheme allows alone, `default` is conlleval's.

        A scheme without a tag for the beginning (IO) has nothing that is not allowed.
        """
        said = [each.tags for each in predictions]
        right = [list(words.tags or ()) for words in examples]
        loose = [list(as_iob2(tags)) for tags in said]
        if self.scheme == "IOB2":
            loose = said
        elif self.scheme == "IO":
            said = loose
        found = {}
        for name, tags in (("strict", said), ("default", loose)):
            scheme: Scheme = "IOB2" if tags is loose else self.scheme
            expected = [as_scheme(each, scheme) for each in right]
            counts = span_counts(tags, expected, strict=name == "strict", scheme=scheme)
            found[name] = MetricSamples(span_f1, counts, counts)
        return found

    def result(self, prediction: TaggedWords) -> Any:
        return [
            {
                "entity_group": kind,
                "score": float(np.mean(prediction.scores[first:last])),
                "word": prediction.words.text[start:end],
                "start": start,
                "end": end,
            }
            for kind, first, last, start, end in _entities(prediction)
        ]


def words_of(tokens: Sequence[str], tags: Sequence[str] | None = None) -> Words:
    """Words with a space between."""
    spans, start = [], 0
    for token in tokens:
        spans.append((start, start + len(token)))
        start += len(token) + 1
    return Words(" ".join(tokens), tuple(spans), None if tags is None else tuple(tags))


def words_in(text: str) -> Words:
    """The words of a text: letters and digits in a row, and each other mark by itself."""
    return Words(text, tuple(match.span() for match in WORD.finditer(text)))


def read_sentences(
    recipe: TokenClassificationTask, path: Path, names: Sequence[str] = ()
) -> list[Sentence]:
    """The tagged sentences of a file, as the recipe says.

    Args:
        names: Of tags that are numbers, where the recipe does not name them.
    """
    names = recipe.labels or names
    if is_table(path):
        return read_tagged_rows(path, recipe.tokens, recipe.tags, names=names)
    if format_name(path) == "CSV":
        raise DataError(
            f"{path} is a CSV file. Give tagged sentences as a token and its tag a line, apart by "
            "a tab or spaces, with blank lines between sentences, or as lists in JSON lines or "
            "Parquet."
        )
    return _read_columns(recipe, path, names)


def _read_columns(
    recipe: TokenClassificationTask, path: Path, names: Sequence[str] = (), *, tagged: bool = True
) -> list[Sentence]:
    return read_tagged(
        path,
        token_column=recipe.token_column,
        tag_column=recipe.tag_column,
        prefix=recipe.prefix,
        names=names,
        tagged=tagged,
    )


def is_table(path: Path) -> bool:
    """Whether a file has sentences as rows with lists, and not a token a line."""
    return format_name(path) in LISTS


def _has_texts(path: Path) -> bool:
    """Whether a file without tags is a table of texts or sentences, and not a token a line."""
    if format_name(path) == "TSV":
        _, names = next(read_lines(path), (1, ""))
        return "text" in [name.strip() for name in names.split("\t")]
    return has_records(path)


def tags_in(sentences: Iterable[Sequence[str]]) -> list[str]:
    """The tags that a model needs for sentences with these: both of each kind, sorted."""
    kinds = sorted({tag[2:] for tags in sentences for tag in tags if tag != "O"})
    return ["O", *(f"{place}-{kind}" for kind in kinds for place in "BI")]


def tags_of_model(tags: Sequence[str], own: Sequence[str], model: str, *, named: bool) -> list[str]:
    """The tags of a model's outputs, by its own names.

    Args:
        tags: Those of the data.
        named: Whether the recipe names them, in the order of outputs that have no names.

    Raises:
        RecipeError: outputs that are no tags, or none for a kind of entity in the data.
    """
    if is_generic(own) and named and len(own) == len(tags):
        return list(tags)
    missing = {tag[2:] for tag in tags} - {label[2:] for label in own}
    if missing or not all(TAG.fullmatch(label) for label in own):
        raise RecipeError(
            f"The data's tags are {listed(tags)}, but those of {model} are {listed(own)}. "
            "Give a model that was trained on these kinds of entities, or, for one whose labels "
            "have no names, name its tags in `labels` in the order of its outputs."
        )
    return list(own)


def begun_words(encoding: Encoding, words: Words, last: int) -> Int[np.ndarray, " T"]:
    """For each token the word that it begins; NO_WORD where it goes on with one, or is of none.

    Args:
        last: The last word that was begun before.
    """
    begins = np.full(max(1, len(encoding.ids)), NO_WORD)  # an empty text is an end of text
    for place, (start, end) in enumerate(encoding.offsets):
        token = words.text[start:end]
        first = start + len(token) - len(token.lstrip())  # some tokens begin with the space before
        while last + 1 < len(words.spans) and words.spans[last + 1][1] <= first:
            last += 1  # left out by the tokenizer
        if first < end and last + 1 < len(words.spans) and words.spans[last + 1][0] <= first:
            last += 1
            begins[place] = last
    return begins


def _entities(found: TaggedWords) -> Iterator[tuple[str, int, int, int, int]]:
    """Kind, words from and to, characters from and to, of each entity."""
    tags, spans = list(as_iob2(found.tags)), found.words.spans
    for first, tag in enumerate(tags):
        if not tag.startswith("B-"):
            continue
        last = first + 1
        while last < len(tags) and tags[last] == f"I-{tag[2:]}":
            last += 1
        yield tag[2:], first, last, spans[first][0], spans[last - 1][1]
