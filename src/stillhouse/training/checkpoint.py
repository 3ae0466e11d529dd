"""Checkpoints: the whole state of a training run, committed whole, verified on load.

`checkpoints/MODEL/step-00001000/` holds `model.safetensors`, `optimizer.safetensors`, `state.json`
and a manifest with the size and SHA-256 of each. Sample order, masks and dropout follow from (seed,
step), so there is no generator state to keep. The newest checkpoint that verifies is loaded;
damaged ones are moved aside, and it is said."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stillhouse.errors import RunError
from stillhouse.run_folder import Inputs, changed_settings, commit_folder, is_up_to_date, verify


@dataclass(frozen=True)
class Progress:
    """How far a run is: completed optimizer steps, tokens seen, seconds of training, skipped
    steps."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    skipped_steps: int = 0

    def facts(self) -> dict[str, int | float]:
        """What a manifest says of a finished training."""
        return {
            "tokens": self.tokens,
            "seconds": self.seconds,
            "steps": self.step,
            "skipped_steps": self.skipped_steps,
        }


class Checkpoints:
    """The committed states of one model's training."""

    def __init__(
        self, folder: Path, inputs: Inputs, *, keep_last: int, say: Callable[[str], None]
    ) -> None:
        self.folder = folder
        self.inputs = inputs
        self.keep_last = keep_last
        self.say = say

    def committed(self) -> list[Path]:
        """Folders of committed checkpoints, oldest first."""
        return sorted(path for path in self.folder.glob("step-*") if path.is_dir())

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
        """Commit the state after `progress.step` steps, then remove those beyond `keep_last`."""
        target = self.folder / f"step-{progress.step:08d}"
        if target.exists():
            return
        with commit_folder(target, self.inputs) as temporary:
            save_file(_model_tensors(model), temporary / "model.safetensors")
            save_file(_optimizer_tensors(model, optimizer), temporary / "optimizer.safetensors")
            (temporary / "state.json").write_text(json.dumps(asdict(progress)), encoding="utf-8")
        for old in self.committed()[: -self.keep_last]:
            shutil.rmtree(old)

    def load_newest(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progress | None:
        """Restore the newest intact checkpoint into model and optimizer; None where there is none.

        Raises:
            RunError: the checkpoint was written under another recipe, or none of several is intact.
        """
        found = self.committed()
        for path in reversed(found):
            try:
                verify(path)
                if not is_up_to_date(path, self.inputs):
                    raise _ChangedError(self._changed_message(path))
                return _restore(path, model, optimizer)
            except _ChangedError as error:
                raise RunError(str(error)) from None
            except (RunError, SafetensorError, ValueError, KeyError, TypeError) as error:
                aside = path.with_name(f"damaged-{path.name}")
                shutil.rmtree(aside, ignore_errors=True)
                path.rename(aside)
                self.say(f"Checkpoint {path} is damaged and was moved to {aside.name}: {error}")
        if found or list(self.folder.glob("damaged-step-*")):
            raise RunError(
                f"No checkpoint in {self.folder} is intact. To begin again, remove that folder "
                "or name the stage in --overwrite."
            )
        return None

    def clear(self) -> None:
        """Remove every checkpoint: the result they led to is committed."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _changed_message(self, path: Path) -> str:
        changes = "; ".join(changed_settings(path, self.inputs))
        return (
            f"{path} was written under another recipe ({changes}), so training cannot go on from "
            "it. "
            "Restore the recipe, give another --run-dir, or begin this stage again with "
            "--overwrite distill "
            "(teacher for a teacher)."
        )


class _ChangedError(Exception):
    """A checkpoint that is intact but of another recipe."""


def _model_tensors(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: parameter.detach().cpu().contiguous() for name, parameter in model.named_parameters()
    }


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{name}/{key}": value.detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _restore(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    weights = load_file(path / "model.safetensors")
    parameters = dict(model.named_parameters())
    if set(weights) != set(parameters):
        raise ValueError(f"{path} holds the parameters of another model")
    states: dict[str, dict[str, Any]] = {}
    for name, tensor in load_file(path / "optimizer.safetensors").items():
        parameter, _, key = name.rpartition("/")
        states.setdefault(parameter, {})[key] = tensor
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
    for name, state in states.items():
        device = parameters[name].device
        optimizer.state[parameters[name]] = {
            key: value if key == "step" and device.type == "cpu" else value.to(device)
            for key, value in state.items()
        }
    return Progress(**json.loads((path / "state.json").read_text(encoding="utf-8")))
