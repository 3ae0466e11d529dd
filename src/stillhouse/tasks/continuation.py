"""Tasks of generated text: continuations of a prompt, zero-shot or few-shot.

Continuations are translations and summaries, prompted as for GPT-2 (Radford et al. 2019, Language
Models are Unsupervised Multitask Learners, sections 3.6 and 3.7), and scored by BLEU as in
sacreBLEU (Post 2018) and ROUGE with stemming (Lin 2004).
"""

import re
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from transformers import PretrainedConfig, PreTrainedTokenizerFast

from stillhouse.data.rows import Row
from stillhouse.errors import DataError, RecipeError
from stillhouse.tasks.encoded import EncodedExample, TextExample, read_texts
from stillhouse.tasks.metrics import PERCENT, MetricSamples, bleu, bleu_counts, mean, rouge_f1
from stillhouse.tasks.settings import (
    ContinuationTask,
    GenderPolarityTask,
    TemplatesTask,
    WordProblemTask,
)
from stillhouse.tasks.task import Task
from stillhouse.tasks.zero_shot import LanguageModelTask
from stillhouse.tokens.batches import IGNORED
from stillhouse.wording import counted

SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
ROUGE = ("rouge1", "rouge2", "rougeLsum")
Prompted = TypeVar(
    "Prompted", bound=ContinuationTask | WordProblemTask | TemplatesTask | GenderPolarityTask
)
FewShot = TypeVar("FewShot", bound=ContinuationTask | WordProblemTask)


class GenerativeTask(LanguageModelTask[Prompted]):
    """A task whose prediction is read from generated text."""

    def generation(self) -> dict[str, Any]:
        """How the text is generated: settings of `inference.generation.Generation`."""
        return {"max_new_tokens": self.recipe.max_new_tokens, "greedy": True}

    def seeds(self, examples: Sequence[Any]) -> Sequence[int] | None:
        """The seed of each example's continuations; by default that of `generation` for all."""
        return None

    def _plain_prompt(self, text: str, tokenizer: PreTrainedTokenizerFast) -> list[EncodedExample]:
        """A prompt that is this text alone; one that is too long loses its beginning."""
        ids = tokenizer(text, split_special_tokens=True)["input_ids"]
        assert isinstance(ids, list)
        room = self._room(1)
        return prompt_of(ids[-room:], is_truncated=len(ids) > room)

    def _room(self, num_needed: int) -> int:
        """Tokens of the longest prompt.

        Raises:
            RecipeError: fewer than are needed.
        """
        room = self.recipe.max_length - self.recipe.max_new_tokens
        if room < num_needed:
            raise RecipeError(
                f"The sequence holds {self.recipe.max_length} tokens; max_new_tokens, "
                f"{self.recipe.max_new_tokens}, leaves no room for the prompt. Lower it."
            )
        return room


class FewShotTask(GenerativeTask[FewShot]):
    """A task with examples in the prompt: the first `shots` of its file, which are not scored."""

    _shots: Sequence[TextExample] = ()

    def for_model(self, folder: Path, config: PretrainedConfig) -> Task:
        task = super().for_model(folder, config)
        assert isinstance(task, FewShotTask)
        task._shots = self._shots
        return task

    def _without_shots(self, found: Sequence[TextExample], path: Path) -> list[TextExample]:
        """The examples after the shots, which are kept for the prompts.

        Raises:
            DataError: there are none.
        """
        shots = self.recipe.shots
        if len(found) <= shots:
            raise DataError(
                f"{path} has {counted(len(found), 'row')}, of which {shots} are shown to the "
                "model; none is left to predict."
            )
        self._shots = found[:shots]
        return list(found[shots:])

    @abstractmethod
    def predict(
        self, example: Any, sequences: Sequence[EncodedExample], outputs: Sequence[str]
    ) -> str:
        """The prediction that the generated text holds."""

    def result(self, prediction: str) -> Any:
        return {"generated_text": prediction}


def prompt_of(ids: Sequence[int], *, is_truncated: bool) -> list[EncodedExample]:
    """The tokens of a prompt, as the only sequence of its example."""
    found = np.array(ids, np.int64)
    return [
        EncodedExample(found, np.zeros_like(found), np.array(IGNORED), is_truncated=is_truncated)
    ]


class Continuation(FewShotTask[ContinuationTask]):
    """A text that continues a prompt; the first examples of the file may precede it."""

    def generation(self) -> dict[str, Any]:
        top_k = self.recipe.top_k
        sampled = {"greedy": False, "top_k": top_k, "seed": self.recipe.seed}
        return super().generation() | (sampled if top_k > 1 else {})

    def read(self, path: Path, *, labeled: bool = True) -> list[TextExample]:
        """Texts and their references; the first `shots` rows are shown and not scored."""
        target = Row.text if labeled or self.recipe.shots else None
        columns, header = self.recipe.columns, self.recipe.header
        found = read_texts(path, columns, header, target, keep_blank=not labeled)
        return self._without_shots(found, path)

    def _sequences(
        self, example: TextExample, tokenizer: PreTrainedTokenizerFast
    ) -> list[EncodedExample]:
        """The prompt; a text that is too long is truncated, the prompt's end is kept."""
        before, after = self.recipe.prompt.split("{text}")
        shown = "".join(f"{before}{each.text}{after} {each.target}\n" for each in self._shots)
        ids, end = (
            tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            for text in (shown + before + example.text + after, after)
        )
        room = self._room(len(end) + 1)
        is_truncated = len(ids) > room
        if is_truncated:
            ids = [*ids[: max(0, room - len(end))], *end]
        return prompt_of(ids, is_truncated=is_truncated)

    def predict(
        self, example: TextExample, sequences: Sequence[EncodedExample], outputs: Sequence[str]
    ) -> str:
        (text,) = outputs
        text = text.strip()
        if self.recipe.stop is not None:
            text = text.partition(self.recipe.stop)[0]
        if self.recipe.sentences is not None:
            text = " ".join(SENTENCE_END.split(text)[: self.recipe.sentences])
        return text.strip()

    def metric_samples(
        self, predictions: Sequence[str], examples: Sequence[TextExample]
    ) -> dict[str, MetricSamples]:
        targets = [str(example.target) for example in examples]
        counts = bleu_counts(predictions, targets)
        found = {"bleu": MetricSamples(bleu, counts, counts, PERCENT)}
        for name, values in zip(ROUGE, rouge_f1(predictions, targets, ROUGE).T, strict=True):
            found[name] = MetricSamples(mean, values, values, PERCENT)
        return found
