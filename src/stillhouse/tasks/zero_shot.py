"""Zero-shot tasks of causal language models; of these, the last word of a text.

The last word is that of LAMBADA (Paperno et al. 2016, arXiv:1606.06031), its tokens counted as in
lm-eval's task `lambada`: those that the word adds to the text before it, without a start token.

Axes: B sequences, T tokens.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from stillhouse.data.rows import read_rows
from stillhouse.errors import DataError, ModelError, RecipeError
from stillhouse.families.registry import family_of
from stillhouse.models.task_models import head_of
from stillhouse.section import LanguageModeling
from stillhouse.tasks.encoded import EncodedExample, TaskBatch, TextExample, forward
from stillhouse.tasks.metrics import Draws, Metric, MetricSamples, Times, mean
from stillhouse.tasks.settings import LastWordTask
from stillhouse.tasks.task import Settings, Task
from stillhouse.tokens.batches import IGNORED

LOG_PROBABILITY, IS_GREEDY = 0, 1
SAMPLE = 300  # examples of a data set that are encoded before a run


def target_log_probabilities(model: PreTrainedModel, batch: TaskBatch) -> Float[Tensor, "B 2 T"]:
    """For each target its log-probability, and 1 where it is the most probable token, or 0."""
    hidden = forward(model.base_model, batch).last_hidden_state  # pyright: ignore
    assert batch.output_mask is not None
    head = family_of(model.config).head(model)
    transformed = head.transform(hidden[batch.output_mask])
    logits = head.logits(transformed).float()
    targets = batch.targets[batch.output_mask]
    log_probability = -F.cross_entropy(logits, targets, reduction="none")
    found = logits.new_zeros(2, *batch.output_mask.shape)
    found[:, batch.output_mask] = torch.stack(
        [log_probability, (logits.argmax(-1) == targets).float()]
    )
    return found.transpose(0, 1)


@dataclass(frozen=True)
class LastWordPrediction:
    """The word's log-probability in nats; whether greedy decoding gives it, and its last token."""

    log_probability: float
    is_greedy: bool
    is_last_token_greedy: bool


class LanguageModelTask(Task[Settings]):
    """A task that a causal language model performs without training for it."""

    head = "CausalLM"
    trainable = False
    ideals: ClassVar[Mapping[str, float]] = {}  # of metrics of bias, what an unbiased model has

    def for_model(self, folder: Path, config: PretrainedConfig) -> "Task":
        """With sequences of at most the model's context."""
        family = family_of(config)
        if family.language_modeling != "causal" or head_of(config) is not None:
            raise ModelError(
                f"The task {self.recipe.kind} is for causal language models; the one in {folder} "
                f"is a {(config.architectures or [family.model_type])[0]}."
            )
        length = min(self.recipe.max_length, family.num_positions(config))
        return type(self)(self.recipe.model_copy(update={"max_length": length}))

    def read_training(self, path: Path) -> list[Any]:
        raise RecipeError(
            f"The task {self.recipe.kind} is zero-shot: a model is scored on it without training "
            "(`stillhouse score`). To train one on text, give the text as `corpus`."
        )

    def encode(
        self, examples: Sequence[Any], tokenizer: PreTrainedTokenizerFast
    ) -> list[list[EncodedExample]]:
        found = []
        for example in examples:
            try:
                found.append(self._sequences(example, tokenizer))
            except DataError as error:
                raise DataError(
                    f"{example.where}: {error}" if example.where else str(error)
                ) from error
        return found

    def for_language_modeling(self, language_modeling: LanguageModeling) -> "LanguageModelTask":
        """The task for models of this kind.

        Raises:
            RecipeError: it is not for them.
        """
        if language_modeling == "masked":
            raise RecipeError(
                f"The task {self.recipe.kind} is for causal models, and those of the recipe are "
                "masked (tokens.language_modeling). Leave the task out."
            )
        return self

    @abstractmethod
    def _sequences(self, example: Any, tokenizer: PreTrainedTokenizerFast) -> list[EncodedExample]:
        """The sequences of an example.

        Raises:
            DataError: what the tokenizer makes of it cannot be scored.
        """

    def details(self, predictions: Sequence[Any], examples: Sequence[Any]) -> Any:
        """What results show beside the metrics; None for nothing."""
        return None

    def chance(self, examples: Sequence[Any]) -> float:
        """The score of a guess."""
        return 0.0


class LastWord(LanguageModelTask[LastWordTask]):
    """The probability of a text's last word."""

    per_token = True

    def read(self, path: Path, *, labeled: bool = True) -> list[TextExample]:
        """Texts of several words, without white space at their end."""
        found = []
        for row in read_rows(path, self.recipe.column, keep_blank=not labeled, plain=True):
            text = row.text(self.recipe.column).rstrip()
            if not text.rpartition(" ")[0].strip():
                raise DataError(f"{row.where}: {text!r:.60} is one word, so nothing precedes it.")
            found.append(TextExample(text, where=row.where))
        return found

    def _sequences(
        self, example: TextExample, tokenizer: PreTrainedTokenizerFast
    ) -> list[EncodedExample]:
        """The target of each token is the next one, where that belongs to the last word."""
        before, _, last = example.text.rpartition(" ")
        context, whole = (
            tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            for text in (before, example.text)
        )
        if len(whole) <= len(context):
            raise DataError(f"The last word {' ' + last!r} adds no token to {before!r:.60}.")
        first = max(0, len(whole) - self.recipe.max_length - 1)
        ids = np.array(whole[first:], np.int64)
        is_target = np.arange(len(ids) - 1) >= len(context) - first - 1
        return [
            EncodedExample(
                ids[:-1],
                np.zeros_like(ids[:-1]),
                np.where(is_target, ids[1:], IGNORED),
                output_mask=is_target,
                is_truncated=first > 0,
            )
        ]

    def outputs(self, model: PreTrainedModel, batch: TaskBatch) -> Float[Tensor, "B 2 T"]:
        return target_log_probabilities(model, batch)

    def predict(
        self,
        example: TextExample,
        sequences: Sequence[EncodedExample],
        outputs: Sequence[Tensor],
    ) -> LastWordPrediction:
        (sequence,), (output,) = sequences, outputs
        assert sequence.output_mask is not None
        places = np.flatnonzero(sequence.output_mask)
        is_greedy = output[IS_GREEDY, places].bool()
        return LastWordPrediction(
            float(output[LOG_PROBABILITY, places].double().sum()),
            bool(is_greedy.all()),
            bool(is_greedy[-1]),
        )

    def metric_samples(
        self, predictions: Sequence[LastWordPrediction], examples: Sequence[TextExample]
    ) -> dict[str, MetricSamples]:
        nats = np.array([-each.log_probability for each in predictions])
        words, tokens = (
            np.where(np.isfinite(nats), [getattr(each, name) for each in predictions], np.nan)
            for name in ("is_greedy", "is_last_token_greedy")
        )
        return {
            "last_word": MetricSamples(mean, words, words),
            "last_token": MetricSamples(mean, tokens, tokens),
            "perplexity": MetricSamples(_perplexity, nats, nats, bounds=None),
        }

    def result(self, prediction: LastWordPrediction) -> Any:
        return {
            "log_probability": prediction.log_probability,
            "is_greedy": prediction.is_greedy,
        }


@Metric
def _perplexity(nats: np.ndarray, _: np.ndarray, times: Times) -> Draws:
    """Perplexity per word; lower is better."""
    return np.exp(times @ nats / times.sum(1))


def spread_sample(examples: Sequence[Any]) -> Sequence[Any]:
    """Up to SAMPLE examples, evenly spread over all."""
    return examples[:: max(1, -(-len(examples) // SAMPLE))]
