"""Writes hidden states to a safetensors or .npy file."""

import io
from pathlib import Path

import numpy as np
from jaxtyping import Float
from safetensors.torch import save
from torch import Tensor

from stillhouse.errors import RecipeError
from stillhouse.inference.predict import check_output
from stillhouse.runs.atomic import explained_os_errors, write_atomic


def check_target(path: Path) -> None:
    """Check the name of the output file; see also `check_output`.

    Raises:
        RecipeError: another suffix, a file that exists, or a missing folder.
    """
    if path.suffix not in (".safetensors", ".npy"):
        raise RecipeError(f"--output {path} must end in .safetensors or .npy.")
    check_output(path)


def save_features(states: Float[Tensor, "T D"], path: Path) -> None:
    """Write float32 states; in safetensors under the name `last_hidden_state`."""
    if path.suffix == ".npy":
        content = io.BytesIO()
        np.save(content, states.numpy(), allow_pickle=False)
        written = content.getvalue()
    else:
        written = save({"last_hidden_state": states.contiguous()})
    with explained_os_errors(path):
        write_atomic(path, written)
