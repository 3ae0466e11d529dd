"""What a causal language model writes after a prompt, held against what people wrote: translations
and summaries without training, as GPT-2 was asked for them.

Source: Radford et al. 2019 (Language Models are Unsupervised Multitask Learners), sections 3.6 and
3.7; BLEU as sacreBLEU has it (Post 2018), ROUGE with stemming (Lin 2004).

Axes: B sequences, T tokens, N tokens that are written.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from stillhouse.data.rows import Row
from stillhouse.errors import DataError, RecipeError
from stillhouse.models.special_ids import end_token_ids, without_generation_defaults
from stillhouse.models.task_models import TaskHead
from stillhouse.tasks.encoded import EncodedExample, OutputKind, TaskBatch
from stillhouse.tasks.metrics import PERCENT, MetricSamples, bleu, bleu_counts, mean, rouge_f1
from stillhouse.tasks.settings import ContinuationTask
from stillhouse.tasks.texts import TextExample, read_texts
from stillhouse.wording import counted

SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
NOTHING = -1  # where nothing is written
ROUGE = ("rouge1", "rouge2", "rougeLsum")


class Continuation:
    """A text that goes on from a prompt; examples of the file may stand before it."""

    head: TaskHead = "CausalLM"
    says: OutputKind = "classes"
    per_token = False
    settings: Mapping[str, Any] = {}

    def __init__(self, recipe: ContinuationTask) -> None:
        self.recipe = recipe
        self._shown: list[TextExample] = []

    def read(self, path: Path, *, targets: bool = True) -> list[TextExample]:
        """Texts, and what should follow; the first `shots` rows are shown and not asked."""
        wanted = self.recipe.shots
        target = Row.text if targets or wanted else None
        columns, header = self.recipe.columns, self.recipe.header
        found = read_texts(path, columns, header, target, keep_blank=not targets)
        if len(found) <= wanted:
            raise DataError(
                f"{path} has {counted(len(found), 'row')}, of which {wanted} are shown to the "
                "model; nothing is left to ask."
            )
        self._shown = found[:wanted]
        return found[wanted:]

    def read_training(self, path: Path) -> list[TextExample]:
        raise RecipeError(
            "A continuation is asked of a model as it is. To train one on text, give the text as "
            "`corpus`."
        )

    def encode(
        self, examples: Sequence[TextExample], tokenizer: PreTrainedTokenizerFast
    ) -> list[list[EncodedExample]]:
        """The prompt, which keeps its beginning and its end where the text is too long."""
        return [[self._encoded(example, tokenizer)] for example in examples]

    def _encoded(self, example: TextExample, tokenizer: PreTrainedTokenizerFast) -> EncodedExample:
        before, after = self.recipe.prompt.split("{text}")
        shown = "".join(f"{before}{each.text}{after} {each.target}\n" for each in self._shown)
        ids, end = (
            tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            for text in (shown + before + example.text + after, after)
        )
        room = self.recipe.length - self.recipe.max_new_tokens
        if room <= len(end):
            raise RecipeError(
                f"The model reads and writes {self.recipe.length} tokens; max_new_tokens, "
                f"{self.recipe.max_new_tokens}, leaves no room for the prompt. Lower it."
            )
        is_cut = len(ids) > room
        if is_cut:
            ids = [*ids[: max(0, room - len(end))], *end]
        found = np.array(ids, np.int64)
        return EncodedExample(found, np.zeros_like(found), is_cut=is_cut, source=tokenizer)

    def outputs(self, model: PreTrainedModel, batch: TaskBatch) -> Float[Tensor, "B N"]:
        """The ids of the tokens that are written, up to 16.7 million exactly; NOTHING from an end
        token on."""
        ids, mask = _padded_in_front(batch)
        # transformers types `generate` as a method of a mixin.
        write = cast("Any", model).generate
        sampled: dict[str, Any] = {"do_sample": False}
        if self.recipe.top_k > 1:
            sampled = {"do_sample": True, "top_k": self.recipe.top_k}
        with torch.random.fork_rng(), without_generation_defaults(model):
            torch.manual_seed(self.recipe.seed)
            written = write(
                ids,
                attention_mask=mask,
                max_new_tokens=self.recipe.max_new_tokens,
                **sampled,
            )
        new = written[:, ids.shape[1] :]
        ends = torch.tensor(sorted(end_token_ids(model)), dtype=new.dtype, device=new.device)
        ended = torch.isin(new, ends).cumsum(1) > 0
        missing = self.recipe.max_new_tokens - new.shape[1]  # where all end before
        return F.pad(new.masked_fill(ended, NOTHING), (0, missing), value=NOTHING).float()

    def predict(
        self, example: TextExample, sequences: Sequence[EncodedExample], outputs: Sequence[Tensor]
    ) -> str:
        (sequence,), (output,) = sequences, outputs
        ids = [id for id in output.long().tolist() if id != NOTHING]
        text = sequence.source.decode(ids, skip_special_tokens=True).strip()
        if self.recipe.stop is not None:
            text = text.partition(self.recipe.stop)[0]
        if self.recipe.sentences is not None:
            text = " ".join(SENTENCE_END.split(text)[: self.recipe.sentences])
        return text.strip()

    def measures(
        self, predictions: Sequence[str], examples: Sequence[TextExample]
    ) -> dict[str, MetricSamples]:
        targets = [str(example.target) for example in examples]
        counts = bleu_counts(predictions, targets)
        found = {"bleu": MetricSamples(bleu, counts, counts, PERCENT)}
        for name, values in zip(ROUGE, rouge_f1(predictions, targets, ROUGE).T, strict=True):
            found[name] = MetricSamples(mean, values, values, PERCENT)
        return found

    def result(self, prediction: str) -> Any:
        return {"generated_text": prediction}


def _padded_in_front(batch: TaskBatch) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]:
    """Tokens and their mask with the padding before the text, where writing goes on from."""
    length = batch.input_ids.shape[1]
    missing = length - batch.attention_mask.sum(1, keepdim=True)
    places = (torch.arange(length, device=missing.device) - missing) % length
    return batch.input_ids.gather(1, places), batch.attention_mask.gather(1, places)
