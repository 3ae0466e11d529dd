"""What stops a run for reasons that are known before it starts: from the recipe, configurations,
the headers of weights, tokenizers and the names of files.

`check` and `run` both call `validate`, so that they refuse the same, in the same words. What takes
reading all of the text is left to the stages.
"""

import os
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from transformers import PretrainedConfig, PreTrainedTokenizerFast

from stillhouse.corpus.prepare import tokenizer_path
from stillhouse.data.documents import describe_sources
from stillhouse.data.fetch import check_file, path_of
from stillhouse.data.sources.registry import check_access, is_remote
from stillhouse.distillation.distill import check_frozen, models_to_train
from stillhouse.errors import DataError, RecipeError
from stillhouse.evaluation.texts import read_text
from stillhouse.families.registry import check_sequence_length, family_named, family_of
from stillhouse.finetuning.examples import TaskExamples, check_task_data
from stillhouse.finetuning.finetune import ModelRef, check_tokenizers
from stillhouse.finetuning.models import resolve_configs
from stillhouse.finetuning.settings import FinetuningRecipe
from stillhouse.models.folder_check import check_folder, load_config
from stillhouse.models.hub import resolve_folder
from stillhouse.models.load import load_model
from stillhouse.models.task_models import load_task_model
from stillhouse.objectives.relation_term import check_relation
from stillhouse.recipe import Recipe
from stillhouse.runs.manifest import read_manifest
from stillhouse.runs.paths import RunFolder
from stillhouse.student.initialize import check_initial_weights
from stillhouse.student.plan import StudentPlan, plan_student
from stillhouse.tasks.registry import make_task
from stillhouse.teacher.settings import TeacherRecipe
from stillhouse.tokens.settings import TrainedTokenizer
from stillhouse.tokens.source import check_same_tokenizer, check_vocabulary
from stillhouse.tokens.tokenizer import load_tokenizer, num_ids, special_tokens
from stillhouse.training.device import pick_device

TRAINED_HERE_IDS = {"end_of_text": 0, "pad": 1, "cls": 0, "sep": 2}
MODELS_OF_THE_RUN = ("student", "student_init", "control")


@dataclass(frozen=True)
class ValidatedTask:
    """The models of a valid task as configurations, by name, and what it learns from.

    `teachers` are those that are no models of the task, `folders` the models that are there already
    by the recipe's names for them. There are no examples where they are still to be fetched.
    """

    models: dict[str, PretrainedConfig]
    teachers: dict[str, PretrainedConfig]
    folders: dict[str, Path]
    examples: TaskExamples | None


@dataclass(frozen=True)
class ValidatedModels:
    """The models of a valid recipe, as configurations, and its tasks by name.

    There is no student where there is no corpus.
    """

    teacher: PretrainedConfig
    student: StudentPlan | None
    tasks: dict[str, ValidatedTask] = field(default_factory=dict)

    @property
    def notes(self) -> list[str]:
        """What a person should know of the data."""
        return [
            note for task in self.tasks.values() if task.examples for note in task.examples.notes
        ]


def validate(
    recipe: Recipe,
    stages: Collection[str],
    *,
    offline: bool,
    run: RunFolder | None = None,
    fetch_weights: bool = False,
) -> ValidatedModels:
    """Refuse a recipe whose `stages` cannot all run.

    Args:
        run: The run folder where there may be one; datasets of the hub that are there already need
            no network.
        fetch_weights: Fetch the weights of hub names too, not their configurations alone.

    Raises:
        RecipeError, ModelError, DataError, NetworkError: what the stages would refuse.
    """
    return _Validation(recipe, stages, offline, run, fetch_weights).validate()


@dataclass(frozen=True)
class _Validation:
    recipe: Recipe
    stages: Collection[str]
    offline: bool
    run: RunFolder | None
    fetch_weights: bool

    def validate(self) -> ValidatedModels:
        recipe = self.recipe
        pick_device()
        if recipe.corpus is not None:
            models_to_train(recipe.distillation)
        if "prepare" in self.stages:
            self._check_text()
        teacher = self._teacher()
        student = None if recipe.corpus is None else self._student(teacher)
        tasks = {}
        if "finetune" in self.stages:
            for name, task in recipe.finetuning.items():
                tasks[name] = self._check_task(name, task, teacher, student)
        if "evaluate" in self.stages:
            self._check_texts_to_score(teacher)
        return ValidatedModels(teacher, student, tasks)

    def _needs(self, *stages: str) -> bool:
        return not {*stages}.isdisjoint(self.stages)

    def _check_text(self) -> None:
        """The files that the sources name are there; datasets of the hub can be asked for."""
        try:
            describe_sources(self.recipe.text)
        except (OSError, ValueError) as error:  # a path that cannot be
            raise DataError(
                f"corpus.source {', '.join(self.recipe.text.sources)!r:.200} cannot be read "
                f"({getattr(error, 'strerror', None) or error})."
            ) from error
        if self.run is not None and read_manifest(self.run.tokens) is not None:
            return
        for source in self.recipe.text.sources:
            check_access(source, "corpus.source", offline=self.offline)

    def _teacher(self) -> PretrainedConfig:
        """The configuration of the teacher, whose tokenizer, vocabulary and weights are in order
        where a stage needs them."""
        recipe = self.recipe
        if isinstance(recipe.teacher, TeacherRecipe):
            return self._described_teacher(recipe.teacher)
        assert recipe.named_model is not None
        folder = self._resolve(recipe.named_model)
        has_weights = self._has_weights(recipe.named_model, folder)
        check_folder(folder, needs_weights=has_weights, head=recipe.corpus is not None)
        config = load_config(folder)
        if recipe.corpus is None:
            return config
        check_sequence_length(recipe.tokens, config)
        named = recipe.tokens.tokenizer
        if isinstance(named, TrainedTokenizer):
            raise RecipeError(
                "tokens.tokenizer trains a new vocabulary, but the teacher already has one, and "
                "its student must read the same tokens. Set tokens.tokenizer to teacher."
            )
        if self._needs("prepare", "teacher", "init"):
            tokenizer = self._tokenizer(tokenizer_path(named, folder))
            check_vocabulary(tokenizer, config.vocab_size, f"the teacher in {folder}")
            check_same_tokenizer(tokenizer, folder)
        if self._needs("teacher", "init", "distill", "evaluate") and has_weights:
            load_model(folder, headers_only=True)
        return config

    def _described_teacher(self, teacher: TeacherRecipe) -> PretrainedConfig:
        chosen, ids = self.recipe.tokens.tokenizer, dict(TRAINED_HERE_IDS)
        if isinstance(chosen, TrainedTokenizer):
            size = chosen.vocabulary_size
        else:
            tokenizer = self._tokenizer(tokenizer_path(chosen, None))
            special = special_tokens(tokenizer, self.recipe.tokens.language_modeling)
            size = num_ids(tokenizer)
            ids = {key: value for key, value in asdict(special).items() if isinstance(value, int)}
        family, length = family_named(teacher.family), self.recipe.tokens.sequence_length
        return family.config_from_scratch(teacher, size, length, ids)

    def _tokenizer(self, path: Path) -> PreTrainedTokenizerFast:
        tokenizer = load_tokenizer(path)
        special_tokens(tokenizer, self.recipe.tokens.language_modeling)
        return tokenizer

    def _resolve(self, name: str) -> Path:
        return resolve_folder(name, offline=self.offline, weights=self.fetch_weights)

    def _has_weights(self, name: str, folder: Path) -> bool:
        """Whether the folder must hold weights: of a hub name they may not be fetched yet."""
        return (
            self.fetch_weights
            or os.path.isdir(os.path.expanduser(name))
            or any(folder.glob("*.safetensors"))
        )

    def _student(self, teacher: PretrainedConfig) -> StudentPlan:
        recipe = self.recipe
        plan = plan_student(teacher, recipe.student)
        check_relation(recipe.distillation.losses.relation, plan.config, teacher)
        check_frozen(plan.family, recipe.student.freeze)
        if "init" in self.stages:
            check_initial_weights(recipe.student.weights, plan)
        return plan

    def _check_task(
        self,
        name: str,
        recipe: FinetuningRecipe,
        teacher: PretrainedConfig,
        student: StudentPlan | None,
    ) -> ValidatedTask:
        """A task's models and examples; files of this disk are there."""
        for key, source in recipe.data.sources.items():
            where = f"finetuning.{name}.data.{key}"
            check_file(source, where)
            if self.run is None or not path_of(source, self.run.task_data).exists():
                check_access(source, where, offline=self.offline)
        made: dict[str, PretrainedConfig] = {}
        if student is not None:
            made = dict.fromkeys(MODELS_OF_THE_RUN, student.config)
        if self.recipe.trains_its_teacher:
            made["teacher"] = teacher
        folders = self._task_folders(recipe, made)
        configs = {model: load_config(folder) for model, folder in folders.items()} | made
        teachers = {
            model.teacher: configs[model.teacher]
            for model in recipe.models.values()
            if model.teacher is not None and model.teacher not in recipe.models
        }
        starts = {model: configs[settings.start] for model, settings in recipe.models.items()}
        found = resolve_configs(name, recipe, starts, teachers)
        sources, examples = recipe.data.sources, None
        if not any(map(is_remote, sources.values())):
            paths = {key: path_of(source, Path()) for key, source in sources.items()}
            examples = check_task_data(name, recipe, teachers, paths)
        self._check_task_folders(recipe, folders)
        return ValidatedTask(found, teachers, folders, examples)

    def _task_folders(
        self, recipe: FinetuningRecipe, made: Mapping[str, PretrainedConfig]
    ) -> dict[str, Path]:
        """The folders that models of a task start from or are taught by, by the recipe's names."""
        models = recipe.models.values()
        names = {model.start for model in models} | {model.teacher for model in models}
        names -= {None, *made} | ({*recipe.models} - {model.start for model in models})
        named = self.recipe.named_model
        folders = {
            name: self._resolve(named if name == "teacher" and named else name)
            for name in sorted(map(str, names))
        }
        for name, folder in folders.items():
            check_folder(folder, needs_weights=self._has_weights(name, folder), head=False)
        return folders

    def _check_task_folders(self, recipe: FinetuningRecipe, folders: Mapping[str, Path]) -> None:
        """Weights and tokenizers of what the run does not make itself."""
        task = make_task(recipe.task)
        for settings in recipe.models.values():
            start, teacher = folders.get(settings.start), None
            if start is not None:
                load_tokenizer(start)
                if self._has_weights(settings.start, start):
                    own = task.model_settings
                    load_task_model(start, task.head, own, new_head_seed=0, headers_only=True)
            if settings.teacher in recipe.models:
                teacher = folders.get(recipe.models[settings.teacher].start)
            elif settings.teacher is not None and settings.teacher in folders:
                teacher = folders[settings.teacher]
                if self._has_weights(settings.teacher, teacher):
                    load_task_model(teacher, task.head, {}, headers_only=True)
            if start is not None and teacher is not None:
                check_tokenizers(ModelRef(teacher, ""), ModelRef(start, ""))

    def _check_texts_to_score(self, teacher: PretrainedConfig) -> None:
        others = [name for name in self.recipe.evaluation.perplexity if name != "validation"]
        if others and family_of(teacher).language_modeling == "masked":
            raise RecipeError(
                f"evaluation.perplexity names {', '.join(others)}, but perplexity is a measure of "
                "causal models; of a masked one the loss on the validation split is measured. "
                "Leave the key out."
            )
        for name in others:
            if not read_text(Path(name)).split():
                raise DataError(f"{name} holds no words to score.")
