"""What the stages check before anything runs: from the recipe, configurations, the headers of
weights, tokenizers and the names of files.

`check` and `run` both call `check_stages`, so that they refuse the same recipes with the same
messages. What requires reading all of the text is left to the stages.
"""

import os
from collections.abc import Collection
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig, PreTrainedTokenizerFast

from stillhouse.errors import RecipeError
from stillhouse.families.registry import check_sequence_length, family_named
from stillhouse.models.folder_check import load_config, weight_dtype
from stillhouse.models.hub import resolve_folder
from stillhouse.models.load import check_folder, load_model
from stillhouse.recipe import Recipe
from stillhouse.runs.manifest import read_manifest
from stillhouse.runs.paths import RunFolder
from stillhouse.stages.stage import stage_named, stages_of
from stillhouse.teacher.settings import TeacherRecipe
from stillhouse.tokens.settings import TrainedTokenizer
from stillhouse.tokens.tokenizer import (
    check_same_tokenizer,
    check_vocabulary,
    load_tokenizer,
    num_ids,
    open_tokenizer,
    special_tokens,
    tokenizer_path,
)
from stillhouse.tokens.vocabulary import check_vocabulary_size
from stillhouse.training.device import pick_device
from stillhouse.training.sinks.registry import check_sinks

TRAINED_HERE_IDS = {"end_of_text": 0, "pad": 1, "cls": 0, "sep": 2}


@dataclass
class RecipeCheck:
    """A recipe that is checked, and what its stages have found out about it.

    `run` is the run folder where there may be one: hub datasets that were fetched into it need no
    network. With `fetch_weights` the weights of hub names are fetched too, not their configurations
    alone. `student` is the planned student where the recipe has a corpus, `candidates` are those of
    its budget, `times` those of decoding where the budget is a speed, `tasks` are the models and
    examples of each task.
    """

    recipe: Recipe
    stages: Collection[str]
    offline: bool
    run: RunFolder | None = None
    fetch_weights: bool = False
    student: Any = None
    candidates: Any = ()
    times: Any = None
    tasks: Any = None

    def runs(self, *stages: str) -> bool:
        """Whether one of these stages is to run."""
        return not {*stages}.isdisjoint(self.stages)

    def resolve(self, name: str) -> Path:
        return resolve_folder(name, offline=self.offline, weights=self.fetch_weights)

    def has_weights(self, name: str, folder: Path) -> bool:
        """Whether the folder must hold weights: those of a hub name may not be fetched yet."""
        return (
            self.fetch_weights
            or os.path.isdir(os.path.expanduser(name))
            or any(folder.glob("*.safetensors"))
        )

    @cached_property
    def teacher(self) -> PretrainedConfig:
        """The teacher's configuration, with the precision of its weights where they are there; its
        tokenizer, vocabulary and weights are checked where a stage needs them."""
        recipe = self.recipe
        if isinstance(recipe.teacher, TeacherRecipe):
            return self._config_from_scratch(recipe.teacher)
        assert recipe.named_model is not None
        folder = self.resolve(recipe.named_model)
        has_weights = self.has_weights(recipe.named_model, folder)
        check_folder(folder, needs_weights=has_weights, head=recipe.corpus is not None)
        config = load_config(folder)
        if recipe.corpus is None:
            return config
        if has_weights:
            config.dtype = weight_dtype(folder, config)
        check_sequence_length(recipe.tokens, config)
        named = recipe.tokens.tokenizer
        if isinstance(named, TrainedTokenizer):
            raise RecipeError(
                "tokens.tokenizer trains a new vocabulary, but the teacher already has one, and "
                "its student must read the same tokens. Set tokens.tokenizer to teacher."
            )
        if self.runs("prepare", "teacher", "race", "init"):
            tokenizer = self._tokenizer(tokenizer_path(named, folder))
            check_vocabulary(tokenizer, config.vocab_size, f"the teacher in {folder}")
            check_same_tokenizer(tokenizer, folder)
            if recipe.student.vocabulary is not None:
                check_vocabulary_size(tokenizer, recipe.student.vocabulary)
        if self.runs("teacher", "race", "init", "distill", "evaluate") and has_weights:
            load_model(folder, headers_only=True)
        return config

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast | None:
        """The tokenizer of the run's own models; None where it is still to be trained."""
        recipe = self.recipe
        if self.run is not None and read_manifest(self.run.tokens) is not None:
            return open_tokenizer(self.run.tokens)
        if isinstance(recipe.tokens.tokenizer, TrainedTokenizer):
            return None
        teacher = None if recipe.named_model is None else self.resolve(recipe.named_model)
        return load_tokenizer(tokenizer_path(recipe.tokens.tokenizer, teacher))

    def _config_from_scratch(self, teacher: TeacherRecipe) -> PretrainedConfig:
        chosen, ids = self.recipe.tokens.tokenizer, dict(TRAINED_HERE_IDS)
        if isinstance(chosen, TrainedTokenizer):
            size = chosen.vocabulary_size
        else:
            tokenizer = self._tokenizer(tokenizer_path(chosen, None))
            special = special_tokens(tokenizer, self.recipe.tokens.language_modeling)
            size = num_ids(tokenizer)
            ids = {key: value for key, value in asdict(special).items() if isinstance(value, int)}
        family, length = family_named(teacher.family), self.recipe.tokens.sequence_length
        return family.new_config(teacher, size, length, ids)

    def _tokenizer(self, path: Path) -> PreTrainedTokenizerFast:
        tokenizer = load_tokenizer(path)
        special_tokens(tokenizer, self.recipe.tokens.language_modeling)
        return tokenizer


def check_stages(check: RecipeCheck) -> RecipeCheck:
    """Refuse a recipe whose stages cannot all run; returns `check`, filled in.

    Raises:
        RecipeError, ModelError, DataError, NetworkError: what the stages would refuse.
    """
    pick_device()
    check_sinks(check.recipe.metrics)
    for name in stages_of(check.recipe):
        stage_named(name).check(check)
    return check
