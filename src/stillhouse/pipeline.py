"""Runs a recipe's stages in order, each only where its inputs changed.

Stages meet here and nowhere else: each is given folders, and this module knows which folder is
whose."""

import contextlib
import functools
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from stillhouse.corpus.prepare import prepare, prepare_inputs
from stillhouse.distillation.distill import Distillation, models_to_train, output_folder
from stillhouse.errors import RecipeError, RunError
from stillhouse.evaluation.evaluate import evaluate, evaluate_inputs, summarize
from stillhouse.evaluation.metrics.base import Cache
from stillhouse.evaluation.teacher_fit import warning_of_a_weak_teacher
from stillhouse.finetuning.finetune import Finetuning, ModelRef
from stillhouse.models.folder_check import load_config, result_files
from stillhouse.models.hub import resolve_folder
from stillhouse.recipe import Recipe
from stillhouse.recipe_file import dump_recipe
from stillhouse.report.summary import summary, tasks_summary
from stillhouse.report.write import write_report
from stillhouse.runs.atomic import explained_os_errors, write_atomic
from stillhouse.runs.manifest import (
    Inputs,
    changed_settings,
    fingerprint,
    is_up_to_date,
    read_manifest,
    sha256_of,
    verify,
)
from stillhouse.runs.paths import RunFolder, locked
from stillhouse.runs.seeds import arrange_results
from stillhouse.student.initialize import initialize, initialize_inputs
from stillhouse.teacher.train import teacher_inputs, train_teacher
from stillhouse.training.progress import Reporter
from stillhouse.training.ranks import ALONE, Ranks
from stillhouse.validate import validate


@dataclass(frozen=True)
class Options:
    """What a command asks beyond its recipe."""

    offline: bool = False
    overwrite: Collection[str] = field(default_factory=frozenset)


class Pipeline:
    """A recipe bound to a run folder."""

    def __init__(
        self,
        recipe: Recipe,
        run: RunFolder,
        reporter: Reporter,
        options: Options,
        ranks: Ranks = ALONE,
    ) -> None:
        self.recipe = recipe
        self.run = run
        self.reporter = reporter
        self.options = options
        self.ranks = ranks
        self.models = models_to_train(recipe.distillation)
        self._measured = Cache()
        self._resolved: dict[str, Path] = {}

    def run_stages(self, stages: Collection[str]) -> None:
        """Run the named stages in order; what is up to date is left alone.

        All ranks train; everything else the first one does, while the others wait.

        Raises:
            RunError: an earlier stage that a named one needs has not been run.
            RecipeError: the recipe has nothing for any of the stages.
        """
        self._check_ranks()
        stages = self._with_something_to_do(stages)
        self.ranks.on_rank0(lambda: self._validate(stages))
        with self._held(), explained_os_errors(self.run.shared):
            self.ranks.on_rank0(self._keep_recipe)
            self.ranks.on_rank0(self._arrange_results)
            if "prepare" in stages:
                self._prepare()
            if "teacher" in stages and self.recipe.trains_its_teacher:
                self._make_teacher()
            for seed in self.recipe.seeds:
                run = self.seed_run(seed)
                if "init" in stages:
                    self._initialize(run, seed)
                if "distill" in stages:
                    self._distill(run, seed)
                if "finetune" in stages:
                    for task in self.recipe.finetuning:
                        self._finetune(task, run, seed)
                if "evaluate" in stages:
                    self._evaluate(run, seed)
            runs = [self.seed_run(seed) for seed in self.recipe.seeds]
            if "evaluate" in stages and len(runs) > 1:
                self.ranks.on_rank0(lambda: summarize(self.recipe, self.run, runs))
            if "report" in stages:
                self.ranks.on_rank0(lambda: write_report(self.recipe, self.run, runs))
                self.reporter.say(f"report: {self.run.report}")

    def _validate(self, stages: Collection[str]) -> None:
        """Refuse, before anything is written, what `stillhouse check` refuses."""
        if {*stages} != {"report"}:
            offline = self.options.offline
            validate(self.recipe, stages, offline=offline, run=self.run, fetch_weights=True)

    def _check_ranks(self) -> None:
        restarts = os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")
        if self.options.overwrite and restarts != "0":
            raise RecipeError(
                f"--overwrite, and --max-restarts {restarts} of the launcher: every restart would "
                "give the same command, and overwrite what the one before it has committed. Leave "
                "out one of the two."
            )
        tokens = self.recipe.tokens
        masked_by_batch = tokens.masking.sampling == "per_batch"
        if self.ranks.size > 1 and tokens.language_modeling == "masked" and masked_by_batch:
            raise RecipeError(
                "tokens.masking.sampling is per_batch, which samples over a whole step, but each "
                f"of the {self.ranks.size} ranks has only a part of it. Set it to per_sequence."
            )

    def _with_something_to_do(self, stages: Collection[str]) -> Collection[str]:
        wanted = [stage for stage in stages if stage in self.recipe.stages]
        if not wanted:
            raise RecipeError(
                f"The recipe has nothing for {', '.join(stages)}; its stages are "
                f"{', '.join(self.recipe.stages)}."
            )
        return wanted

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        """The run held by the first rank for all."""
        with contextlib.ExitStack() as stack:
            self.ranks.on_rank0(lambda: stack.enter_context(locked(self.run)))
            yield

    def summary(self, stages: Collection[str]) -> str:
        """What these stages came to, as text for a terminal: the tables of tasks, the outcome."""
        runs = [self.seed_run(seed) for seed in self.recipe.seeds]
        parts = []
        if "finetune" in stages and self.recipe.finetuning:
            parts.append(tasks_summary(self.recipe, runs))
        if "report" in stages and self.recipe.corpus is not None:
            parts.append(summary(self.recipe, self.run, runs))
        return "\n\n".join(parts)

    def seed_run(self, seed: int) -> RunFolder:
        """Where one seed's results are: the run itself when there is only one."""
        return self.run if len(self.recipe.seeds) == 1 else self.run.for_seed(seed)

    def teacher_folder(self) -> Path:
        return self.run.teacher if self.recipe.trains_its_teacher else self._named_folder()

    def _named_folder(self) -> Path:
        """The folder of the teacher, or of the model that it goes on from."""
        assert self.recipe.named_model is not None
        return self._resolve(self.recipe.named_model)

    def _teacher_fingerprint(self) -> str:
        return self.ranks.on_rank0(self._fingerprint_of_the_teacher)

    def _fingerprint_of_the_teacher(self) -> str:
        folder = self.teacher_folder()
        if self.recipe.trains_its_teacher:
            manifest = read_manifest(folder)
            if manifest is None:
                raise RunError(
                    f"{folder} is not there yet: run the stage teacher first (`stillhouse run` "
                    "does)."
                )
            verify(folder)
            return manifest.fingerprint
        load_config(folder)
        return folder_fingerprint(folder)

    def _keep_recipe(self) -> None:
        text = dump_recipe(self.recipe).encode()
        file = self.run.recipe
        if file.exists() and file.read_bytes() != text:
            backup = file.parent / "replaced"
            backup.mkdir(exist_ok=True)
            file.rename(backup / f"recipe-{sha256_of(file)[:8]}.yaml")
        if not file.exists():
            write_atomic(file, text)

    def _arrange_results(self) -> None:
        """Results of seeds that have run are kept where the recipe now looks for them."""
        for sentence in arrange_results(self.run, self.recipe.seeds):
            self.reporter.say(sentence)

    def _once(
        self,
        stage: str,
        output: Path,
        inputs: Callable[[], Inputs],
        work: Callable[[], None],
        *,
        together: bool = False,
    ) -> None:
        """Do a stage's work, all ranks `together` or the first alone, unless its output was made
        from the same inputs, which the first rank looks at."""
        if not self.ranks.on_rank0(lambda: self._is_needed(stage, output, inputs())):
            return
        if together:
            work()
        else:
            self.ranks.on_rank0(work)

    def _is_needed(self, stage: str, output: Path, inputs: Inputs) -> bool:
        if output.exists() and is_up_to_date(output, inputs):
            self.reporter.say(f"{stage}: {output.name} is up to date")
            return False
        changes = changed_settings(output, inputs)
        if changes:
            moved = output.is_dir() and not self._overwrites(stage)
            kept = "; the old one is kept in replaced/" if moved else ""
            self.reporter.say(f"{stage}: made again, because {', '.join(changes)}{kept}")
        return True

    def _overwrites(self, stage: str) -> bool:
        return stage in self.options.overwrite

    def _require(self, output: Path, stage: str) -> None:
        """Refuse to go on without an earlier stage's output."""

        def look() -> None:
            if read_manifest(output) is None:
                raise RunError(
                    f"{output} is not there yet: run the stage {stage} first (`stillhouse run` "
                    "does)."
                )

        self.ranks.on_rank0(look)

    def _prepare(self) -> None:
        teacher_tokenizer = None
        if self.recipe.tokens.tokenizer == "teacher":
            teacher_tokenizer = self._named_folder()
        self._once(
            "prepare",
            self.run.tokens,
            lambda: prepare_inputs(self.recipe, teacher_tokenizer=teacher_tokenizer),
            lambda: self._write_tokens(teacher_tokenizer),
        )

    def _write_tokens(self, teacher_tokenizer: Path | None) -> None:
        prepare(
            self.recipe,
            self.run,
            teacher_tokenizer=teacher_tokenizer,
            offline=self.options.offline,
            overwrite=self._overwrites("prepare"),
            progress=self.reporter.say,
        )
        if self.recipe.named_model is not None:
            folder = self._named_folder()
            if warning := warning_of_a_weak_teacher(self.recipe, self.run, folder):
                self.reporter.say(f"prepare: {warning}")

    def _make_teacher(self) -> None:
        start, start_fingerprint = None, None
        if self.recipe.named_model is not None:
            start = self._named_folder()
            start_fingerprint = self.ranks.on_rank0(lambda: folder_fingerprint(start))

        def make_inputs() -> Inputs:
            return teacher_inputs(self.recipe, self.run, start_fingerprint)

        def work() -> None:
            self._require(self.run.tokens, "prepare")
            train_teacher(
                self.recipe,
                self.run,
                start,
                make_inputs(),
                self.reporter,
                self.ranks,
                overwrite=self._overwrites("teacher"),
            )

        self._once("teacher", self.run.teacher, make_inputs, work, together=True)

    def _initialize(self, run: RunFolder, seed: int) -> None:
        self._require(self.run.tokens, "prepare")
        inputs = initialize_inputs(self.recipe, self._teacher_fingerprint(), seed)
        folder = self.teacher_folder()
        self._once(
            "init",
            run.student_init,
            lambda: inputs,
            lambda: initialize(
                self.recipe, run, folder, inputs, seed, overwrite=self._overwrites("init")
            ),
        )

    def _distill(self, run: RunFolder, seed: int) -> None:
        self._require(self.run.tokens, "prepare")
        self._require(run.student_init, "init")
        distillation = Distillation(
            self.recipe, run, self.teacher_folder(), self._teacher_fingerprint(), seed, self.ranks
        )
        if self.recipe.cache is not None and self.ranks.on_rank0(
            lambda: not distillation.is_done("student")
        ):
            self._once(
                "distill",
                self.run.teacher_cache,
                distillation.cache_inputs,
                lambda: distillation.write_cache(
                    self.reporter, overwrite=self._overwrites("distill")
                ),
                together=True,
            )
            self.ranks.on_rank0(lambda: verify(self.run.teacher_cache))
        for model in self.models:
            self._once(
                "distill",
                output_folder(run, model),
                lambda model=model: distillation.inputs(model),
                lambda model=model: distillation.train(
                    model, self.reporter, overwrite=self._overwrites("distill")
                ),
                together=True,
            )
            self.ranks.on_rank0(lambda model=model: self._forget_checkpoints(run, model))

    def _forget_checkpoints(self, run: RunFolder, model: str) -> None:
        """Of a training whose result is committed; a process killed just then leaves them."""
        shutil.rmtree(run.checkpoints(model), ignore_errors=True)

    def _finetune(self, task: str, run: RunFolder, seed: int) -> None:
        """Train the models of a task in turn, then score them all."""
        recipe = self.recipe.finetuning[task]
        starts = {name: self._found(model.start, run) for name, model in recipe.models.items()}
        teachers = {
            model.teacher: self._found(model.teacher, run)
            for model in recipe.models.values()
            if model.teacher is not None and model.teacher not in recipe.models
        }
        finetuning = Finetuning(task, recipe, run, teachers, seed, self.ranks)
        self.ranks.on_rank0(
            lambda: finetuning.check(starts, self.reporter, offline=self.options.offline)
        )
        for name, model in recipe.models.items():
            teacher = None
            if model.teacher is not None:
                teacher = teachers.get(model.teacher) or self._committed(
                    finetuning.folder(model.teacher)
                )
            make_inputs = functools.partial(finetuning.inputs, name, starts[name], teacher)
            train = functools.partial(
                finetuning.train,
                name,
                starts[name],
                teacher,
                self.reporter,
                overwrite=self._overwrites("finetune"),
            )
            self._once("finetune", finetuning.folder(name), make_inputs, train, together=True)
        self._once(
            "finetune",
            finetuning.scores,
            finetuning.scores_inputs,
            lambda: finetuning.score_all(self.reporter),
        )

    def _found(self, name: str, run: RunFolder) -> ModelRef:
        """What a name stands for that is no model of the task."""
        own = {
            "student": run.student,
            "student_init": run.student_init,
            "control": run.control,
        }

        if name == "teacher":
            print_of = self.ranks.on_rank0(self._fingerprint_of_the_teacher)
            return ModelRef(self.teacher_folder(), print_of)
        if name in own:
            return self._committed(own[name])
        elsewhere = Path(self.ranks.on_rank0(lambda: str(self._resolve(name))))
        return ModelRef(elsewhere, self.ranks.on_rank0(lambda: folder_fingerprint(elsewhere)))

    def _committed(self, folder: Path) -> ModelRef:
        return ModelRef(folder, self.ranks.on_rank0(lambda: committed_fingerprint(folder)))

    def _resolve(self, name: str) -> Path:
        """The folder of a model, which `validate` has looked over."""
        if name not in self._resolved:
            self._resolved[name] = resolve_folder(name, offline=self.options.offline)
        return self._resolved[name]

    def _evaluate(self, run: RunFolder, seed: int) -> None:
        outputs = {model: output_folder(run, model) for model in self.models}
        for folder in outputs.values():
            self._require(folder, "distill")
        folders = {"teacher": self.teacher_folder(), **outputs}
        inputs = evaluate_inputs(self.recipe, run, self._teacher_fingerprint(), outputs, seed)
        self._once(
            "evaluate",
            run.evaluation,
            lambda: inputs,
            lambda: self._measure(run, folders, inputs),
        )

    def _measure(self, run: RunFolder, folders: dict[str, Path], inputs: Inputs) -> None:
        verify(self.run.tokens)
        for model in self.models:
            verify(folders[model])
        evaluate(self.recipe, run, folders, inputs, self._measured, self.reporter)


def committed_fingerprint(folder: Path) -> str:
    """The fingerprint of a model that an earlier stage, or an earlier model of a task, left.

    Raises:
        RunError: it is not there, or damaged.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise RunError(
            f"{folder} is not there yet: run the stages before first (`stillhouse run` does)."
        )
    verify(folder)
    return manifest.fingerprint


def folder_fingerprint(folder: Path) -> str:
    """SHA-256 over the files of a model folder."""
    files = result_files(folder)
    return fingerprint({file.relative_to(folder).as_posix(): sha256_of(file) for file in files})
