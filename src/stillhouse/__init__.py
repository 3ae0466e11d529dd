"""Stillhouse: knowledge distillation of Transformer language models.

The public Python API. Heavy libraries are imported when a function is called.
"""

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from stillhouse.errors import StillhouseError

if TYPE_CHECKING:
    import torch

    from stillhouse.inference.causal_lm import CausalLM
    from stillhouse.inference.masked_lm import MaskedLM
    from stillhouse.inference.task_model import TaskModel

__version__ = version("stillhouse")
__all__ = ["StillhouseError", "__version__", "load", "run", "set_seed"]


def load(
    name: str | Path,
    *,
    offline: bool = False,
    device: "str | torch.device" = "cpu",
    max_length: int = 4_096,
) -> "CausalLM | MaskedLM | TaskModel":
    """Load a model folder, a GGUF file, a hub name, or `sample`, `minilm` or `smollm2`.

    A causal language model has `.generate()`, a masked one `.fill_mask()`; a model with the head of
    a task `.classify()`, `.answer()`, `.tag()` or `.embed()`; all of them have `.features()`. Each
    method takes a text, or a list of texts, for which it returns a list.

    Args:
        device: Where the model runs, such as "cpu" or "cuda".
        max_length: For causal models, the limit of prompt and new tokens together, if the model's
            context is longer.

    Raises:
        ModelError: no such folder, or one that is not a complete model.
        NetworkError: a hub name that is not in the local cache, without a network.
    """
    from stillhouse.inference.load import load as load_model

    return load_model(name, offline=offline, device=device, max_length=max_length)


def run(
    recipe: str | Path,
    run_dir: str | Path,
    *,
    overrides: tuple[str, ...] = (),
    offline: bool = False,
) -> Path:
    """Run all stages of a recipe, as `stillhouse run` does; returns the run folder.

    Args:
        recipe: A packaged recipe's name, or a path.
        overrides: Settings such as "distillation.temperature=1".
    """
    from stillhouse.pipeline import Pipeline
    from stillhouse.recipe_file import load_recipe
    from stillhouse.runs.paths import RunFolder
    from stillhouse.stages.stage import STAGES
    from stillhouse.training.progress import ConsoleReporter

    _, parsed = load_recipe(str(recipe), overrides)
    run = RunFolder.at(Path(run_dir))
    Pipeline(parsed, run, ConsoleReporter(), offline=offline).run_stages(STAGES)
    return Path(run_dir)


def set_seed(seed: int) -> None:
    """Seed the generators of Python, numpy and torch, so that what follows is reproducible."""
    import random

    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
