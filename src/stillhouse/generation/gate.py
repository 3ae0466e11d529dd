"""Less precision only where it costs next to nothing: measured on this model, before it is used."""

import math
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import torch

from stillhouse.errors import ModelError, RecipeError
from stillhouse.families import resolve_folder
from stillhouse.generation.loaded import LoadedModel, load
from stillhouse.generation.precision import Precision, has_int8, to_precision
from stillhouse.generation.slots import Piece, SlottedModel
from stillhouse.samples.text import sample_documents

ALLOWED = 0.01  # of the perplexity
# What is tried for what is asked for; float32 is what is left.
PRECISIONS: dict[str, tuple[Precision, ...]] = {
    "auto": ("int8",),
    "fp32": (),
    "bf16": ("bf16",),
    "int8": ("int8",),
}
BLOCKS, BLOCK = 4, 256  # of the sample text, in tokens


def load_at_precision(
    name: str | Path, wanted: str, *, offline: bool = False
) -> tuple[LoadedModel, Precision, float]:
    """A model; a causal one in less precision, if it keeps its perplexity on the sample text.

    Args:
        wanted: fp32, bf16 or int8; `auto` takes the fastest that keeps it.

    Returns:
        The model, its precision, and by how much its perplexity changed (0.01 is one percent).

    Raises:
        RecipeError: a precision that does not exist.
        ModelError: its perplexity rises by more than a hundredth in the precision asked for, or
            this machine does not have it.
    """
    if wanted not in PRECISIONS:
        raise RecipeError(f"The precision is {wanted}; choose from {', '.join(PRECISIONS)}.")
    folder = resolve_folder(str(name), offline=offline)
    model = load(folder)
    if not model.is_causal:
        if wanted not in ("auto", "fp32"):
            raise ModelError(
                f"{name} has no perplexity to measure, so it stays in float32; take --precision "
                "auto, or fp32."
            )
        return model, "fp32", 0.0
    if wanted == "int8" and not has_int8():
        raise ModelError(
            "This machine does not multiply eight-bit matrices; take --precision bf16, or fp32."
        )
    choices = PRECISIONS[wanted] if wanted != "auto" or has_int8() else ()
    if choices:
        blocks = _blocks(model)
        before = _loss(model, blocks)
        for choice in choices:
            to_precision(model.model, choice)
            change = math.expm1(_loss(model, blocks) - before)
            if change <= ALLOWED:
                return model, choice, change
            if wanted != "auto":
                raise ModelError(
                    f"In {choice} the perplexity of {name} rises by {change:.1%} on the sample "
                    f"text; {ALLOWED:.0%} is allowed. Take --precision fp32."
                )
            model = load(folder)
    return model, "fp32", 0.0


def _blocks(model: LoadedModel) -> list[list[int]]:
    length = min(BLOCK, model.context)
    blocks = (model.encode(text)[:length] for _, text in sample_documents())
    return list(islice((block for block in blocks if len(block) == length), BLOCKS))


def _loss(model: LoadedModel, blocks: Iterable[list[int]]) -> float:
    """Mean negative log-likelihood of a token, in nats."""
    slots = SlottedModel(model.family, model.model, 1)
    losses = []
    for block in blocks:
        place = slots.open()
        logits = slots.read([Piece(place, block, len(block))])
        slots.close(place)
        losses.append(torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(block[1:])))
    return float(torch.stack(losses).mean())
