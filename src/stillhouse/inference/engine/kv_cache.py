"""A causal model that reads several sequences at once, each at its own pace.

Every sequence has a place, which keeps the keys and values of its tokens; in one step some places
read one token and others a piece of a prompt. The tokens of all of them go through the model's
matrices side by side, and only attention tells them apart. The modules are those of transformers;
a family says in which order they run (`Family.token_runner`). Nothing is ever padded.

Axes: N tokens of a step, R rows whose logits are wanted, H heads, P places, L tokens kept in a
place, D size of a head, V vocabulary.
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

IMPOSSIBLE = -1e30  # as a logit; finite, for what is not finite is a model's fault


@dataclass
class Slot:
    """Where a sequence is kept: its slot, and how many tokens it has read."""

    slot: int
    length: int = 0


@dataclass(frozen=True)
class Chunk:
    """Tokens that a place reads in a step; for the last `num_logits` of them, what may follow."""

    place: Slot
    ids: Sequence[int]
    num_logits: int = 1


class SlottedModel:
    """A causal model with room for `num_slots` sequences.

    It runs the modules that the model has when this is made. Not for use from several threads at
    once.

    Attributes:
        num_tokens: V: the logits end with the last id that a token has, whatever the embedding is
            padded to (50,304 rows for 50,257 tokens).
    """

    def __init__(
        self,
        family: Family,
        model: PreTrainedModel,
        num_slots: int,
        unused_ids: Sequence[int] = (),
    ) -> None:
        """Args: unused_ids: Ids that no token has (see `tokens.tokenizer.unused_ids`): they are
        not drawn, not listed, and have no part in a probability."""
        if family.language_modeling != "causal":
            raise ModelError(
                f"A {family.model_type} model fills gaps; it does not continue text. Give a causal "
                "model, such as a GPT-2 student."
            )
        self.model = model
        assert family.token_runner is not None, "every causal family has it"
        self._run_tokens = family.token_runner(model)
        self._final_norm = model.get_submodule(str(family.final_norm))
        self._head = cast(nn.Module, model.get_output_embeddings())
        self.context = family.num_positions(model.config)
        self.num_slots = num_slots
        used = set(range(model.config.vocab_size)).difference(unused_ids)
        self.num_tokens = max(used) + 1
        self._gaps = torch.tensor(
            [id for id in unused_ids if id < self.num_tokens], dtype=torch.long
        )
        self._offset = family.position_offset(model.config)
        self._places: list[Slot] = []
        self._kept: dict[int, KVCache] = {}  # by layer

    @property
    def num_free(self) -> int:
        """How many more sequences there is room for."""
        return self.num_slots - len(self._places)

    def open(self) -> Slot:
        """A place for a new sequence."""
        assert self.num_free > 0, "no slot is free"
        self._places.append(Slot(len(self._places)))
        return self._places[-1]

    @torch.inference_mode()
    def copy(self, place: Slot) -> Slot:
        """A new place that has read the same tokens."""
        new = self.open()
        self._copy(place, new)
        new.length = place.length
        return new

    @torch.inference_mode()
    def close(self, place: Slot, *, is_finite: bool = True) -> None:
        """Give a place back. The last one moves into its slot, so that slots in use stay together,
        and a step reads them without copying.

        Args:
            is_finite: False where what was read has given numbers that are not finite. They must
                not stay: a later sequence, shorter than another, has the slot's rest beside it,
                with weight zero, and zero times infinity is not zero.
        """
        if not is_finite:
            for kept in self._kept.values():
                kept.forget(place.slot)
        last = self._places.pop()
        if last is not place:
            self._copy(last, place)
            last.slot = place.slot
            self._places[place.slot] = last

    def clear(self) -> None:
        """Give all places back, and what they keep."""
        self._places.clear()
        self._kept.clear()

    def _copy(self, source: Slot, target: Slot) -> None:
        for kept in self._kept.values():
            kept.copy(source, target)

    @torch.inference_mode()
    def read(self, pieces: Sequence[Chunk]) -> Float[Tensor, "R V"]:
        """Read each piece at the end of its place; the logits asked for, in order, in float32 on
        the processor.

        To read on from an earlier token, lower `place.length` first.
        """
        device = self.model.device
        step = _Step(self, pieces)
        ids = torch.tensor([id for piece in pieces for id in piece.ids], device=device)
        hidden = self._run_tokens(ids, step.positions + self._offset, step.attend)
        if (rows := _rows_wanted(pieces)) != list(range(len(hidden))):
            hidden = hidden[torch.tensor(rows, device=device)]
        logits = self._head(self._final_norm(hidden))[:, : self.num_tokens].float().cpu()
        for piece in pieces:
            piece.place.length += len(piece.ids)
        return logits.index_fill(1, self._gaps, IMPOSSIBLE) if len(self._gaps) else logits

    def kept(self, layer: int, like: Float[Tensor, "N 2 H D"]) -> "KVCache":
        """What the layer keeps of all places."""
        if layer not in self._kept:
            self._kept[layer] = KVCache(self.num_slots, self.context, like)
        return self._kept[layer]


class KVCache:
    """The keys and values of a layer; memory is taken as it is written to."""

    def __init__(self, num_slots: int, context: int, like: Float[Tensor, "N 2 H D"]) -> None:
        self._all = like.new_zeros(num_slots, context, *like.shape[1:])
        # Views of it, made once.
        self._rows = self._all.flatten(0, 1)
        self.keys, self.values = self._all.permute(2, 0, 3, 1, 4)  # P H L D

    def write(self, rows: Int[Tensor, " N"], new: Float[Tensor, "N 2 H D"]) -> None:
        """Keep keys and values; a row is a token's place in all slots, one after the other."""
        self._rows.index_copy_(0, rows, new)

    def copy(self, source: Slot, target: Slot) -> None:
        self._all[target.slot, : source.length] = self._all[source.slot, : source.length]

    def forget(self, slot: int) -> None:
        self._all[slot] = 0


def _rows_wanted(pieces: Sequence[Chunk]) -> list[int]:
    rows, end = [], 0
    for piece in pieces:
        end += len(piece.ids)
        rows += range(end - piece.num_logits, end)
    return rows


class _Step:
    """Which tokens of a step belong where, made once and used by every layer."""

    def __init__(self, model: SlottedModel, pieces: Sequence[Chunk]) -> None:
        device = model.model.device
        self._model = model
        slots, positions, singles = [], [], []
        self._longer: list[_Longer] = []
        for piece in pieces:
            first, count = len(slots), len(piece.ids)
            start = piece.place.length
            slots += [piece.place.slot] * count
            positions += range(start, start + count)
            if count == 1:
                singles.append((first, piece.place.slot, start + 1))
            else:
                self._longer.append(_Longer(first, piece.place.slot, start, count, device))
        self.positions: Int[Tensor, " N"] = torch.tensor(positions, device=device)
        rows = [slot * model.context + at for slot, at in zip(slots, positions, strict=True)]
        self._rows = torch.tensor(rows, device=device)
        self._singles = _Singles(singles, device) if singles else None

    def attend(
        self,
        layer: int,
        query: Float[Tensor, "N Hq D"],
        key_and_value: Float[Tensor, "N 2 H D"],
        scale: float,
    ) -> Float[Tensor, "N Hq D"]:
        """Keep the new keys and values; each token attends to its own sequence up to itself."""
        kept = self._model.kept(layer, key_and_value)
        kept.write(self._rows, key_and_value)
        keys, values = kept.keys, kept.values
        if self._singles is not None and not self._longer:
            return self._singles.attend(query, keys, values, scale)
        found = torch.empty_like(query)
        if self._singles is not None:
            rows = self._singles.rows
            found[rows] = self._singles.attend(query[rows], keys, values, scale)
        for longer in self._longer:
            found[longer.rows] = longer.attend(query[longer.rows], keys, values, scale)
        return found


class _Singles:
    """The places that read one token each, all at once."""

    def __init__(self, singles: Sequence[tuple[int, int, int]], device: torch.device) -> None:
        rows, slots, lengths = (list(column) for column in zip(*singles, strict=True))
        self.rows = torch.tensor(rows, device=device)
        first, end = min(slots), max(slots) + 1
        self._span = (slice(first, end), slice(None), slice(max(lengths)))
        self._in_order = slots == list(range(first, end))
        self._slots = torch.tensor(slots, device=device) - first
        self._visible = None
        if not self._in_order or min(lengths) < max(lengths):
            # Slots between that read nothing in this step, or a longer piece, take part unseen.
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
        found = _attention(query.unsqueeze(2), keys, values, self._visible, scale).squeeze(2)
        return found if self._in_order else found[self._slots]


class _Longer:
    """One place that reads several tokens."""

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
        found = _attention(queries, keys[self._span], values[self._span], self._visible, scale)
        return found[0].transpose(0, 1)


def _attention(
    query: Float[Tensor, "P Hq T D"],
    keys: Float[Tensor, "P H L D"],
    values: Float[Tensor, "P H L D"],
    visible: Tensor | None,
    scale: float,
) -> Float[Tensor, "P Hq T D"]:
    """PyTorch's attention; with fewer heads of keys than of queries, each serves several."""
    return nn.functional.scaled_dot_product_attention(
        query,
        keys,
        values,
        attn_mask=visible,
        scale=scale,
        enable_gqa=query.shape[1] != keys.shape[1],
    )
