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
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from stillhouse.errors import ModelError
from stillhouse.families.attention import Scores, softcapped
from stillhouse.families.base import Family, softcap_of

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
        self._run_tokens = family.run_tokens(model)
        self._softcap = softcap_of(model.config)
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
        if step.requested != list(range(len(hidden))):
            hidden = hidden[torch.tensor(step.requested, dtype=torch.long, device=device)]
        logits = self._head(hidden)[:, : self.num_tokens].float().cpu()
        logits = softcapped(logits, self._softcap)
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


class _Step:
    """Which tokens of a step belong to which slot; built once and used by every layer.

    Attributes:
        requested: The tokens whose logits are requested.
    """

    def __init__(self, model: SlottedModel, chunks: Sequence[Chunk]) -> None:
        device = model.model.device
        self._model = model
        self.requested: list[int] = []
        slots, positions, singles = [], [], []
        self._groups: list[_Group] = []
        for chunk in chunks:
            first, count, start = len(slots), len(chunk.ids), chunk.slot.length
            slots += [chunk.slot.index] * count
            positions += range(start, start + count)
            self.requested += range(first + count - chunk.num_logits, first + count)
            if count == 1:
                singles.append((first, chunk.slot.index, start + 1))
            else:
                own = slice(chunk.slot.index, chunk.slot.index + 1)
                ends = torch.arange(start + 1, start + count + 1)[None]
                self._groups.append(_Group(slice(first, first + count), own, ends, device))
        self.positions: Int[Tensor, " N"] = torch.tensor(positions, device=device)
        rows = [slot * model.capacity + at for slot, at in zip(slots, positions, strict=True)]
        self._rows = torch.tensor(rows, device=device)
        if singles:
            self._groups.append(_singles(singles, device))

    def attend(
        self,
        layer: int,
        query: Float[Tensor, "N Hq D"],
        key_and_value: Float[Tensor, "N 2 H D"],
        scores: Scores,
    ) -> Float[Tensor, "N Hq D"]:
        """Store the new keys and values; each token attends to its own sequence up to itself."""
        cache = self._model.cache(layer, key_and_value)
        cache.write(self._rows, key_and_value)
        if len(self._groups) == 1:
            return self._groups[0].attend(query, cache, scores)
        attended = torch.empty_like(query)
        for group in self._groups:
            attended[group.rows] = group.attend(query[group.rows], cache, scores)
        return attended


@dataclass
class _Group:
    """Sequences that add equally many tokens, in one call of attention.

    Attributes:
        rows: Their tokens among those of the step.
        slots: The part of the cache that is read: P neighboring slots.
        ends: How many tokens of its slot each token attends to, itself the last.
        places: The slot of each sequence among `slots`; None if they are the same in number and
            order.
    """

    rows: slice | Int[Tensor, " N"]
    slots: slice
    ends: Int[Tensor, "P T"]
    device: torch.device
    places: Int[Tensor, " S"] | None = None

    def __post_init__(self) -> None:
        self._length = int(self.ends.max())
        self._sees_all = int(self.ends.min()) == self._length
        self._visible: dict[int | None, Tensor] = {}  # by window

    def attend(
        self, query: Float[Tensor, "N Hq D"], cache: KVCache, scores: Scores
    ) -> Float[Tensor, "N Hq D"]:
        num_tokens = self.ends.shape[1]
        queries = query.view(-1, num_tokens, *query.shape[1:]).transpose(1, 2)  # S Hq T D
        if self.places is not None:
            spread = queries.new_zeros(len(self.ends), *queries.shape[1:])
            queries = spread.index_copy_(0, self.places, queries)
        keys = cache.keys[self.slots, :, : self._length]
        values = cache.values[self.slots, :, : self._length]
        attended = _attention(queries, keys, values, self._visible_within(scores.window), scores)
        if self.places is not None:
            attended = attended[self.places]
        return attended.transpose(1, 2).flatten(0, 1)

    def _visible_within(self, window: int | None) -> Bool[Tensor, "P 1 T L"] | None:
        """The tokens of its slot that each token attends to; None for all."""
        if window is not None and window >= self._length:
            window = None
        if window is None and self._sees_all:
            return None
        if window not in self._visible:
            places, ends = torch.arange(self._length), self.ends[:, None, :, None]
            seen = places < ends
            if window is not None:
                seen &= places >= ends - window
            self._visible[window] = seen.to(self.device)
        return self._visible[window]


def _attention(
    query: Float[Tensor, "P Hq T D"],
    keys: Float[Tensor, "P H L D"],
    values: Float[Tensor, "P H L D"],
    visible: Bool[Tensor, "P 1 T L"] | None,
    scores: Scores,
) -> Float[Tensor, "P Hq T D"]:
    """PyTorch's attention; spelled out with a softcap, which it does not have."""
    if scores.softcap is None:
        return nn.functional.scaled_dot_product_attention(
            query,
            keys,
            values,
            attn_mask=visible,
            scale=scores.scale,
            enable_gqa=query.shape[1] != keys.shape[1],
        )
    shared = query.shape[1] // keys.shape[1]
    keys, values = (each.repeat_interleave(shared, 1) for each in (keys, values))
    logits = softcapped(scores.scale * query @ keys.transpose(2, 3), scores.softcap)
    if visible is not None:
        logits = logits.masked_fill(~visible, float("-inf"))
    return logits.softmax(-1) @ values


def _singles(singles: Sequence[tuple[int, int, int]], device: torch.device) -> _Group:
    """The sequences that add one token: each one's row, slot and length."""
    rows, slots, lengths = zip(*singles, strict=True)
    used = range(min(slots), max(slots) + 1)
    # Slots in between that add nothing, or a longer chunk, are computed and dropped.
    length_of = dict(zip(slots, lengths, strict=True))
    ends = torch.tensor([[length_of.get(slot, 1)] for slot in used])
    places = None
    if list(slots) != list(used):
        places = torch.tensor([slot - used.start for slot in slots], device=device)
    at = torch.tensor(rows, device=device)
    return _Group(at, slice(used.start, used.stop), ends, device, places)
