"""Uploads a run's student to the Hugging Face hub: the model, its card, and the measurements behind
the card's numbers.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillhouse import terminal, units
from stillhouse.errors import NetworkError, OptionError, RunError
from stillhouse.runs.manifest import verify
from stillhouse.runs.paths import RunFolder

CARD, EVALUATION = "README.md", "evaluation.json"
HUB_NAME = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")
TOKEN_ADVICE = "Run `hf auth login`, or set the variable HF_TOKEN, to a token that may write"


@dataclass(frozen=True)
class Upload:
    """What goes to the hub: the files of a folder, and others by their content."""

    folder: Path
    files: Mapping[str, int]  # bytes by name
    others: Mapping[str, bytes]


def plan_upload(run: RunFolder) -> Upload:
    """What a seed's run would upload.

    Raises:
        RunError: the student is not there or damaged, or the report has not run.
    """
    verify(run.student)
    if not (run.student / CARD).is_file() or not run.evaluation.is_file():
        raise RunError(
            f"{run.student} has no model card, or was not evaluated: the run is not finished. Run "
            "it to the end, or its stages `evaluate` and `report`."
        )
    measured = json.dumps(_without_paths(json.loads(run.evaluation.read_text("utf-8"))), indent=1)
    others = {EVALUATION: f"{measured}\n".encode()}
    files = {
        str(path.relative_to(run.student)): path.stat().st_size
        for path in sorted(run.student.rglob("*"))
        if path.is_file()
    }
    sizes = {**files, **{name: len(content) for name, content in others.items()}}
    return Upload(run.student, sizes, others)


def push(upload: Upload, name: str, *, public: bool) -> str:
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
    api, sources = HfApi(), {**upload.files, **upload.others}
    operations = [
        CommitOperationAdd(file, upload.others.get(file) or str(upload.folder / file))
        for file in sources
    ]
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


def print_upload(upload: Upload, name: str) -> None:
    """Print what would be uploaded."""
    rows = [[file, units.size_bytes(size)] for file, size in upload.files.items()]
    total = units.size_bytes(sum(upload.files.values()))
    terminal.show(terminal.table([f"to {name}", total], rows))


def _without_paths(evaluation: Any) -> Any:
    """The measurements without the folders of this machine."""
    runs = evaluation.get("runs", [evaluation])
    for each in runs:
        for model in each["models"].values():
            model.pop("path", None)
    return evaluation
