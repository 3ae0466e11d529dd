"""Fine-tunes the models of one task: a start and the task's data -> finetuned/TASK/MODEL/.

A model is trained alone, or with a teacher that has the task's head. All models of a task train on
the same examples in the same order and are scored on the same splits.
"""

import json
import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from stillhouse.data.rows import fetch, path_of
from stillhouse.finetuning.data import (
    TaskExamples,
    TaskSource,
    check_task_data,
    group_size,
    planned_task_step,
)
from stillhouse.finetuning.models import (
    check_tokenizers,
    layer_map_of,
    load_start,
    load_trained,
    resolve_configs,
    set_threshold,
    threshold_split,
)
from stillhouse.finetuning.objective import HARD_LABEL, PROJECTED, TaskObjective
from stillhouse.finetuning.scores import task_costs, task_scores
from stillhouse.finetuning.settings import TaskTrainingRecipe
from stillhouse.machine import describe_machine, library_versions, source_commit
from stillhouse.models.folder_check import load_config, load_model_tokenizer
from stillhouse.models.load import save_model
from stillhouse.models.task_models import task_model_with_num_layers
from stillhouse.objectives.projection import add_projection
from stillhouse.runs.manifest import Inputs, commit_file, commit_folder, read_manifest, sha256_of
from stillhouse.section import recipe_part
from stillhouse.stages.context import ModelRef, StageContext
from stillhouse.tasks.embeddings import check_recipe_of, write_modules
from stillhouse.tasks.encoded import EncodedExample
from stillhouse.tasks.metrics import MetricSamples
from stillhouse.tasks.question_answering import QuestionAnswering, num_unseen_answers
from stillhouse.tasks.registry import make_task
from stillhouse.tasks.settings import EmbeddingsTask
from stillhouse.tasks.task import Task, predict
from stillhouse.tokens.batches import StepBatches
from stillhouse.training.checkpoint import Checkpoints
from stillhouse.training.cost import DTYPES, StepCost, count_flops, measure_roofline
from stillhouse.training.device import pick_device, pick_precision
from stillhouse.training.engine import compile_body, train_and_commit
from stillhouse.training.job import TrainingJob
from stillhouse.training.settings import result_settings
from stillhouse.wording import counted, numbered_rows


class Finetuning:
    """One task of a recipe for one seed."""

    def __init__(self, name: str, context: StageContext, teachers: Mapping[str, ModelRef]) -> None:
        """`teachers` are those that are not models of the task, by name."""
        self.name = name
        self.context = context
        self.recipe = context.recipe.finetuning[name]
        self.teachers = teachers
        self.device = pick_device()

    def folder(self, model: str) -> Path:
        return self.context.run.finetuned(self.name) / model

    def inputs(self, model: str, start: ModelRef, teacher: ModelRef | None) -> Inputs:
        """The settings and sources that determine one trained model."""
        settings = {
            "task": recipe_part(self.recipe.task),
            "num_train": self.recipe.data.num_train,
            "training": result_settings(self.recipe.training),
            "model": recipe_part(self.recipe.models[model]),
        }
        sources = {"start": start.fingerprint, "train": sha256_of(self._files["train"])}
        if "unlabeled" in self._files and self._sees_unlabeled(model):
            settings["num_unlabeled"] = self.recipe.data.num_unlabeled
            sources["unlabeled"] = sha256_of(self._files["unlabeled"])
        chosen_on = {
            "select": self.recipe.training.select,
            "threshold": threshold_split(self.recipe),
        }
        for name, split in chosen_on.items():
            if split is not None:
                sources[name] = sha256_of(self._files[self.recipe.data.key_of(split)])
        if teacher is not None:
            settings["losses"] = recipe_part(self.recipe.losses)
            settings["temperature"] = self.recipe.temperature
            sources["teacher"] = teacher.fingerprint
        return Inputs(f"finetune {self.name} {model}", settings, sources, self.context.seed)

    @cached_property
    def _examples(self) -> TaskExamples:
        """The task with its labels and all its examples, checked.

        Raises:
            DataError: an example that cannot be read, with its file and row.
            RecipeError: a teacher for another task or other labels.
        """
        return check_task_data(self.name, self.recipe, self._teacher_configs, self._files)

    @property
    def task(self) -> Task:
        """The task with its labels: the recipe's or those of the training data, in the order of a
        teacher from elsewhere."""
        return self._examples.task

    @property
    def _teacher_configs(self) -> dict[str, PretrainedConfig]:
        return {name: load_config(teacher.folder) for name, teacher in self.teachers.items()}

    def check(self, starts: Mapping[str, ModelRef]) -> None:
        """Fetch data from the hub, and report mistakes before training.

        Args:
            starts: By model.

        Raises:
            DataError: an example that cannot be read, with its file and row.
            RecipeError: a model that does not fit the task, or its teacher.
            NetworkError: data on the hub that cannot be fetched.
        """
        say = self.context.reporter.say
        for key, source in self.recipe.data.sources.items():
            where = f"finetuning.{self.name}.data.{key}"
            fetch(source, self.context.run.task_data, where, say, offline=self.context.offline)
            if blank := self._blank_rows.get(key):
                what = "read as empty text" if key == "unlabeled" else "skipped"
                say(f"{source}: {numbered_rows(blank)} without any field: {what}")
        for note in self._examples.notes:
            say(note)
        resolve_configs(
            self.name,
            self.recipe,
            {name: load_config(start.folder) for name, start in starts.items()},
            self._teacher_configs,
        )
        for name, model in self.recipe.models.items():
            if model.teacher is None:
                continue
            teacher = self.teachers.get(model.teacher) or starts[model.teacher]
            check_tokenizers(teacher.folder, starts[name].folder)
            if isinstance(self.recipe.task, EmbeddingsTask):
                check_recipe_of(teacher.folder, self.recipe.task, trains=True)

    @property
    def _files(self) -> dict[str, Path]:
        """The file of each source of data, by its key."""
        sources = self.recipe.data.sources.items()
        return {key: path_of(source, self.context.run.task_data) for key, source in sources}

    def train(
        self,
        name: str,
        start: ModelRef,
        teacher: ModelRef | None,
        inputs: Inputs,
    ) -> None:
        """Train one model and commit its folder, resuming from a checkpoint if there is one."""
        where = f"{self.name}-{name}"
        tokenizer = load_model_tokenizer(start.folder)
        model = self._initial(name, start)
        objective = TaskObjective(
            self.task,
            self.recipe.losses,
            teacher=None if teacher is None else self._teacher(teacher),
            temperature=self.recipe.temperature,
        )
        if objective.teacher is not None and set(objective.weights).intersection(PROJECTED):
            add_projection(model, objective.teacher.config, seed=self.context.seed)
        batches = self._batches(name, model, tokenizer, objective)
        training = self.recipe.training
        checkpoints = Checkpoints(
            self.context.run.checkpoints(where),
            inputs,
            training.checkpoint,
            self.context.reporter.say,
            self.context.ranks,
            keep_steps=compared_steps(training, batches.num_steps),
            overwrite=self.context.overwrite,
        )
        job = TrainingJob(
            where,
            model,
            objective,
            batches,
            training,
            checkpoints,
            self.context.metrics,
            self.device,
            measure_roofline(self._cost(batches, model, objective.teacher), self.device),
            self.context.ranks,
            section=f"finetuning.{self.name}.training",
        )

        def commit(trained: PreTrainedModel, facts: dict[str, Any]) -> None:
            facts |= self._keep_best_state(trained, tokenizer, checkpoints, batches.num_steps)
            split = threshold_split(self.recipe)
            set_threshold(
                self.task, trained, tokenizer, [] if split is None else self._examples.splits[split]
            )
            self._commit(name, trained, tokenizer, inputs, facts)

        train_and_commit(job, f"the model {name} of {self.name}", self.context.reporter, commit)

    @cached_property
    def _blank_rows(self) -> dict[str, list[int]]:
        """The numbers of the rows without any field, by source."""
        task = make_task(self.recipe.task)
        found = {key: task.blank_rows(file) for key, file in self._files.items()}
        return {key: numbers for key, numbers in found.items() if numbers}

    @property
    def scores(self) -> Path:
        return self.context.run.finetuned(self.name) / "scores.json"

    def scores_inputs(self) -> Inputs:
        """The sources of the scores: every model, and teachers from elsewhere."""
        manifests = {name: read_manifest(self.folder(name)) for name in self.recipe.models}
        models = {name: found.fingerprint for name, found in manifests.items() if found is not None}
        data = self.recipe.data
        splits = {
            f"split {each}": sha256_of(self._files[data.key_of(each)]) for each in data.splits
        }
        others = {name: found.fingerprint for name, found in self.teachers.items()}
        settings = {"task": recipe_part(self.recipe.task)}
        return Inputs(f"finetune {self.name} scores", settings, {**models, **others, **splits})

    def score_all(self, inputs: Inputs) -> None:
        """Write `scores.json`: each model's metrics, and the effect of its teacher."""
        started = time.monotonic()
        folders = {name: found.folder for name, found in self.teachers.items()}
        folders |= {name: self.folder(name) for name in self.recipe.models}
        models, measured = {}, {}
        for name, folder in folders.items():
            self.context.reporter.say(f"{self.name}: scores of {name}")
            models[name] = model = load_trained(self.task, folder)
            model.to(self.device)  # pyright: ignore[reportArgumentType]
            tokenizer = load_model_tokenizer(folder)
            measured[name] = {
                split: self._metrics(model, tokenizer, examples)
                for split, examples in self._examples.splits.items()
            }
        self.context.reporter.say(f"{self.name}: speed of {', '.join(models)}")
        scores = {
            **task_scores(self.recipe, measured),
            "positive_label": self.task.positive_label,
            "blank_rows": {
                key: each for key, each in self._blank_rows.items() if key != "unlabeled"
            },
            "costs": task_costs(folders, models, self.recipe.task.max_length),
            "machine": describe_machine(),
            "versions": library_versions(),
            "commit": source_commit(),
            "seed": self.context.seed,
        }
        content = json.dumps(scores, indent=1, ensure_ascii=False) + "\n"
        seconds = time.monotonic() - started
        commit_file(self.scores, content.encode(), inputs, seconds=seconds)

    def _metrics(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, examples: list[Any]
    ) -> dict[str, MetricSamples]:
        task = self.task.for_config(model.config)
        return task.metric_samples(
            predict(task, model, examples, task.encode(examples, tokenizer)), examples
        )

    def _keep_best_state(
        self,
        trained: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        checkpoints: Checkpoints,
        num_steps: int,
    ) -> dict[str, Any]:
        """Restore the state with the best value of the task's metric on the split `select` (the
        earliest of ties), where there is one; returns the value of each state by its step."""
        split = self.recipe.training.select
        if split is None:
            return {}
        examples, metric = self._examples.splits[split], self.recipe.task.metric
        last = {name: value.clone() for name, value in trained.state_dict().items()}

        def restore(step: int) -> None:
            if step == num_steps:
                trained.load_state_dict(last)
            else:
                checkpoints.restore_weights(step, trained)

        values = {}
        for step in [*compared_steps(self.recipe.training, num_steps), num_steps]:
            restore(step)
            values[step] = self._metrics(trained.eval(), tokenizer, examples)[metric].value
        best = max(values, key=lambda step: (values[step], -step))
        restore(best)
        return {"states": {"split": split, "metric": metric, "values": values, "kept": best}}

    def _sees_unlabeled(self, name: str) -> bool:
        """Whether unlabeled examples determine a model's number of steps: not for a model that is
        only a teacher."""
        models = self.recipe.models
        return models[name].teacher is not None or all(
            each.teacher != name for each in models.values()
        )

    def _initial(self, name: str, start: ModelRef) -> PreTrainedModel:
        model = load_start(self.task, start.folder, seed=self.context.seed)
        layer_map = layer_map_of(self.name, self.recipe, name, model.config)
        return model if layer_map is None else task_model_with_num_layers(model, layer_map)

    def _teacher(self, teacher: ModelRef) -> PreTrainedModel:
        """The teacher with its own head, frozen."""
        model = load_trained(self.task, teacher.folder)
        dtype = DTYPES[pick_precision(self.recipe.training.precision, self.device)]
        model.requires_grad_(False).to(device=self.device, dtype=dtype)  # pyright: ignore
        compile_body(model, self.recipe.training, self.device)
        return model

    def _batches(
        self,
        name: str,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        objective: TaskObjective,
    ) -> StepBatches:
        """A model's training batches.

        For a contrastive loss each text occurs twice: its embeddings under two dropout masks are a
        positive pair (Gao et al. 2021, section 3).
        """
        training = self.recipe.training
        sequences = self._sequences(self._examples.training, tokenizer)
        num_samples = len(sequences) // group_size(self.recipe.task)
        if self._examples.unlabeled and self._sees_unlabeled(name):
            unlabeled = self._sequences(self._examples.unlabeled, tokenizer)
            num_samples += len(unlabeled)
            sequences += unlabeled if objective.teacher is not None else []
        source = TaskSource(
            sequences,
            pad_token_id=model.config.pad_token_id,
            per_token=self.task.per_token,
            group=group_size(self.recipe.task),
            twice=self.task.output_kind == "embeddings" and HARD_LABEL in objective.weights,
        )
        return StepBatches(
            source,
            seed=self.context.seed,
            sequences_per_step=max(1, training.examples_per_step // group_size(self.recipe.task)),
            num_samples=training.epochs * num_samples,
            lengths=source.lengths,
        )

    def _sequences(
        self, examples: list[Any], tokenizer: PreTrainedTokenizerFast
    ) -> list[EncodedExample]:
        encoded = self.task.encode(examples, tokenizer)
        found = [each for own in encoded for each in own]
        if truncated := sum(each.is_truncated for each in found):
            self.context.reporter.say(
                f"{self.name}: {truncated:,} of {counted(len(examples), 'text')} truncated to "
                f"{counted(self.task.text_length, 'token')}"
            )
        is_question = isinstance(self.task, QuestionAnswering)
        if is_question and (unseen := num_unseen_answers(examples, encoded)):
            self.context.reporter.say(
                f"{self.name}: no window contains the whole answer to "
                f"{counted(unseen, 'question')}, learned as questions without an answer; raise "
                "max_length, or lower doc_stride"
            )
        return found

    def _cost(
        self,
        batches: StepBatches,
        model: PreTrainedModel,
        teacher: PreTrainedModel | None,
    ) -> StepCost:
        """FLOPs and bytes of a step."""
        source = batches.source
        assert isinstance(source, TaskSource)
        step = planned_task_step(
            source,
            batches.sequences_per_step,
            self.recipe.training,
            self.device,
            taught=teacher is not None,
        )
        return count_flops(step, model.config, None if teacher is None else teacher.config)

    def _commit(
        self,
        name: str,
        trained: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        inputs: Inputs,
        facts: dict[str, Any],
    ) -> None:
        trained.to(device="cpu", dtype=torch.float32)  # pyright: ignore[reportCallIssue]
        overwrite = self.context.overwrite
        with commit_folder(self.folder(name), inputs, facts, overwrite=overwrite) as folder:
            save_model(trained, tokenizer, folder)
            if isinstance(self.recipe.task, EmbeddingsTask):
                write_modules(folder, self.recipe.task, trained.config.hidden_size)


def compared_steps(training: TaskTrainingRecipe, num_steps: int) -> list[int]:
    """The steps before the last one whose states are compared with it, evenly spaced."""
    parts = training.evaluations
    steps = {-(-part * num_steps // parts) for part in range(1, parts)}
    return sorted(steps - {num_steps})
