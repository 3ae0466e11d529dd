"""Datasets of the Hugging Face Hub, streamed row by row.

Contract: `hf://owner/name`, with an optional `:configuration` and then `#split`, gives the rows of
that split (by default `train`) in order, with classes by name. Besides models with a hub name and
lm-evaluation-harness, only this module uses the network, and only where it is allowed.
"""

from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

from stillhouse.data.formats import OnDamage, Record, class_names, with_class_names
from stillhouse.data.settings import CorpusRecipe
from stillhouse.data.sources import Content, Document, Source, record_documents
from stillhouse.errors import DataError, NetworkError, StillhouseError
from stillhouse.extras import require

SCHEME = "hf://"


def stream(source: str) -> Iterator[dict[str, Any]]:
    """The rows of a dataset that `datasets` can stream: of a hub name, or of a folder.

    Raises:
        RecipeError: the `datasets` package is not installed.
        NetworkError: the hub cannot be reached.
        DataError: there is no such dataset, configuration or split.
    """
    name, configuration, split = _parts_of(source)
    require("hub", purpose=f"{SCHEME}{name}")
    import datasets

    try:
        rows: Any = datasets.load_dataset(
            name, configuration or None, split=split or "train", streaming=True
        )
        classes = class_names(rows.features.to_dict() if rows.features else {})
        for row in rows:
            yield dict(with_class_names(row, classes))
    except StillhouseError:
        raise
    except Exception as error:  # the hub's clients raise errors of many libraries
        reason = f"{type(error).__name__}: {error}"
        if isinstance(error, (FileNotFoundError, ValueError)):
            raise DataError(
                f"The dataset {name!r} cannot be streamed ({reason}). Check the name: "
                "hf://owner/name:configuration gives a configuration, hf://owner/name#split a "
                "split."
            ) from error
        raise NetworkError(
            f"The dataset {name!r} could not be fetched ({reason}). Try again, or give its files."
        ) from error


def documents(
    source: str, corpus: CorpusRecipe, on_damage: OnDamage | None = None
) -> Iterator[Document]:
    """The documents of a dataset, by their own ids or their numbers."""
    name, _, _ = _parts_of(source)
    rows = enumerate(stream(source), start=1)
    records = (Record(f"{name} row {number}", number, row) for number, row in rows)
    return record_documents(name, records, corpus, on_damage)


def _parts_of(source: str) -> tuple[str, str, str]:
    """Name, configuration and split, of which the last two may be empty."""
    place, _, split = source.removeprefix(SCHEME).partition("#")
    name, _, configuration = place.partition(":")
    return name, configuration, split


def find(source: str) -> tuple[list[Content], Counter[str]]:
    """The dataset, of which nothing is known before it is read."""
    return [Content("a hub dataset", {}, partial(documents, source))], Counter()


SOURCE = Source(
    SCHEME,
    find,
    read_rows=stream,
    check=lambda purpose: require("hub", purpose=purpose),
)
