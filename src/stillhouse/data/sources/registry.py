"""The kind of a source, from how its name begins."""

import importlib
import pkgutil

from stillhouse.data import sources
from stillhouse.data.sources.base import Source
from stillhouse.errors import NetworkError

SOURCES: dict[str, Source] = {
    module.SOURCE.scheme: module.SOURCE
    for found in pkgutil.iter_modules(sources.__path__, f"{sources.__name__}.")
    if hasattr(module := importlib.import_module(found.name), "SOURCE")
}


def source_of(name: str) -> Source:
    """The kind of source that a name stands for: a path, where no other knows it."""
    scheme, separator, _ = name.partition("://")
    return SOURCES.get(scheme + separator, SOURCES[""])


def is_remote(name: str) -> bool:
    """Whether a source is a dataset that is not on this machine."""
    return source_of(name).is_remote


def check_online(name: str, key: str, *, offline: bool) -> None:
    """Refuse a remote source where the network is not allowed.

    Args:
        key: The recipe key that names it.

    Raises:
        NetworkError: it is remote, and `offline` is true.
    """
    if offline and is_remote(name):
        raise NetworkError(
            f"{key} {name!r} is on the hub, and --offline forbids the network. Fetch it where "
            "you have a network, and give a folder of its .parquet or .jsonl files."
        )


def check_access(name: str, key: str, *, offline: bool) -> None:
    """Refuse a remote source that cannot be read here.

    Raises:
        NetworkError: the network is not allowed.
        RecipeError: the package that reads it is not installed.
    """
    check_online(name, key, offline=offline)
    source_of(name).check(f"{key} {name}")
