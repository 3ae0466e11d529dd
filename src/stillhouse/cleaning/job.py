"""What is cleaned into which folder: the settings, the shards, their paths and inputs."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from stillhouse.cleaning.settings import CleaningRecipe
from stillhouse.cleaning.shards import Group, Shard, load_plan, plan_shards, save_plan
from stillhouse.cleaning.step import Judge
from stillhouse.cleaning.steps import STEPS
from stillhouse.data.settings import CorpusRecipe
from stillhouse.runs.manifest import (
    Inputs,
    facts_of,
    fingerprint,
    fingerprint_of,
    is_up_to_date,
    sha256_of,
)
from stillhouse.runs.paths import part_folder_name
from stillhouse.section import recipe_part

NOT_OF_THE_RESULT = {"executor", "workers"}  # settings of how, not of what
NOT_OF_THE_TEXT = {"validation_fraction", "mixture"}  # settings of what is done with it later


@dataclass(frozen=True)
class Cleaning:
    """The cleaning of one corpus into one folder.

    Attributes:
        settings: The recipe's sections without what does not change the result.
        files: A hash of the files that the steps name.
        plan: A hash of the groups, which are in `plan.json`, since a cleaning is sent to other
            processes for each shard.
    """

    folder: Path
    corpus: CorpusRecipe
    recipe: CleaningRecipe
    settings: dict[str, Any]
    files: str
    plan: str

    @classmethod
    def of(
        cls, folder: Path, corpus: CorpusRecipe, recipe: CleaningRecipe, *, offline: bool
    ) -> "Cleaning":
        """Plan the shards.

        Raises:
            DataError: a source or a file of a step that is not there.
            NetworkError: a hub dataset while offline.
        """
        groups = plan_shards(corpus, recipe.shard_bytes, offline=offline)
        return cls(
            folder,
            corpus,
            recipe,
            {
                "corpus": _without(recipe_part(corpus), NOT_OF_THE_TEXT),
                "cleaning": settings_of(recipe),
            },
            fingerprint([sha256_of(path) for path in named_files(recipe)]),
            save_plan(folder, groups),
        )

    @property
    def groups(self) -> list[Group]:
        """The groups of files, in the order of the text."""
        return load_plan(self.folder, self.plan)

    @property
    def inputs(self) -> Inputs:
        """What the cleaned text depends on."""
        return Inputs("clean", self.settings, {"text": self.plan, "files": self.files})

    def inputs_of(self, group: Group, **sources: str) -> Inputs:
        """What a shard depends on."""
        own = {"text": group.fingerprint, "files": self.files, **sources}
        return Inputs("clean", self.settings, own)

    def divided(self, group: Group) -> Path:
        return self.folder / f"divided-{group.name}"

    def is_divided(self, group: Group) -> bool:
        """Whether a group needs no dividing, or has been divided."""
        return not group.is_divided or is_up_to_date(self.divided(group), self.inputs_of(group))

    def cleaned(self, shard: Shard) -> Path:
        return self.folder / f"cleaned-{shard.name}"

    def part(self, shard: Shard) -> Path:
        return self.folder / part_folder_name(shard.group.part, shard.name)

    @property
    def removed(self) -> Path:
        return self.folder / "removed"

    def final_inputs(self, shard: Shard) -> Inputs:
        """What a shard of the output depends on."""
        return self.inputs_of(shard.group, removed=fingerprint_of(self.removed))

    def is_finished(self, shard: Shard) -> bool:
        return is_up_to_date(self.removed, self.inputs) and is_up_to_date(
            self.part(shard), self.final_inputs(shard)
        )

    def shards(self, groups: Iterable[Group]) -> list[Shard]:
        """The shards of groups, of which those that need it are divided."""
        return [
            Shard(group, piece)
            for group in groups
            for piece in range(facts_of(self.divided(group))["pieces"] if group.is_divided else 1)
        ]

    @property
    def judges(self) -> list[tuple[str, Judge]]:
        """The steps that judge one document, made once in each process."""
        return _judges_of(self.recipe.model_dump_json())


@lru_cache(maxsize=1)
def _judges_of(recipe: str) -> list[tuple[str, Judge]]:
    steps = CleaningRecipe.model_validate_json(recipe).steps()
    return [(name, STEPS[name].make(own)) for name, own in steps.items()]


def settings_of(recipe: CleaningRecipe) -> dict[str, Any]:
    """The settings that change the result."""
    return _without(recipe_part(recipe), NOT_OF_THE_RESULT)


def _without(settings: Mapping[str, Any], keys: Collection[str]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in keys}


def named_files(recipe: CleaningRecipe) -> list[Path]:
    """The files that the steps name.

    Raises:
        DataError: one is not there.
    """
    return [path for name, own in recipe.steps().items() for path in STEPS[name].files(own)]
