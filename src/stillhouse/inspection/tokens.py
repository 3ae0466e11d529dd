"""Tokens and distributions as plain values for JSON.

Axes: V vocabulary.
"""

from collections.abc import Iterable
from typing import Any

from jaxtyping import Float
from torch import Tensor

from stillhouse.inference.loaded import LoadedModel

NUM_TOKENS = 10


def token_texts(loaded: LoadedModel, ids: Iterable[int]) -> list[str]:
    """The text of each token."""
    return [loaded.token_text(int(id)) for id in ids]


def extremes(
    loaded: LoadedModel, changes: Float[Tensor, " V"], number: int = NUM_TOKENS
) -> dict[str, list[list[Any]]]:
    """The tokens that are raised and lowered most, as [text, change]; none that are not."""
    found = {}
    for name, sign in (("raised", 1), ("lowered", -1)):
        best = (sign * changes).topk(min(number, len(changes)))
        found[name] = [
            [loaded.token_text(id), round(sign * size, 5)]
            for id, size in zip(best.indices.tolist(), best.values.tolist(), strict=True)
            if size > 0
        ]
    return found


def shown(text: str) -> str:
    """A token's text on one line."""
    return text.replace("\n", "\N{RETURN SYMBOL}").replace(
        "\t", "\N{SYMBOL FOR HORIZONTAL TABULATION}"
    )
