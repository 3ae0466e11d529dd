"""Cleaning settings of a recipe."""

import sys
from typing import Any, Literal

from pydantic import Field, PositiveInt, create_model, model_validator

from stillhouse.cleaning.deduplication import DEDUPLICATIONS, Deduplication
from stillhouse.cleaning.step import Step
from stillhouse.cleaning.steps import STEPS
from stillhouse.section import Section


def _summary(step: Step | Deduplication) -> str:
    made = step.make if isinstance(step, Step) else step.sign
    text = (sys.modules[made.__module__].__doc__ or "").partition("\n\n")[0]
    return " ".join(text.split())


_KEYS: dict[str, Any] = {
    name: (step.settings | None, Field(default=None, description=_summary(step)))
    for name, step in (STEPS | DEDUPLICATIONS).items()
}
_Steps: type[Section] = create_model("_Steps", __base__=Section, **_KEYS)


class CleaningRecipe(_Steps):
    """The steps that clean the text, in the order in which they run."""

    keep_rejected: bool = False
    """Keep what each step leaves out, with the reason."""
    executor: Literal["local", "ray", "slurm"] = "local"
    """Where the shards are cleaned: by processes of this machine, by a Ray cluster, or by an array
    of Slurm jobs."""
    shard_bytes: PositiveInt = 16 * 2**20
    """Size of a shard, the part of the text that a process cleans at a time and that is not lost
    when it is interrupted: of the files as they are stored, or of the text of larger ones."""
    workers: PositiveInt | None = None
    """Shards that are cleaned at once; by default as many as this machine has cores."""

    def steps(self) -> dict[str, Section]:
        """The sections of the steps that judge one document, in order."""
        return {name: own for name in STEPS if (own := getattr(self, name)) is not None}

    def deduplications(self) -> dict[str, Section]:
        """The sections of the steps that compare all documents, in order."""
        return {name: own for name in DEDUPLICATIONS if (own := getattr(self, name)) is not None}

    @model_validator(mode="after")
    def _has_a_step(self) -> Any:
        if not self.steps() and not self.deduplications():
            raise ValueError(f"no step is given; take some of {', '.join(STEPS | DEDUPLICATIONS)}")
        return self
