"""The license of a model, as its card or its GGUF file states it, and what may be made from it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillhouse.errors import ModelError, NetworkError
from stillhouse.models.folder_check import CARD
from stillhouse.models.hub import gguf_file, resolve_folder

# Identifiers of the hub (huggingface.co/docs/hub/repositories-licenses) of licenses under which
# models made from one may have any license. All others bind them: share-alike, non-commercial, and
# those of single models, such as llama3.2 and gemma.
PERMISSIVE = {
    "afl-3.0",
    "apache-2.0",
    "bsd",
    "bsd-2-clause",
    "bsd-3-clause",
    "bsd-3-clause-clear",
    "bsl-1.0",
    "cc-by-2.0",
    "cc-by-2.5",
    "cc-by-3.0",
    "cc-by-4.0",
    "cc0-1.0",
    "cdla-permissive-1.0",
    "cdla-permissive-2.0",
    "ecl-2.0",
    "isc",
    "mit",
    "ncsa",
    "odc-by",
    "pddl",
    "postgresql",
    "unlicense",
    "wtfpl",
    "zlib",
}
OTHER = "other"  # the hub's identifier of a license that it does not list


@dataclass(frozen=True)
class License:
    """A license by the hub's identifier; `other` has a name and an address of its own."""

    identifier: str
    name: str | None = None
    link: str | None = None

    @property
    def is_permissive(self) -> bool:
        return self.identifier in PERMISSIVE

    @property
    def forbids_derived_models(self) -> bool:
        """Whether models made from one may not be published (Creative Commons' NoDerivatives)."""
        return "-nd-" in self.identifier


def license_of(model: str) -> License | None:
    """The license that a model's card or GGUF file states; None where it states none, or where the
    model is not on this disk (any more)."""
    try:
        file = gguf_file(model)
        if file is not None:
            return _of_gguf(file)
        return _of_card(resolve_folder(model, offline=True, weights=False) / CARD)
    except (ModelError, NetworkError):
        return None


def _of_card(path: Path) -> License | None:
    from huggingface_hub import metadata_load

    if not path.is_file():
        return None
    try:
        stated = metadata_load(path) or {}
    except ValueError:  # a front matter that is no mapping
        return None
    return _license(*(stated.get(key) for key in ("license", "license_name", "license_link")))


def _of_gguf(file: Path) -> License | None:
    from stillhouse.models.from_gguf.file import read_header

    stated = read_header(file).metadata.get
    keys = ("general.license", "general.license.name", "general.license.link")
    return _license(*(stated(key) for key in keys))


def _license(identifier: Any, name: Any, link: Any) -> License | None:
    """From what was read. Several licenses, which few cards have, cannot be passed on."""
    if not isinstance(identifier, str):
        return None
    return License(
        identifier.lower(), *(each if isinstance(each, str) else None for each in (name, link))
    )
