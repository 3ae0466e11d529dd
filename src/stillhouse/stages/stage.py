"""The type of a stage, the stages in order, and the names that a user may give for them.

Importing a stage's value imports no heavy library, so that the command line can list the stages.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stillhouse.errors import OptionError

if TYPE_CHECKING:
    from stillhouse.recipe import Recipe
    from stillhouse.runs.paths import RunFolder
    from stillhouse.stages.check import RecipeCheck
    from stillhouse.stages.context import StageContext

# Each stage with the folder whose module `stage` exports it, in the order in which they run.
FOLDERS: Mapping[str, str] = {
    "clean": "cleaning",
    "prepare": "corpus",
    "teacher": "teacher",
    "race": "race",
    "init": "student",
    "distill": "distillation",
    "finetune": "finetuning",
    "evaluate": "evaluation",
    "report": "report",
}
STAGES = tuple(FOLDERS)


def has_corpus(recipe: "Recipe") -> bool:
    """Whether a recipe trains on text, as all stages but those of tasks require."""
    return recipe.corpus is not None


@dataclass(frozen=True)
class Stage:
    """One stage of the pipeline.

    `outputs` are the files and folders that it may write into a run, the one first that later
    stages need; those stages list it in `needs`. `check` refuses, before anything runs, what `run`
    would refuse. A stage that runs `per_seed` has one output for each seed of the recipe.
    """

    name: str
    help: str  # of its command
    outputs: Callable[["RunFolder"], Sequence[Path]]
    run: Callable[["StageContext"], None]
    check: Callable[["RecipeCheck"], object] = lambda check: None
    applies: Callable[["Recipe"], bool] = has_corpus
    needs: tuple[str, ...] = ()
    per_seed: bool = False


def stage_named(name: str) -> Stage:
    """The value that a stage's folder exports."""
    return importlib.import_module(f"stillhouse.{FOLDERS[name]}.stage").STAGE


def stages_of(recipe: "Recipe") -> tuple[str, ...]:
    """The names of the stages that apply to a recipe."""
    return tuple(name for name in STAGES if stage_named(name).applies(recipe))


def stages_until(last: str | None) -> tuple[str, ...]:
    """All stages, or those up to and including `last`.

    Raises:
        OptionError: no such stage.
    """
    if last is None:
        return STAGES
    if last not in STAGES:
        raise OptionError(
            f"--until {last}: there is no such stage; stages are {', '.join(STAGES)}."
        )
    return STAGES[: STAGES.index(last) + 1]


def stages_named(names: str) -> frozenset[str]:
    """The stages in a comma-separated list, such as "distill,report"; "all" is every stage.

    Raises:
        OptionError: no such stage.
    """
    wanted = frozenset(name.strip() for name in names.split(",") if name.strip())
    unknown = wanted - {*STAGES, "all"}
    if unknown:
        raise OptionError(
            f"--overwrite names {', '.join(sorted(unknown))}; stages are {', '.join(STAGES)}, or "
            "all."
        )
    return frozenset(STAGES) if "all" in wanted else wanted
