"""A causal model that runs several sequences at once, each with its own keys and values.

Every sequence has a slot of the KV cache. In one step some sequences add one token and others a
chunk of their prompt. The tokens of all of them pass through the model's matrices together; only
attention treats sequences separately. The modules are those of transformers; a family defines the
order in which they run (`Family.token_runner`). Nothing is padded.

Axes: N tokens of a step, R rows whose logits are requested, Hq heads of queries, H heads of keys
and values, P slots, L tokens kept in a slot, D size of a head, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from stillhouse.errors import ModelError
from stillhouse.families.base import Family

IMPOSSIBLE = -1e30  # as a logit; finite, because infinite logits are taken for a damaged model
FIRST_CAPACITY = 256  # tokens of a slot; doubled whenever a sequence outgrows it


@dataclass
class Slot:
    """Where a sequence is kept: its index in the cache, and how many of its tokens are there."""

    index: int
    length: int = 0


@dataclass(frozen=True)
class Chunk:
    """Tokens that a sequence adds in a step; logits are returned after the last `num_logits`."""

    slot: Slot
    ids: Sequence[int]
    num_logits: int = 1


class SlottedModel:
    """A causal model with a KV cache of `num_slots` sequences. Not thread-safe.

    It runs the modules that the model has at construction.

    Attributes:
        context: Tokens of a sequence, at most.
        num_tokens: V: the logits end at the last id that a token has, whatever the embedding is
            padded to (50,304 rows for 50,257 tokens).
    """

    def __init__(
        self,
        family: Family,
        model: PreTrainedModel,
        num_slots: int,
        unused_ids: Sequence[int] = (),
        *,
        max_length: int | None = None,
    ) -> None:
        """
        Args:
            unused_ids: Ids that no token has (see `tokens.tokenizer.unused_ids`); they have
                probability zero.
            max_length: Tokens of a sequence; by default as many as the model takes.
        """
        if family.language_modeling != "causal":
            raise ModelError(
                f"A {family.model_type} model fills masks; it does not generate text. Give a "
                "causal model, such as a GPT-2 student."
            )
        self.model = model
        assert family.token_runner is not None, "every causal family has it"
        self._run_tokens = family.token_runner(model)
        self._final_norm = model.get_submodule(str(family.final_norm))
        self._head = cast(nn.Module, model.get_output_embeddings())
        self.context = max_length or family.num_positions(model.config)
        self.num_slots = num_slots
        used = set(range(model.config.vocab_size)).difference(unused_ids)
        self.num_tokens = max(used) + 1
        self._gaps = torch.tensor(
            [id for id in unused_ids if id < self.num_tokens], dtype=torch.long
        )
        self._offset = family.position_offset(model.config)
        self._slots: list[Slot] = []
        self._caches: dict[int, KVCache] = {}  # by layer
        self.capacity = min(FIRST_CAPACITY, self.context)

    @property
    def num_free(self) -> int:
        """Free slots."""
        return self.num_slots - len(self._slots)

    def open(self) -> Slot:
        """A slot for a new sequence."""
        assert self.num_free > 0, "no slot is free"
        self._slots.append(Slot(len(self._slots)))
        return self._slots[-1]

    @torch.inference_mode()
    def copy(self, slot: Slot) -> Slot:
        """A new slot with the same tokens."""
        new = self.open()
        self._copy(slot, new)
        new.length = slot.length
        return new

    @torch.inference_mode()
    def close(self, slot: Slot, *, is_finite: bool = True) -> None:
        """Free a slot. The last slot moves to its index: slots in use stay contiguous, so a step
        reads the cache without copying.

        Args:
            is_finite: False if the sequence gave NaN or infinity. Those must not stay in the cache:
                a later, shorter sequence has them beside it with weight zero, and zero times
                infinity is NaN.
        """
        if not is_finite:
            for cache in self._caches.values():
                cache.clear(slot)
        last = self._slots.pop()
        if last is not slot:
            self._copy(last, slot)
            last.index = slot.index
            self._slots[slot.index] = last

    def clear(self) -> None:
        """Free all slots and the memory of the cache."""
        self._slots.clear()
        self._caches.clear()

    def _copy(self, source: Slot, target: Slot) -> None:
        for cache in self._caches.values():
            cache.copy(source, target)

    @torch.inference_mode()
    def forward(self, chunks: Sequence[Chunk]) -> Float[Tensor, "R V"]:
        """Add each chunk to the end of its sequence; returns the requested logits in order, in
        float32 on the CPU.

        To continue from an earlier token, lower `slot.length` first.
        """
        device = self.model.device
        self._reserve(max(chunk.slot.length + len(chunk.ids) for chunk in chunks))
        step = _Step(self, chunks)
        ids = torch.tensor([id for chunk in chunks for id in chunk.ids], device=device)
        hidden = self._run_tokens(ids, step.positions + self._offset, step.attend)
        if (rows := _requested_rows(chunks)) != list(range(len(hidden))):
            hidden = hidden[torch.tensor(rows, device=device)]
        logits = self._head(self._final_norm(hidden))[:, : self.num_tokens].float().cpu()
        for chunk in chunks:
            chunk.slot.length += len(chunk.ids)
        return logits.index_fill(1, self._gaps, IMPOSSIBLE) if len(self._gaps) else logits

    def _reserve(self, length: int) -> None:
        """Grow the cache, at least twofold, if a sequence would outgrow it."""
        if length > self.capacity:
            self.capacity = min(self.context, max(length, 2 * self.capacity))
            for cache in self._caches.values():
                cache.grow(self.capacity, len(self._slots))

    def cache(self, layer: int, like: Float[Tensor, "N 2 H D"]) -> "KVCache":
        """The keys and values of a layer."""
        if layer not in self._caches:
            self._caches[layer] = KVCache(self.num_slots, self.capacity, like)
        return self._caches[layer]


class KVCache:
    """The keys and values of a layer; on the CPU, memory is allocated as it is written to."""

    def __init__(self, num_slots: int, capacity: int, like: Float[Tensor, "N 2 H D"]) -> None:
        self._use(like.new_zeros(num_slots, capacity, *like.shape[1:]))

    def _use(self, storage: Float[Tensor, "P L 2 H D"]) -> None:
        self._storage = storage
        self._rows = storage.flatten(0, 1)  # views, made once
        self.keys, self.values = storage.permute(2, 0, 3, 1, 4)  # P H L D

    def grow(self, capacity: int, num_used: int) -> None:
        """Room for more tokens; the first `num_used` slots keep theirs."""
        old = self._storage
        new = old.new_zeros(len(old), capacity, *old.shape[2:])
        new[:num_used, : old.shape[1]] = old[:num_used]
        self._use(new)

    def write(self, rows: Int[Tensor, " N"], new: Float[Tensor, "N 2 H D"]) -> None:
        """Store keys and values; a row is slot * capacity + position."""
        self._rows.index_copy_(0, rows, new)

    def copy(self, source: Slot, target: Slot) -> None:
        self._storage[target.index, : source.length] = self._storage[source.index, : source.length]

    def clear(self, slot: Slot) -> None:
        self._storage[slot.index] = 0


def _requested_rows(chunks: Sequence[Chunk]) -> list[int]:
    rows, end = [], 0
    for chunk in chunks:
        end += len(chunk.ids)
        rows += range(end - chunk.num_logits, end)
    return rows


class _Step:
    """Which tokens of a step belong to which slot; built once and used by every layer."""

    def __init__(self, model: SlottedModel, chunks: Sequence[Chunk]) -> None:
        device = model.model.device
        self._model = model
        slots, positions, singles = [], [], []
        self._longer: list[_Longer] = []
        for chunk in chunks:
            first, count = len(slots), len(chunk.ids)
            start = chunk.slot.length
            slots += [chunk.slot.index] * count
            positions += range(start, start + count)
            if count == 1:
                singles.append((first, chunk.slot.index, start + 1))
            else:
                self._longer.append(_Longer(first, chunk.slot.index, start, count, device))
        self.positions: Int[Tensor, " N"] = torch.tensor(positions, device=device)
        rows = [slot * model.capacity + at for slot, at in zip(slots, positions, strict=True)]
        self._rows = torch.tensor(rows, device=device)
        self._singles = _Singles(singles, device) if singles else None

    def attend(
        self,
        layer: int,
        query: Float[Tensor, "N Hq D"],
        key_and_value: Float[Tensor, "N 2 H D"],
        scale: float,
    ) -> Float[Tensor, "N Hq D"]:
        """Store the new keys and values; each token attends to its own sequence up to itself."""
        cache = self._model.cache(layer, key_and_value)
        cache.write(self._rows, key_and_value)
        keys, values = cache.keys, cache.values
        if self._singles is not None and not self._longer:
            return self._singles.attend(query, keys, values, scale)
        attended = torch.empty_like(query)
        if self._singles is not None:
            rows = self._singles.rows
            attended[rows] = self._singles.attend(query[rows], keys, values, scale)
        for longer in self._longer:
            attended[longer.rows] = longer.attend(query[longer.rows], keys, values, scale)
        return attended


class _Singles:
    """The sequences that add one token, all in one call of attention."""

    def __init__(self, singles: Sequence[tuple[int, int, int]], device: torch.device) -> None:
        rows, slots, lengths = (list(column) for column in zip(*singles, strict=True))
        self.rows = torch.tensor(rows, device=device)
        first, end = min(slots), max(slots) + 1
        self._span = (slice(first, end), slice(None), slice(max(lengths)))
        self._in_order = slots == list(range(first, end))
        self._slots = torch.tensor(slots, device=device) - first
        self._visible = None
        if not self._in_order or min(lengths) < max(lengths):
            # Slots in between that add nothing, or a longer chunk, are computed and dropped.
            seen = torch.ones(end - first, dtype=torch.long)
            seen[self._slots.cpu()] = torch.tensor(lengths)
            visible = torch.arange(max(lengths)) < seen[:, None]
            self._visible = visible[:, None, None].to(device)

    def attend(
        self, query: Tensor, keys: Tensor, values: Tensor, scale: float
    ) -> Float[Tensor, "N H D"]:
        if not self._in_order:
            spread = query.new_zeros(self._span[0].stop - self._span[0].start, *query.shape[1:])
            spread[self._slots] = query
            query = spread
        keys, values = keys[self._span], values[self._span]
        attended = _attention(query.unsqueeze(2), keys, values, self._visible, scale).squeeze(2)
        return attended if self._in_order else attended[self._slots]


class _Longer:
    """One sequence that adds several tokens."""

    def __init__(self, first: int, slot: int, start: int, count: int, device: torch.device) -> None:
        self.rows = slice(first, first + count)
        self._span = (slice(slot, slot + 1), slice(None), slice(start + count))
        self._visible = torch.ones(count, start + count, dtype=torch.bool, device=device).tril(
            start
        )

    def attend(
        self, query: Tensor, keys: Tensor, values: Tensor, scale: float
    ) -> Float[Tensor, "N H D"]:
        queries = query.transpose(0, 1)[None]
        attended = _attention(queries, keys[self._span], values[self._span], self._visible, scale)
        return attended[0].transpose(0, 1)


def _attention(
    query: Float[Tensor, "P Hq T D"],
    keys: Float[Tensor, "P H L D"],
    values: Float[Tensor, "P H L D"],
    visible: Tensor | None,
    scale: float,
) -> Float[Tensor, "P Hq T D"]:
    """PyTorch's attention, grouped if there are fewer heads of keys than of queries."""
    return nn.functional.scaled_dot_product_attention(
        query,
        keys,
        values,
        attn_mask=visible,
        scale=scale,
        enable_gqa=query.shape[1] != keys.shape[1],
    )
