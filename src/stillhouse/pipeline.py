"""Runs a recipe's stages in order, each only where its inputs changed.

Stages meet here and nowhere else: each exports a value (`stages.stage.Stage`) and is given folders.
"""

import contextlib
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any

from stillhouse.errors import OptionError, RecipeError
from stillhouse.evaluation.teacher_fit import warning_of_a_weak_teacher
from stillhouse.recipe import Recipe
from stillhouse.recipe_file import dump_recipe
from stillhouse.report.summary import summary, tasks_summary
from stillhouse.runs.atomic import explained_os_errors, write_atomic
from stillhouse.runs.manifest import sha256_of
from stillhouse.runs.paths import RunFolder, locked
from stillhouse.runs.power import Meter, meter_of, metered
from stillhouse.runs.seeds import arrange_results
from stillhouse.stages.check import RecipeCheck, check_stages
from stillhouse.stages.context import Models, StageContext
from stillhouse.stages.stage import Stage, stage_named, stages_of
from stillhouse.training.device import pick_device
from stillhouse.training.progress import Reporter
from stillhouse.training.progress_file import ProgressFile
from stillhouse.training.ranks import ALONE, Ranks


@dataclass(frozen=True)
class Pipeline:
    """A recipe bound to a run folder; `overwrite` names stages whose old outputs are removed."""

    recipe: Recipe
    run: RunFolder
    reporter: Reporter
    ranks: Ranks = ALONE
    offline: bool = False
    overwrite: Collection[str] = ()

    @cached_property
    def models(self) -> Models:
        """The models that the recipe names."""
        return Models(self.recipe, self.run, self.ranks, offline=self.offline)

    @cached_property
    def progress(self) -> ProgressFile:
        """The reporter of the first rank, which keeps `progress.json`."""
        return ProgressFile(self.reporter, self.run.progress)

    def run_stages(self, names: Collection[str]) -> None:
        """Run the named stages in order; outputs that are up to date are left alone.

        All ranks train; the first one does everything else while the others wait.

        Raises:
            RunError: an earlier stage that a named one needs has not been run.
            RecipeError: none of the stages applies to the recipe.
        """
        self._check_ranks()
        stages = [stage_named(name) for name in self._applying(names)]
        # One rank checks for all: the ranks share the run folder, hence its file system, and each
        # checks a model folder again when it loads the model.
        self.ranks.on_rank0(lambda: self._check([stage.name for stage in stages]))
        with contextlib.ExitStack() as stack, explained_os_errors(self.run.shared):
            # The first rank locks the run for all.
            self.ranks.on_rank0(lambda: stack.enter_context(locked(self.run)))
            if self.ranks.is_first:
                stack.enter_context(self.progress.running())
                stack.enter_context(metered(self._meter()))
            self.ranks.on_rank0(self._keep_recipe)
            self.ranks.on_rank0(self._arrange_results)
            shared: dict[str, dict[str, Any]] = {stage.name: {} for stage in stages}
            for per_seed, group in groupby(stages, key=lambda stage: stage.per_seed):
                together = [*group]
                seeds = self.recipe.seeds if per_seed else self.recipe.seeds[:1]
                runs = self.run.of_seeds(self.recipe.seeds) if per_seed else [self.run]
                for seed, run in zip(seeds, runs, strict=True):
                    for stage in together:
                        self._run_stage(stage, run, seed, shared[stage.name])

    def _meter(self) -> Meter:
        say, device = self.reporter.say, pick_device().type
        return meter_of(self.recipe.energy, device, self.ranks.size, say)

    def _run_stage(self, stage: Stage, run: RunFolder, seed: int, shared: dict[str, Any]) -> None:
        if self.ranks.is_first:
            self.progress.begin(stage.name, None if run is self.run else seed)
        context = StageContext(
            stage.name,
            self.recipe,
            run,
            seed,
            self.models,
            self.progress if self.ranks.is_first else self.reporter,
            self.ranks,
            offline=self.offline,
            overwrite=stage.name in self.overwrite,
            shared=shared,
        )
        for name in stage.needs:
            context.require(stage_named(name).outputs(run)[0], name)
        stage.run(context)
        if run.tokens in context.written and self.recipe.named_model is not None:
            self.ranks.on_rank0(self._warn_of_a_weak_teacher)

    def _warn_of_a_weak_teacher(self) -> None:
        if warning := warning_of_a_weak_teacher(self.recipe, self.run, self.models.start_folder):
            self.reporter.say(f"prepare: {warning}")

    def _check(self, stages: Sequence[str]) -> None:
        """Refuse, before anything is written, what `stillhouse check` refuses."""
        if {*stages} != {"report"}:
            check_stages(
                RecipeCheck(self.recipe, stages, self.offline, self.run, fetch_weights=True)
            )

    def _check_ranks(self) -> None:
        restarts = os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")
        if self.overwrite and restarts != "0":
            raise OptionError(
                f"--overwrite with --max-restarts {restarts} of the launcher: each restart would "
                "repeat the command and overwrite what the previous one has committed. Leave out "
                "one of the two."
            )
        tokens = self.recipe.tokens
        masked_by_batch = tokens.masking.sampling == "per_batch"
        if self.ranks.size > 1 and tokens.language_modeling == "masked" and masked_by_batch:
            raise RecipeError(
                "tokens.masking.sampling is per_batch, which samples over a whole step, but each "
                f"of the {self.ranks.size} ranks has only a part of it. Set it to per_sequence."
            )

    def _applying(self, names: Collection[str]) -> list[str]:
        applying = stages_of(self.recipe)
        found = [name for name in applying if name in names]
        if not found:
            raise RecipeError(
                f"The recipe has nothing for {', '.join(names)}; its stages are "
                f"{', '.join(applying)}."
            )
        return found

    def summary(self, stages: Collection[str]) -> str:
        """The results of these stages as text for a terminal: tables of tasks, the outcome."""
        runs = self.run.of_seeds(self.recipe.seeds)
        parts = []
        if "finetune" in stages and self.recipe.finetuning:
            parts.append(tasks_summary(self.recipe, runs))
        if "report" in stages and self.recipe.corpus is not None:
            parts.append(summary(self.recipe, self.run, runs))
        return "\n\n".join(parts)

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
        """Move the results of seeds that have run to where the recipe now expects them."""
        for sentence in arrange_results(self.run, self.recipe.seeds):
            self.reporter.say(sentence)
