"""Sizes of the parts of a text, as manifests and messages state them."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from stillhouse.errors import DataError
from stillhouse.tokens.mixture import mean_repeats

LONGEST_EPOCH = 1_000  # in lengths of the text; beyond it the weights are a mistake
SPLITS = ("train", "validation")

# Of each split its documents, bytes, words and tokens, and `stored`: its documents with tokens.
Sizes = dict[str, dict[str, int]]


def of_text(sizes: Mapping[str, int]) -> dict[str, int]:
    """The size of a text, whatever its tokens are."""
    return {key: sizes[key] for key in ("documents", "bytes", "words")}


def of_tokens(sizes: Mapping[str, int]) -> dict[str, int]:
    """The same of what the shards hold."""
    return {**of_text(sizes), "documents": sizes["stored"], "tokens": sizes["tokens"]}


def sizes_in_all(parts: Iterable[Sizes]) -> Sizes:
    """The sizes of all parts together."""
    totals = {split: Counter[str]() for split in SPLITS}
    for part in parts:
        for split, total in totals.items():
            total.update(part[split])
    return {split: dict(total) for split, total in totals.items()}


def text_size(size: int) -> str:
    """Bytes of text in words."""
    return f"{size / 1e6:,.1f} MB of text" if size >= 1e5 else f"{size / 1e3:.1f} kB of text"


def check_length(drawn: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse weights that make an epoch very much longer than the text.

    Args:
        drawn: Of each part its tokens (or bytes), and how often an epoch has them.

    Raises:
        DataError: with the sizes of the parts.
    """
    if mean_repeats(drawn) <= LONGEST_EPOCH:
        return
    most = max(drawn, key=lambda name: drawn[name]["repeats"])
    sizes = ", ".join(f"{name} {own['tokens']:,}" for name, own in drawn.items())
    raise DataError(
        f"corpus.mixture repeats the part {most} {drawn[most]['repeats']:,.0f} times in an epoch, "
        "so that every other part is drawn at all. Give weights that are closer to the parts' own "
        f"sizes: {sizes}."
    )
