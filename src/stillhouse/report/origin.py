"""Where a model comes from, as a card says it: a place on the hub, or words, but never a path."""

from pathlib import Path

from stillhouse.models.hub import HUB_NAME
from stillhouse.report.markdown import text

# What travels with Stillhouse or its extras under a name of ours.
ON_THE_HUB = {"sample": None, "minilm": "sentence-transformers/all-MiniLM-L6-v2"}


def hub_name_of(model: str) -> str | None:
    """A model's name on the hub; None for a folder, and for the sample teacher."""
    if model in ON_THE_HUB:
        return ON_THE_HUB[model]
    if Path(model).exists() or model.startswith(".") or not HUB_NAME.fullmatch(model):
        return None
    return model


def origin_of(model: str, kind: str) -> str:
    """A model as Markdown; `kind` says what a model without a name is, such as `teacher`."""
    if hub_name := hub_name_of(model):
        return f"[{text(hub_name)}](https://huggingface.co/{hub_name})"
    if model == "sample":
        return "the sample teacher that comes with Stillhouse"
    return f"a {kind} from a local folder ({text(Path(model).name)})"
