"""Uploads a run's student to the Hugging Face hub: the model, its card, and the measurements that
the card's numbers come from.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from stillhouse import terminal, units
from stillhouse.errors import NetworkError, OptionError, RunError
from stillhouse.models.folder_check import CARD, MEASUREMENTS
from stillhouse.models.license import license_of
from stillhouse.runs.manifest import verify
from stillhouse.runs.paths import RunFolder

HUB_NAME = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")
TOKEN_ADVICE = "Run `hf auth login`, or set the variable HF_TOKEN, to a token that may write"


def files_of(run: RunFolder) -> dict[str, int]:
    """The files of a seed's student that go to the hub, with their bytes.

    Raises:
        RunError: the student is not there or damaged, the report has not run, or the license does
            not let it be published.
    """
    verify(run.student)
    if not all((run.student / name).is_file() for name in (CARD, MEASUREMENTS)):
        raise RunError(
            f"{run.student} has no model card: the run is not finished. Run it to the end, or its "
            "stages `evaluate` and `report`."
        )
    stated = license_of(str(run.student))
    if stated is not None and stated.forbids_derived_models:
        raise RunError(
            f"{run.student / CARD} states the license {stated.identifier}, its teacher's, under "
            "which models made from one may not be published. Nothing was uploaded. If you have "
            "the owner's permission, set report.license to other and run the stage `report` again."
        )
    return {
        str(path.relative_to(run.student)): path.stat().st_size
        for path in sorted(run.student.rglob("*"))
        if path.is_file()
    }


def push(folder: Path, files: Iterable[str], name: str, *, public: bool) -> str:
    """Create the repository if there is none, upload in one commit, and return its address.

    Raises:
        OptionError: not a name of the hub, or the token may not write there.
        NetworkError: no token, or the hub cannot be reached.
    """
    from httpx2 import TransportError  # of huggingface_hub
    from huggingface_hub import CommitOperationAdd, HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError

    check_name(name)
    if get_token() is None:
        raise NetworkError(f"There is no token for the hub. {TOKEN_ADVICE}.")
    api = HfApi()
    operations = [CommitOperationAdd(file, str(folder / file)) for file in files]
    try:
        api.create_repo(name, private=not public, exist_ok=True)
        found = api.create_commit(name, operations, commit_message="Distilled with Stillhouse")
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code in (401, 403):
            raise OptionError(
                f"The hub does not let this token write to {name} "
                f"({error.response.status_code}). {TOKEN_ADVICE} there."
            ) from error
        raise NetworkError(f"The hub refused the upload to {name}: {error}.") from error
    except (OSError, TransportError) as error:
        raise NetworkError(f"The hub cannot be reached ({error}). Nothing was uploaded.") from error
    return found.commit_url


def check_name(name: str) -> None:
    """Refuse what cannot be a model on the hub.

    Raises:
        OptionError: it is not OWNER/NAME.
    """
    if not HUB_NAME.fullmatch(name):
        raise OptionError(
            f"{name!r:.120} is not a name on the hub. Give OWNER/NAME: letters, digits, '-', '_' "
            "and '.'."
        )


def print_files(files: Mapping[str, int], name: str) -> None:
    """Print what would be uploaded."""
    rows = [[file, units.size_bytes(size)] for file, size in files.items()]
    total = units.size_bytes(sum(files.values()))
    terminal.show(terminal.table([f"to {name}", total], rows))
