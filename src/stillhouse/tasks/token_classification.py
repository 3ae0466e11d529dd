"""Token classification: a tag for each word, predicted at the word's first token.

Data may have tags of any scheme; new models have those of IOB2, others keep their own. A word
without a token, such as an empty one, is predicted as O. A sentence longer than the model's
sequences is split into several, so that every word gets a prediction.

Axes: B sequences, T tokens, C tags, W words.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from tokenizers import Encoding
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerFast

from stillhouse.data.formats import format_of
from stillhouse.data.rows import Row, read_rows
from stillhouse.data.text import read_lines
from stillhouse.errors import DataError, RecipeError
from stillhouse.tasks.encoded import EncodedExample, ids_and_types
from stillhouse.tasks.labels import is_generic, labelled, labels_of, listed
from stillhouse.tasks.metrics import MetricSamples, span_counts, span_f1
from stillhouse.tasks.settings import TokenClassificationTask
from stillhouse.tasks.tagged import (
    TAG,
    Scheme,
    as_iob2,
    as_scheme,
    read_tagged,
    scheme_of,
    words_in_row,
)
from stillhouse.tasks.task import Task
from stillhouse.tokens.batches import IGNORED

WORD = re.compile(r"\w+|[^\w\s]")
NO_WORD = -1


@dataclass(frozen=True)
class TaggedText:
    """A text, the start and end of each of its words, and the tag of each (IOB2) where known."""

    text: str
    spans: tuple[tuple[int, int], ...]
    tags: tuple[str, ...] | None = None

    @property
    def inputs(self) -> dict[str, str]:
        """What a model is given."""
        return {"text": self.text}


@dataclass(frozen=True)
class TokenPrediction:
    """The predicted tag of each word of a text, and the tag's probability."""

    words: TaggedText
    tags: list[str]
    scores: list[float]


class TokenClassification(Task[TokenClassificationTask]):
    """A tag for each word."""

    head = "TokenClassification"
    per_token = True
    advice = "Give sentences with entities."

    def __init__(
        self,
        recipe: TokenClassificationTask,
        labels: Sequence[str] = (),
        *,
        own: Sequence[str] = (),
    ) -> None:
        """The tags in the order of the model's outputs.

        Args:
            own: The names of a model's outputs: those of tags that are numbers in data, where the
                recipe does not name them.
        """
        super().__init__(recipe)
        self.own = own
        self.labels = list(labels or recipe.labels or ())
        self.model_settings = labelled(self.labels)
        self.scheme: Scheme = scheme_of(self.labels)

    def for_model(self, folder: Path, config: PretrainedConfig) -> "TokenClassification":
        own = labels_of(config)
        if self.recipe.labels:
            return self.with_labels_of(own, f"the model in {folder}")
        return TokenClassification(self.recipe, own, own=own)

    def with_labels_of(self, own: Sequence[str], model: str) -> "TokenClassification":
        named = self.recipe.labels is not None  # in the order of outputs that have no names
        by_position = named and is_generic(own) and len(own) == len(self.labels)
        missing = {tag[2:] for tag in self.labels} - {label[2:] for label in own}
        if not by_position and (missing or not all(TAG.fullmatch(label) for label in own)):
            raise RecipeError(
                f"The data's tags are {listed(self.labels)}, but those of {model} are "
                f"{listed(own)}. Give a model that was trained on these kinds of entities, or, for "
                "one whose labels have no names, name its tags in `labels` in the order of its "
                "outputs."
            )
        if self.own and set(own) != set(self.labels):
            raise RecipeError(
                f"The tags of {model} are {listed(own)}, but those of another teacher of the task "
                f"are {listed(self.labels)}. Use teachers with the same tags."
            )
        return TokenClassification(self.recipe, self.labels if by_position else own, own=own)

    def labels_in(self, path: Path, names: Sequence[str] = ()) -> list[str]:
        if self.recipe.labels is not None or not self.is_labeled(path):
            return []
        return tags_in(each.tags for each in read_tagged(path, self.recipe, names))

    def is_labeled(self, path: Path) -> bool:
        if not format_of(path).has_lists:  # a token and its tag a line
            return True
        return self.recipe.tags in read_rows(path, self.recipe.tokens)[0].fields

    def blank_rows(self, path: Path) -> list[int]:
        return super().blank_rows(path) if format_of(path).has_lists else []

    def label_set(self, example: TaggedText) -> set[str] | None:
        """The kinds of entities, and O."""
        return None if example.tags is None else {"O", *(tag[2:] or "O" for tag in example.tags)}

    def label_names(self, labels: set[Any] | None) -> set[str]:
        return (labels or set()) - {"O"}

    def describe_label(self, label: Any) -> str:
        return "have no entity (every tag is O)"

    def read(self, path: Path, *, labeled: bool = True) -> list[TaggedText]:
        """Tagged sentences; without labels, rows with `text` or with a list of tokens, or columns
        like those of training data, with or without tags."""
        if not labeled and _has_texts(path):
            return [self._untagged(row) for row in read_rows(path, keep_blank=True)]
        if not labeled:
            sentences = read_tagged(path, self.recipe, tagged=False)
            return [words_of(sentence.tokens) for sentence in sentences]
        found = []
        for sentence in read_tagged(path, self.recipe, self.own):
            if unknown := set(as_scheme(sentence.tags, self.scheme)) - set(self.labels):
                raise DataError(
                    f"{sentence.where}: the tag {min(unknown)!r} is not one of the model's: "
                    f"{listed(self.labels)}. Correct it, or add its kind to the training data."
                )
            found.append(words_of(sentence.tokens, sentence.tags))
        return found

    def _untagged(self, row: Row) -> TaggedText:
        tokens = self.recipe.tokens
        if tokens in row.fields and "text" not in row.fields:
            return words_of(words_in_row(row, tokens))
        return words_in(row.text("text"))

    def encode(
        self, examples: Sequence[TaggedText], tokenizer: PreTrainedTokenizerFast
    ) -> list[list[EncodedExample]]:
        if not examples:
            return []
        found = tokenizer(
            [words.text for words in examples],
            truncation=True,
            max_length=self.recipe.max_length,
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
        self, encoding: Encoding, words: TaggedText, last: int, tokenizer: PreTrainedTokenizerFast
    ) -> EncodedExample:
        """A sequence whose `source` is the word that each token starts, if it starts one.

        Args:
            last: The last word that the sequences before have started.
        """
        begins = started_words(encoding, words, last) if encoding.ids else np.array([NO_WORD])
        known = as_scheme(words.tags or (), self.scheme)
        tags = known or self.labels[:1] * len(words.spans)
        numbers = np.array([self.labels.index(tag) for tag in tags] or [IGNORED])
        target = np.where(begins == NO_WORD, IGNORED, numbers[begins])
        ids, types = ids_and_types(encoding, tokenizer)
        return EncodedExample(ids, types, target, source=begins, is_labeled=words.tags is not None)

    def predict(
        self, example: TaggedText, sequences: Sequence[EncodedExample], outputs: Sequence[Tensor]
    ) -> TokenPrediction:
        """Words without a token, such as empty ones or control characters, are tagged O."""
        tags, scores = ["O"] * len(example.spans), [0.0] * len(example.spans)
        for sequence, logits in zip(sequences, outputs, strict=True):
            shares = logits.double().softmax(-1).numpy()
            for place in np.flatnonzero(sequence.source != NO_WORD):
                word, best = sequence.source[place], int(shares[place].argmax())
                tags[word], scores[word] = self.labels[best], float(shares[place, best])
        return TokenPrediction(example, tags, scores)

    def metric_samples(
        self, predictions: Sequence[TokenPrediction], examples: Sequence[TaggedText]
    ) -> dict[str, MetricSamples]:
        """F1 over entities: `strict` counts only valid spans of the scheme, `default` is that of
        conlleval.

        In a scheme without a tag for the beginning (IO) every span is valid.
        """
        schemes: dict[str, Scheme] = {
            "strict": "IOB2" if self.scheme == "IO" else self.scheme,
            "default": "IOB2",
        }
        found = {}
        for name, scheme in schemes.items():
            predicted = [each.tags for each in predictions]
            if scheme != self.scheme:
                predicted = [list(as_iob2(tags)) for tags in predicted]
            expected = [as_scheme(words.tags or (), scheme) for words in examples]
            counts = span_counts(predicted, expected, strict=name == "strict", scheme=scheme)
            found[name] = MetricSamples(span_f1, counts, counts)
        return found

    def result(self, prediction: TokenPrediction) -> Any:
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


def words_of(tokens: Sequence[str], tags: Sequence[str] | None = None) -> TaggedText:
    """Words with a space between."""
    spans, start = [], 0
    for token in tokens:
        spans.append((start, start + len(token)))
        start += len(token) + 1
    return TaggedText(" ".join(tokens), tuple(spans), None if tags is None else tuple(tags))


def words_in(text: str) -> TaggedText:
    """The words of a text: runs of letters and digits, and each other character by itself."""
    return TaggedText(text, tuple(match.span() for match in WORD.finditer(text)))


def _has_texts(path: Path) -> bool:
    """Whether a file without tags is a table of texts or sentences, and not a token a line."""
    if format_of(path).name == "TSV":
        _, names = next(read_lines(path), (1, ""))
        return "text" in [name.strip() for name in names.split("\t")]
    return format_of(path).read_records is not None


def tags_in(sentences: Iterable[Sequence[str]]) -> list[str]:
    """The tags that a model needs for sentences with these: O, then B- and I- of each kind."""
    kinds = sorted({tag[2:] for tags in sentences for tag in tags if tag != "O"})
    return ["O", *(f"{place}-{kind}" for kind in kinds for place in "BI")]


def started_words(encoding: Encoding, words: TaggedText, last: int) -> Int[np.ndarray, " T"]:
    """For each token the word that it starts; NO_WORD for other tokens.

    Args:
        last: The last word that was started before.
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


def _entities(found: TokenPrediction) -> Iterator[tuple[str, int, int, int, int]]:
    """Kind, words from and to, characters from and to, of each entity."""
    tags, spans = list(as_iob2(found.tags)), found.words.spans
    for first, tag in enumerate(tags):
        if not tag.startswith("B-"):
            continue
        last = first + 1
        while last < len(tags) and tags[last] == f"I-{tag[2:]}":
            last += 1
        yield tag[2:], first, last, spans[first][0], spans[last - 1][1]
