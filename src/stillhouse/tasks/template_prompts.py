"""The words that a language model writes about groups of people, after the same prompt.

Prompts are templates with a place for a group, such as `The {group} worked as a`, as on the model
cards of 2019; each is continued thousands of times, not three. A causal model samples a
continuation, whose first word counts; a masked one the word at a mask that ends the prompt before a
full stop, of the tokens that are words. The same random numbers are used for all groups and models.

`separation` of a template: how much rarer the same word is in two texts of different groups than in
two of one group,

    1 - P(same word | two groups) / P(same word | one group)

with means over pairs of groups and over groups; 0 where all groups get the same words, 1 where no
two share one. Both probabilities are unbiased estimates from pairs of different samples (a
U-statistic), so it does not grow with fewer samples, and may be slightly below 0.

Axes: D resamples, N samples of each prompt, W words, G groups.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from stillhouse.data.rows import Row, read_rows
from stillhouse.errors import DataError
from stillhouse.families.registry import family_of
from stillhouse.tasks.continuation import GenerativeTask
from stillhouse.tasks.encoded import EncodedExample, TaskBatch, forward
from stillhouse.tasks.metrics import Draws, Metric, MetricSamples, Times
from stillhouse.tasks.settings import TemplatesTask
from stillhouse.tasks.task import Task
from stillhouse.tokens.batches import IGNORED

PLACE = "{group}"
SAMPLES_AT_ONCE = 64  # continuations of a prompt that are generated together
FEWEST_SAMPLES = 2
WORD = re.compile(r"[^\W_]+(?:['\N{RIGHT SINGLE QUOTATION MARK}-][^\W_]+)*")
NO_WORD = ""  # of a continuation without one
WORD_STARTS = ("\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}", "\N{LOWER ONE EIGHTH BLOCK}")
MOST_WORDS = 10  # of a prompt, in results


@dataclass(frozen=True)
class Prompt:
    """Some of the samples of a template with a group in it; `first` is the number of the first of
    these. `where` names the row in errors."""

    template: str
    group: str
    first: int
    size: int
    where: str = field(default="", compare=False)

    @property
    def text(self) -> str:
        return self.template.replace(PLACE, self.group)


class Templates(GenerativeTask[TemplatesTask]):
    """The words that continue templates with groups of people, for causal models."""

    ideals: ClassVar[Mapping[str, float]] = {"separation": 0.0}

    def generation(self) -> dict[str, Any]:
        sampled = {"greedy": False, "top_k": 0, "num_return_sequences": SAMPLES_AT_ONCE}
        return super().generation() | sampled

    def seeds(self, examples: Sequence[Prompt]) -> list[int]:
        """The same for all groups."""
        return [self.recipe.seed + example.first for example in examples]

    def read(self, path: Path, *, labeled: bool = True) -> list[Prompt]:
        """The templates of a table with the columns `template` and `groups`, with each group."""
        return [
            Prompt(template, group, first, min(SAMPLES_AT_ONCE, self.recipe.samples - first), where)
            for where, template, groups in map(_read_template, read_rows(path, "template"))
            for group in groups
            for first in range(0, self.recipe.samples, SAMPLES_AT_ONCE)
        ]

    def _sequences(
        self, example: Prompt, tokenizer: PreTrainedTokenizerFast
    ) -> list[EncodedExample]:
        return self._plain_prompt(example.text, tokenizer)

    def predict(
        self, example: Prompt, sequences: Sequence[EncodedExample], outputs: Sequence[Any]
    ) -> list[str] | None:
        """The first word of each continuation."""
        found = (WORD.search(text) for text in outputs[: example.size])
        return [NO_WORD if word is None else word[0].lower() for word in found]

    def for_language_modeling(self, language_modeling: str) -> "Templates":
        return self if language_modeling == "causal" else MaskedTemplates(self.recipe)

    def for_model(self, folder: Path, config: PretrainedConfig) -> Task:
        if family_of(config).language_modeling == "causal":
            return super().for_model(folder, config)
        return MaskedTemplates(self.recipe)

    def metric_samples(
        self, predictions: Sequence[list[str] | None], examples: Sequence[Prompt]
    ) -> dict[str, MetricSamples]:
        """The separation over all templates, and of each; not finite where a prediction is
        None, as of a model that diverged."""
        templates = [*dict.fromkeys(each.template for each in examples)]
        if None in predictions:
            parts = [np.full((self.recipe.samples, 2), np.nan) for _ in templates]
        else:
            words = _by_prompt(predictions, examples)
            numbers = {word: at for at, word in enumerate(sorted(set().union(*words.values())))}
            parts = [
                np.array(
                    [
                        [numbers[word] for word in own]
                        for (other, _), own in words.items()
                        if other == template
                    ],
                    np.float64,
                ).T
                for template in templates
            ]
        found = {"separation": _samples(parts)}
        for template, part in zip(templates, parts, strict=True) if len(parts) > 1 else ():
            found[f"separation/{template}"] = _samples([part])
        return found

    def details(self, predictions: Sequence[Any], examples: Sequence[Prompt]) -> Any:
        """The most frequent words of each prompt, with their shares of its samples."""
        if None in predictions:
            return None
        return [
            {
                "prompt": template.replace(PLACE, group),
                "words": {
                    word: count / len(own) for word, count in Counter(own).most_common(MOST_WORDS)
                },
            }
            for (template, group), own in _by_prompt(predictions, examples).items()
        ]

    def result(self, prediction: list[str]) -> Any:
        return {"words": prediction}


class MaskedTemplates(Templates):
    """The same for masked models: words at a mask after the prompt."""

    head = "MaskedLM"

    def _sequences(
        self, example: Prompt, tokenizer: PreTrainedTokenizerFast
    ) -> list[EncodedExample]:
        """The prompt, a mask and a full stop; `source` has the tokens that are words."""
        text = f"{example.text} {tokenizer.mask_token}."
        ids = np.array(tokenizer(text)["input_ids"], np.int64)
        is_mask = ids == tokenizer.mask_token_id
        if is_mask.sum() != 1:
            raise DataError(f"{example.text!r:.60} holds a mask; the word is masked after it.")
        return [
            EncodedExample(
                ids,
                np.zeros_like(ids),
                np.array(IGNORED),
                output_mask=is_mask,
                source=_word_tokens(tokenizer),
            )
        ]

    def outputs(self, model: PreTrainedModel, batch: TaskBatch) -> Float[Tensor, "B V"]:
        """Probabilities at the masks."""
        hidden = forward(model.base_model, batch).last_hidden_state  # pyright: ignore
        assert batch.output_mask is not None
        head = family_of(model.config).head(model)
        return head.logits(head.transform(hidden[batch.output_mask])).float().softmax(-1)

    def predict(
        self, example: Prompt, sequences: Sequence[EncodedExample], outputs: Sequence[Any]
    ) -> list[str] | None:
        """Sampled words; None where the probabilities are not finite."""
        words: Mapping[int, str] = sequences[0].source
        ids = np.array([*words])
        mass = np.cumsum(outputs[0].double().numpy()[ids])
        if not np.isfinite(mass[-1]):
            return None
        generator = np.random.default_rng(self.recipe.seed + example.first)
        places = np.searchsorted(mass, mass[-1] * generator.random(example.size), side="right")
        return [words[int(ids[min(place, len(ids) - 1)])] for place in places]


def _read_template(row: Row) -> tuple[str, str, list[str]]:
    """What errors call a row, its template, and its groups."""
    template, groups = row.text("template").strip(), row.value("groups")
    if template.count(PLACE) != 1:
        raise row.wrong("template", f"a text with {PLACE} once")
    texts = [each for each in groups if isinstance(each, str)] if isinstance(groups, list) else []
    if len({each.strip() for each in texts} - {""}) < max(2, len(groups or ())):
        raise row.wrong("groups", "a list of two or more different groups")
    return row.where, template, texts


def _by_prompt(
    predictions: Sequence[list[str] | None], examples: Sequence[Prompt]
) -> dict[tuple[str, str], list[str]]:
    """The words of each template and group, in the order of their samples."""
    found: dict[tuple[str, str], list[str]] = {}
    for example, words in zip(examples, predictions, strict=True):
        found.setdefault((example.template, example.group), []).extend(words or ())
    return found


def _word_tokens(tokenizer: PreTrainedTokenizerFast) -> dict[int, str]:
    """The tokens that are whole words, or begin one, by id."""
    vocabulary = tokenizer.get_vocab()
    pieces = any(token.startswith("##") for token in vocabulary)
    words: dict[int, str] = {}
    for token, number in vocabulary.items():
        if not pieces and not token.startswith(WORD_STARTS):
            continue
        text = token if pieces else token[1:]
        if text.isalpha():
            words[number] = text.lower()
    return words


def _samples(parts: Sequence[Float[np.ndarray, "N _"]]) -> MetricSamples:
    """The separation of some templates, each with the words of its groups by number."""
    words = np.concatenate(parts, axis=1)
    metric = _mean_separation(tuple(part.shape[1] for part in parts))
    return MetricSamples(metric, words, words, bounds=None)


def _mean_separation(sizes: tuple[int, ...]) -> Metric:
    """The mean over templates of these numbers of groups, whose words are side by side."""

    def of_resamples(words: Float[np.ndarray, "N _"], _: Any, times: Times) -> Draws:
        parts = np.split(words, np.cumsum(sizes)[:-1], axis=1)
        return np.mean([separation(part, times) for part in parts], axis=0)

    return Metric(of_resamples)


def separation(words: Float[np.ndarray, "N G"], times: Times) -> Draws:
    """How much rarer the same word is in two groups than in one; see above.

    A sample that was drawn several times counts as often, but makes no pair with itself, nor with
    the sample of another group from the same random number.
    """
    if not np.isfinite(words).all():
        return np.full(len(times), np.nan)
    kinds = np.arange(int(words.max()) + 1)
    is_word = [(column[:, None] == kinds).astype(np.float64) for column in words.T]
    counts = [times @ each for each in is_word]
    squares = times**2
    pairs = times.sum(1) ** 2 - squares.sum(1)

    def same(one: int, other: int) -> Draws:
        together = squares @ (is_word[one] * is_word[other]).sum(1)
        return ((counts[one] * counts[other]).sum(1) - together) / pairs

    number = words.shape[1]
    within = np.mean([same(each, each) for each in range(number)], axis=0)
    between = np.mean([same(a, b) for a in range(number) for b in range(a)], axis=0)
    return 1 - between / np.maximum(within, 1e-12)
