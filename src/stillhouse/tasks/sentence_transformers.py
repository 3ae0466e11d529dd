"""The files beside a model of embeddings that sentence-transformers reads: how its vectors are
made."""

import json
from pathlib import Path
from typing import Any, Literal

from stillhouse.errors import ModelError
from stillhouse.recipe_tasks import EmbeddingsTask

MODULES = "modules.json"
POOLING = "1_Pooling"
STEPS = ("Transformer", "Pooling", "Normalize")


def pooling_of(folder: Path) -> Literal["mean", "cls"]:
    """How the model of a folder makes a vector of its hidden states.

    Raises:
        ModelError: a way that is not one of ours, or files that cannot be read.
    """
    steps = [str(module.get("type", "")).rpartition(".")[2] for module in _modules(folder)]
    if not steps or tuple(steps) != STEPS[: len(steps)]:
        raise ModelError(
            f"{folder / MODULES} asks for {', '.join(steps) or 'nothing'}; Stillhouse makes "
            f"vectors by {', '.join(STEPS)} alone."
        )
    settings = _read(folder / POOLING / "config.json", dict)
    modes = settings.get("pooling_mode") or [name for name in settings if settings[name] is True]
    wanted = modes[0] if isinstance(modes, list) and len(modes) == 1 else modes
    match wanted:
        case "mean" | "pooling_mode_mean_tokens":
            return "mean"
        case "cls" | "pooling_mode_cls_token":
            return "cls"
        case _:
            raise ModelError(
                f"{folder / POOLING / 'config.json'} asks for {wanted or 'no pooling'}; Stillhouse "
                "knows the mean of the tokens and the first one (cls)."
            )


def write_modules(folder: Path, task: EmbeddingsTask, hidden_size: int) -> None:
    """Say beside a model's files how its vectors are made."""
    places = ("", POOLING, "2_Normalize")
    modules = [
        {
            "idx": number,
            "name": str(number),
            "path": place,
            "type": f"sentence_transformers.models.{step}",
        }
        for number, (step, place) in enumerate(zip(STEPS, places, strict=True))
    ]
    pooling = {
        "word_embedding_dimension": hidden_size,
        "pooling_mode_cls_token": task.pooling == "cls",
        "pooling_mode_mean_tokens": task.pooling == "mean",
    }
    for place in places[1:]:
        (folder / place).mkdir()
    for path, content in (
        (folder / MODULES, modules),
        (folder / POOLING / "config.json", pooling),
        (folder / "2_Normalize" / "config.json", {}),
        (folder / "sentence_bert_config.json", {"max_seq_length": task.length}),
    ):
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _modules(folder: Path) -> list[Any]:
    found = _read(folder / MODULES, list)
    return [module if isinstance(module, dict) else {} for module in found]


def _read(path: Path, kind: type) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read ({error}). Fetch the model again.") from error
    if not isinstance(content, kind):
        raise ModelError(f"{path} is not what sentence-transformers writes there.")
    return content
