"""A teacher's outputs written once, for a training loop of your own.

    write_teacher_cache("cache", teacher, loader, losses, temperature=2.0)
    loss = DistillationLoss(losses, cache=ExampleCache("cache"), temperature=2.0)

The cache is the one of `distillation.teacher_outputs` (`tokens.teacher_cache`): a few tokens of
each position's distribution, the most likely or an unbiased sample. `cache_index` in the inputs
says which example of the loader each sequence is. With each example its token ids and labels are
remembered as a digest, so that another order, another tokenizer or another mask is noticed.
`batch_of` reads the batches of transformers, here and in `loss`.

Axes: B sequences, T positions.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from transformers import PreTrainedModel

from stillhouse.distillation.cache import cached_rows, chances, teacher_rows
from stillhouse.distillation.settings import CACHED_LOSSES
from stillhouse.errors import DataError, RecipeError
from stillhouse.families.base import hidden_state_size
from stillhouse.families.registry import family_of
from stillhouse.objectives.language_model import Teacher, needs_hidden
from stillhouse.objectives.settings import LossesRecipe
from stillhouse.runs.manifest import Inputs, commit_folder, read_manifest
from stillhouse.section import recipe_part
from stillhouse.tokens.batches import IGNORED, Batch, TeacherRows
from stillhouse.tokens.settings import CacheKind
from stillhouse.tokens.teacher_cache import CacheFormat, TeacherCache, part_folder, write_rows

CACHE_INDEX = "cache_index"
DIGESTS = "examples.npy"
EXAMPLES_PER_PART = 1_024


def write_teacher_cache(
    folder: str | Path,
    teacher: PreTrainedModel,
    loader: Iterable[Mapping[str, Tensor]],
    losses: Mapping[str, Any] | LossesRecipe,
    *,
    kind: CacheKind = "sampled",
    size: int = 32,
    temperature: float = 1.0,
) -> int:
    """Run the teacher once over every example of a loader that does not shuffle.

    Args:
        folder: Must not be there yet; it appears when it is complete.
        teacher: On the device where it runs; inputs are moved there.
        loader: Batches as `DistillationLoss` takes them, the examples in order.
        losses: The terms that the cache will serve: they say which rows are kept, and whether last
            hidden states are.
        kind: `sampled` keeps an unbiased sample, `top_k` the most likely tokens.
        size: Tokens kept of each position.

    Returns:
        The number of examples.

    Raises:
        RecipeError: a folder that is there, or a term that a cache cannot serve.
        DataError: no examples, or outputs beyond float16.
    """
    target, terms = Path(folder), LossesRecipe.model_validate(losses)
    if target.exists():
        raise RecipeError(f"{target} is already there. Give another folder, or move it away.")
    if unserved := set(terms.active()) - {*CACHED_LOSSES, "language_modeling"}:
        raise RecipeError(
            f"losses.{min(unserved)} needs the teacher's whole distribution, which a cache does "
            f"not hold; give the live teacher, or take {', '.join(CACHED_LOSSES)}."
        )
    own = Teacher(family_of(teacher.config), teacher.eval())
    num_tokens = len(own.family.head(teacher).weight)
    hidden = hidden_state_size(teacher.config) if needs_hidden(terms) else None
    layout = CacheFormat(
        kind, min(size, num_tokens), cached_rows(terms), num_tokens, hidden, EXAMPLES_PER_PART
    )
    settings = {"losses": recipe_part(terms), "temperature": temperature}
    inputs = Inputs("teacher-cache", settings, {})
    facts: dict[str, Any] = {"format": asdict(layout), "temperature": temperature, "num_parts": 0}
    examples = _examples(own, loader, layout, temperature)
    with commit_folder(target, inputs, facts) as temporary:
        digests: list[np.uint64] = []
        while chosen := list(islice(examples, EXAMPLES_PER_PART)):
            part = part_folder(temporary, facts["num_parts"])
            part.mkdir()
            own_digests, counts, rows = zip(*chosen, strict=True)
            write_rows(part, TeacherRows.join(rows), np.array(counts), layout)
            digests += own_digests
            facts["num_parts"] += 1
        if not digests:
            raise DataError("The loader gives no examples, so there is nothing to cache.")
        np.save(temporary / DIGESTS, np.array(digests))
    return len(digests)


def _examples(
    teacher: Teacher,
    loader: Iterable[Mapping[str, Tensor]],
    layout: CacheFormat,
    temperature: float,
) -> Iterator[tuple[np.uint64, int, TeacherRows]]:
    """Of each example: digest, number of rows, and the teacher's rows."""
    device = teacher.model.device
    batches = (batch_of(teacher.model, inputs).split(1) for inputs in loader)
    for number, each in enumerate(chain.from_iterable(batches)):
        count = each.num_rows(layout.rows)
        uniform = torch.from_numpy(chances([number], [count]))
        rows = teacher_rows(
            teacher, each.to(device), layout, uniform.to(device),
            temperature=temperature, precision="fp32",
        )  # fmt: skip
        yield digests_of(each)[0], count, rows


class ExampleCache:
    """A cache that `write_teacher_cache` wrote."""

    def __init__(self, folder: str | Path) -> None:
        """Raises:
        DataError: the folder is no such cache, or is damaged.
        """
        self.folder = Path(folder)
        manifest = read_manifest(self.folder)
        if manifest is None or DIGESTS not in manifest.files:
            raise DataError(f"{self.folder} is no cache of `write_teacher_cache`.")
        self.temperature: float = manifest.facts["temperature"]
        self._cache = TeacherCache(self.folder)
        self._digests = np.load(self.folder / DIGESTS, allow_pickle=False)

    def __len__(self) -> int:
        return len(self._digests)

    def rows(self, batch: Batch, inputs: Mapping[str, Tensor]) -> TeacherRows:
        """The teacher's rows of the examples of a batch, on the batch's device.

        Raises:
            RecipeError: the inputs do not say which examples they are.
            DataError: they are other examples than those that the cache was written for.
        """
        if CACHE_INDEX not in inputs:
            raise RecipeError(
                f"The inputs have no {CACHE_INDEX}: add the number of each example, in the order "
                "in which the cache was written. With transformers' Trainer set "
                "remove_unused_columns to False."
            )
        numbers = inputs[CACHE_INDEX].flatten().cpu().numpy()
        if len(numbers) != len(batch.input_ids) or not (
            numbers.min() >= 0 and numbers.max() < len(self)
        ):
            raise DataError(
                f"{CACHE_INDEX} is {numbers[:5].tolist()}; give one number from 0 to "
                f"{len(self) - 1} for each of the {len(batch.input_ids)} sequences."
            )
        for number, digest in zip(numbers.tolist(), digests_of(batch), strict=True):
            if self._digests[number] != digest:
                raise DataError(
                    f"Example {number} has other tokens or labels than when {self.folder} was "
                    "written. A cache needs the same order, tokenizer and masks at every epoch."
                )
        return self._cache.rows(numbers).to(batch.input_ids.device)


def digests_of(batch: Batch) -> list[np.uint64]:
    """64 bits that tell each sequence's tokens and labels from others; padding does not count."""
    real = batch.segment_ids.cpu() > 0
    return [
        _digest(ids[kept], labels[kept])
        for ids, labels, kept in zip(batch.input_ids.cpu(), batch.labels.cpu(), real, strict=True)
    ]


def _digest(ids: Int[Tensor, " T"], labels: Int[Tensor, " T"]) -> np.uint64:
    content = torch.stack([ids, labels]).numpy().astype("<i8").tobytes()
    return np.frombuffer(hashlib.blake2b(content, digest_size=8).digest(), "<u8")[0]


def batch_of(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Batch:
    """A batch in transformers' form as the objective reads it.

    Positions are counted within each sequence: padding on either side changes nothing.
    `position_ids` that begin again at 0 separate documents that do not attend to each other.

    Raises:
        RecipeError: no labels, or token types other than 0.
    """
    if "labels" not in inputs:
        raise RecipeError("The inputs have no labels; give them as for model(..., labels=labels).")
    if "token_type_ids" in inputs and bool(inputs["token_type_ids"].any()):
        raise RecipeError("The inputs have token_type_ids other than 0, which are not supported.")
    ids, labels = inputs["input_ids"], inputs["labels"]
    mask = inputs.get("attention_mask", torch.ones_like(ids)).long()
    positions = inputs.get("position_ids")
    segments = mask
    if positions is None:
        positions = (mask.cumsum(1) - 1).clamp_min(0)
    else:
        segments = (positions == 0).cumsum(1) * mask
    causal = family_of(model.config).language_modeling == "causal"
    next_tokens = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
    return Batch(
        input_ids=ids,
        labels=(next_tokens if causal else labels).masked_fill(mask == 0, IGNORED),
        segment_ids=segments,
        position_ids=positions,
        causal=causal,
        uniform=bool((segments == 1).all()),
    )
