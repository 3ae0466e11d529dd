"""Datasets of the Hugging Face hub, streamed row by row.

Contract: `hf://owner/name`, with `:configuration` and then `#split` where they matter, gives the
rows of that split (by default `train`) in order; a class is given by its name. The network is used
only here, for model names and by lm-evaluation-harness, and only when it is allowed.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from stillhouse.errors import DataError, NetworkError, RecipeError, StillhouseError

HUB_PREFIX = "hf://"


@dataclass(frozen=True)
class HubDataset:
    """A split of a dataset that `datasets` can stream: of a hub name, or of a folder."""

    name: str
    configuration: str | None = None
    split: str = "train"

    @classmethod
    def named(cls, source: str) -> "HubDataset":
        """The dataset that `hf://...` stands for."""
        place, _, split = source.removeprefix(HUB_PREFIX).partition("#")
        name, _, configuration = place.partition(":")
        return cls(name, configuration or None, split or "train")

    def rows(self) -> Iterator[dict[str, Any]]:
        """Its rows, in order.

        Raises:
            RecipeError: the `datasets` package is not installed.
            NetworkError: the hub cannot be reached.
            DataError: there is no such dataset, configuration or split.
        """
        try:
            import datasets
        except ImportError as error:
            raise RecipeError(
                f"{HUB_PREFIX}{self.name} needs the `datasets` package. Install it with `pip "
                "install 'stillhouse[hub]'`, or give files."
            ) from error

        try:
            rows: Any = datasets.load_dataset(
                self.name, self.configuration, split=self.split, streaming=True
            )
            named = _named_classes(rows.features or {})
            for row in rows:
                yield {key: named.get(key, _as_it_is)(value) for key, value in row.items()}
        except StillhouseError:
            raise
        except Exception as error:  # the hub's clients raise errors of many libraries
            raise self._explained(error) from error

    def _explained(self, error: Exception) -> StillhouseError:
        reason = f"{type(error).__name__}: {error}"
        if isinstance(error, (FileNotFoundError, ValueError)):
            return DataError(
                f"The dataset {self.name!r} cannot be streamed ({reason}). Check the name; one "
                "with configurations is written hf://owner/name:configuration, a split "
                "hf://owner/name#split."
            )
        return NetworkError(
            f"The dataset {self.name!r} could not be fetched ({reason}). Try again, or give its "
            "files."
        )


def must_be_online(source: str, key: str, *, offline: bool) -> None:
    """Refuse a hub name where the network is forbidden.

    Raises:
        NetworkError: it is.
    """
    if offline:
        raise NetworkError(
            f"{key} {source!r} is on the hub, and --offline forbids the network. Fetch it where "
            "you have a network, and give a folder of its .parquet or .jsonl files."
        )


def _named_classes(features: Mapping[str, Any]) -> dict[str, Callable[[Any], Any]]:
    """For each column of classes, or of lists of them, what turns numbers into names."""
    from datasets import ClassLabel

    found: dict[str, Callable[[Any], Any]] = {}
    for column, feature in features.items():
        inner = getattr(feature, "feature", None)
        if isinstance(feature, ClassLabel):
            found[column] = partial(_name, feature.names)
        elif isinstance(inner, ClassLabel):
            found[column] = partial(_names, inner.names)
    return found


def _name(names: list[str], value: int | None) -> str | None:
    """(A class below 0 stands for one that is not known.)"""
    return names[value] if value is not None and value >= 0 else None


def _names(names: list[str], values: list[int | None]) -> list[str | None]:
    return [_name(names, value) for value in values]


def _as_it_is(value: Any) -> Any:
    return value
