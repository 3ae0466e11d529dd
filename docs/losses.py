"""The terms of the objective on docs/concepts/objectives.md, from their docstrings."""

import inspect
import sys

from pydantic import BaseModel

from stillhouse.distillation.settings import CACHED_LOSSES
from stillhouse.objectives.divergences import DIVERGENCES
from stillhouse.objectives.relation import relation_loss
from stillhouse.objectives.settings import HardLossRecipe, LossesRecipe, RelationRecipe

LANGUAGE_MODELING = """\
Sum over predicted rows of -log q(label), in nats: the cross entropy of the labels."""


def loss_list() -> str:
    """A section for each term: its formula as the code states it, what it reads, its settings."""
    return "\n\n".join(_section(name) for name in LossesRecipe.model_fields)


def _section(name: str) -> str:
    if name in DIVERGENCES:
        found = DIVERGENCES[name]
        title = (sys.modules[found.loss.__module__].__doc__ or "").partition("\n\n")[0]
        formula, reads, settings = inspect.getdoc(found.loss) or "", found.reads, found.settings
        reads = {"logits": "logits", "hidden": "last hidden states"}[reads]
    elif name == "relation":
        title = RelationRecipe.__doc__ or ""
        formula = (inspect.getdoc(relation_loss) or "").partition("\n\nArgs:")[0]
        reads, settings = "queries, keys and values of one attention layer", RelationRecipe
    else:
        title, formula = "The language modeling loss.", LANGUAGE_MODELING
        reads, settings = "labels; it needs no teacher", HardLossRecipe
    cached = "yes" if name in CACHED_LOSSES or name == "language_modeling" else "no"
    lines = [
        f"### `{name}`",
        "",
        " ".join(title.split()),
        "",
        "```text",
        formula,
        "```",
        "",
        f"Reads {reads}. With a teacher cache: {cached}.{_settings(settings)}",
    ]
    return "\n".join(lines)


def _settings(settings: type[BaseModel]) -> str:
    """The keys of a term beside its weight and rows."""
    own = [
        f"`{key}` ({field.default if field.default is not None else 'unset'}): {field.description}"
        for key, field in settings.model_fields.items()
        if key not in ("weight", "rows")
    ]
    return f" Settings: {' '.join(own)}" if own else ""
