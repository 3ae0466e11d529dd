"""The last word of a passage, as LAMBADA asks for it of a causal language model.

The word's tokens are those that it adds to the passage before it; the model gives each one its
probability after all tokens before, and no end of text stands in front.

Source: Paperno et al. 2016 (arXiv:1606.06031); the tokens as lm-eval's task `lambada` counts them.

Axes: B sequences, T tokens, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from stillhouse.data.rows import read_rows
from stillhouse.errors import DataError, RecipeError
from stillhouse.families.registry import family_of
from stillhouse.models.task_models import TaskHead
from stillhouse.tasks.encoded import EncodedExample, OutputKind, TaskBatch
from stillhouse.tasks.metrics import Draws, Metric, MetricSamples, Times, mean
from stillhouse.tasks.model_inputs import run
from stillhouse.tasks.settings import LastWordTask
from stillhouse.tokens.batches import IGNORED

LOG_PROBABILITY, IS_LIKELIEST = 0, 1


@dataclass(frozen=True)
class Passage:
    """A passage up to its last word, and that word with what stands before it."""

    before: str
    last: str


@dataclass(frozen=True)
class SaidOfTheWord:
    """The word's log-probability in nats; whether it, and its last token, are the likeliest."""

    log_probability: float
    is_likeliest: bool
    is_last_token_likeliest: bool


class LastWord:
    """How well a language model foresees how a passage ends."""

    head: TaskHead = "CausalLM"
    says: OutputKind = "classes"
    per_token = True
    settings: Mapping[str, Any] = {}

    def __init__(self, recipe: LastWordTask) -> None:
        self.recipe = recipe

    def read(self, path: Path, *, targets: bool = True) -> list[Passage]:
        found = []
        for row in read_rows(path, keep_blank=not targets, text_column=self.recipe.column):
            text = row.text(self.recipe.column).rstrip()
            before, _, last = text.rpartition(" ")
            if not before.strip():
                raise DataError(f"{row.where}: {text!r:.60} is one word, so nothing precedes it.")
            found.append(Passage(before, f" {last}"))
        return found

    def read_training(self, path: Path) -> list[Passage]:
        raise RecipeError("Last words are asked of a model as it is.")

    def encode(
        self, examples: Sequence[Passage], tokenizer: PreTrainedTokenizerFast
    ) -> list[list[EncodedExample]]:
        return [[self._encoded(passage, tokenizer)] for passage in examples]

    def _encoded(self, passage: Passage, tokenizer: PreTrainedTokenizerFast) -> EncodedExample:
        """Each token is asked for its successor, where that is one of the last word's."""
        before, whole = (
            tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            for text in (passage.before, passage.before + passage.last)
        )
        if len(whole) <= len(before):
            raise DataError(
                f"The last word {passage.last!r} adds no token to {passage.before!r:.60}."
            )
        first = max(0, len(whole) - self.recipe.length - 1)
        ids = np.array(whole[first:], np.int64)
        asked = np.arange(len(ids) - 1) >= len(before) - first - 1
        return EncodedExample(
            ids[:-1],
            np.zeros_like(ids[:-1]),
            np.where(asked, ids[1:], IGNORED),
            choices=asked,
            is_cut=first > 0,
        )

    def outputs(self, model: PreTrainedModel, batch: TaskBatch) -> Float[Tensor, "B 2 T"]:
        """For the tokens that are asked: the log-probability of the right successor, and whether
        it is the likeliest (1 or 0)."""
        hidden = run(model.base_model, batch).last_hidden_state  # pyright: ignore
        assert batch.choices is not None
        head = family_of(model.config).head(model)
        asked = head.transform(hidden[batch.choices])
        logits = torch.nn.functional.linear(asked, head.weight, head.bias).float()
        right = batch.targets[batch.choices]
        log_probability = -torch.nn.functional.cross_entropy(logits, right, reduction="none")
        found = logits.new_zeros(2, *batch.choices.shape)
        found[:, batch.choices] = torch.stack(
            [log_probability, (logits.argmax(-1) == right).float()]
        )
        return found.transpose(0, 1)

    def predict(
        self, example: Passage, sequences: Sequence[EncodedExample], outputs: Sequence[Tensor]
    ) -> SaidOfTheWord:
        (sequence,), (output,) = sequences, outputs
        assert sequence.choices is not None
        places = np.flatnonzero(sequence.choices)
        top_logprobs = output[IS_LIKELIEST, places].bool()
        return SaidOfTheWord(
            float(output[LOG_PROBABILITY, places].double().sum()),
            bool(top_logprobs.all()),
            bool(top_logprobs[-1]),
        )

    def measures(
        self, predictions: Sequence[SaidOfTheWord], examples: Sequence[Passage]
    ) -> dict[str, MetricSamples]:
        words = np.array([each.is_likeliest for each in predictions], float)
        tokens = np.array([each.is_last_token_likeliest for each in predictions], float)
        nats = np.array([-each.log_probability for each in predictions])
        return {
            "last_word": MetricSamples(mean, words, words),
            "last_token": MetricSamples(mean, tokens, tokens),
            "perplexity": MetricSamples(_perplexity, nats, nats, bounds=None),
        }

    def result(self, prediction: SaidOfTheWord) -> Any:
        return {
            "log_probability": prediction.log_probability,
            "is_likeliest": prediction.is_likeliest,
        }


@Metric
def _perplexity(nats: np.ndarray, _: np.ndarray, times: Times) -> Draws:
    """Of a word; the lower the better."""
    return np.exp(times @ nats / times.sum(1))
