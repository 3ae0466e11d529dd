"""Datasets of the Hugging Face hub, streamed row by row.

Contract: `hf://owner/name` or `hf://owner/name:configuration` gives the rows of its `train` split,
in order. The network is used only here, and only when it is allowed.
"""

from collections.abc import Iterator
from typing import Any

from stillhouse.corpus.pieces import Piece
from stillhouse.corpus.records import record_pieces
from stillhouse.errors import DataError, NetworkError, RecipeError, StillhouseError
from stillhouse.recipe import CorpusRecipe

HUB_PREFIX = "hf://"


def read_hub(source: str, corpus: CorpusRecipe, *, offline: bool) -> Iterator[Piece]:
    """The documents of a hub dataset.

    Raises:
        RecipeError: the `datasets` package is not installed.
        NetworkError: offline, or the hub cannot be reached.
        DataError: the hub has no such dataset, or a row has no text.
    """
    if offline:
        raise NetworkError(
            f"corpus.source {source!r} is on the hub, and --offline forbids the network. "
            "Fetch it where you have a network, and give a folder of its .parquet or .jsonl files."
        )
    name, _, configuration = source.removeprefix(HUB_PREFIX).partition(":")
    yield from stream_dataset(name, configuration or None, corpus)


def stream_dataset(name: str, configuration: str | None, corpus: CorpusRecipe) -> Iterator[Piece]:
    """The documents of a dataset that `datasets` can stream: a hub name, or a folder."""
    try:
        import datasets
    except ImportError as error:
        raise RecipeError(
            f"corpus.source {HUB_PREFIX}{name} needs the `datasets` package. "
            "Install it with `pip install 'stillhouse[hub]'`, or give a folder of files."
        ) from error

    try:
        rows: Any = datasets.load_dataset(name, configuration, split="train", streaming=True)
        for number, row in enumerate(rows, start=1):
            yield from record_pieces(
                row, corpus.text_field, f"{name} row {number}", f"{name}:{number}"
            )
    except StillhouseError:
        raise
    except Exception as error:  # the hub's clients raise errors of many libraries
        raise _explained(name, error) from error


def _explained(name: str, error: Exception) -> StillhouseError:
    reason = f"{type(error).__name__}: {error}"
    if isinstance(
        error, (FileNotFoundError, ValueError)
    ):  # no such dataset, configuration or split
        return DataError(
            f"The dataset {name!r} cannot be streamed ({reason}). Check the name; "
            "one with configurations is written hf://owner/name:configuration."
        )
    return NetworkError(
        f"The dataset {name!r} could not be fetched ({reason}). "
        "Try again, or give a folder of its files."
    )
