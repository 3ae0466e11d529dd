"""Datasets of the Hugging Face Hub, streamed row by row.

Contract: `hf://owner/name`, with an optional `:configuration` and then `#split`, gives the rows of
that split (by default `train`) in order, with classes by name. Besides models with a hub name and
lm-evaluation-harness, only this module uses the network, and only where it is allowed.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from stillhouse.data.formats import Record, with_class_names
from stillhouse.data.settings import CorpusRecipe
from stillhouse.data.sources import Content, Document, Source, record_documents
from stillhouse.errors import DataError, NetworkError, StillhouseError
from stillhouse.extras import require

SCHEME = "hf://"


@dataclass(frozen=True)
class HubDataset:
    """A split of a dataset that `datasets` can stream: of a hub name, or of a folder."""

    name: str
    configuration: str | None = None
    split: str = "train"

    @classmethod
    def named(cls, source: str) -> "HubDataset":
        """The dataset that `hf://...` stands for."""
        place, _, split = source.removeprefix(SCHEME).partition("#")
        name, _, configuration = place.partition(":")
        return cls(name, configuration or None, split or "train")

    def rows(self) -> Iterator[dict[str, Any]]:
        """Its rows, in order.

        Raises:
            RecipeError: the `datasets` package is not installed.
            NetworkError: the hub cannot be reached.
            DataError: there is no such dataset, configuration or split.
        """
        require("hub", purpose=f"{SCHEME}{self.name}")
        import datasets

        try:
            rows: Any = datasets.load_dataset(
                self.name, self.configuration, split=self.split, streaming=True
            )
            classes = _classes(rows.features or {})
            for row in rows:
                yield dict(with_class_names(row, classes))
        except StillhouseError:
            raise
        except Exception as error:  # the hub's clients raise errors of many libraries
            reason = f"{type(error).__name__}: {error}"
            if isinstance(error, (FileNotFoundError, ValueError)):
                raise DataError(
                    f"The dataset {self.name!r} cannot be streamed ({reason}). Check the name: "
                    "hf://owner/name:configuration gives a configuration, hf://owner/name#split a "
                    "split."
                ) from error
            raise NetworkError(
                f"The dataset {self.name!r} could not be fetched ({reason}). Try again, or give "
                "its files."
            ) from error

    def documents(self, corpus: CorpusRecipe) -> Iterator[Document]:
        """Its documents, by their own ids or their numbers."""
        rows = enumerate(self.rows(), start=1)
        records = (Record(f"{self.name} row {number}", number, row) for number, row in rows)
        return record_documents(self.name, records, corpus)


def _classes(features: Mapping[str, Any]) -> dict[str, list[str]]:
    """The class names of each column of classes, or of lists of them."""
    from datasets import ClassLabel

    inner = {column: getattr(each, "feature", each) for column, each in features.items()}
    return {column: each.names for column, each in inner.items() if isinstance(each, ClassLabel)}


def find(source: str) -> tuple[list[Content], Counter[str]]:
    """The dataset, of which nothing is known before it is read."""
    return [Content("a hub dataset", {}, HubDataset.named(source).documents)], Counter()


SOURCE = Source(
    SCHEME,
    find,
    read_rows=lambda source: HubDataset.named(source).rows(),
    check=lambda purpose: require("hub", purpose=purpose),
)
