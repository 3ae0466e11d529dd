"""What a stage is given to run: its recipe and run folder, the ranks, and the models it may use."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from stillhouse.errors import RunError
from stillhouse.models.folder_check import load_config, result_files
from stillhouse.models.hub import resolve_folder
from stillhouse.recipe import Recipe
from stillhouse.runs.manifest import (
    Inputs,
    Manifest,
    changed_settings,
    fingerprint,
    flattened,
    is_up_to_date,
    read_manifest,
    sha256_of,
    verify,
)
from stillhouse.runs.paths import RunFolder
from stillhouse.runs.power import begin_stage
from stillhouse.section import recipe_part
from stillhouse.training.metrics import MetricsFile
from stillhouse.training.progress import Reporter
from stillhouse.training.ranks import Ranks


@dataclass(frozen=True)
class ModelRef:
    """A model folder and the fingerprint of its files."""

    folder: Path
    fingerprint: str


class Models:
    """The models that a recipe names, each resolved and hashed once for all stages and seeds."""

    def __init__(self, recipe: Recipe, run: RunFolder, ranks: Ranks, *, offline: bool) -> None:
        self._recipe = recipe
        self._run = run
        self._ranks = ranks
        self._offline = offline
        self._named: dict[str, ModelRef] = {}

    @property
    def teacher_folder(self) -> Path:
        """The folder of the teacher, which the stage teacher may still have to write."""
        return self._run.teacher if self._recipe.makes_its_teacher else self.start_folder

    @cached_property
    def start_folder(self) -> Path:
        """The folder of the named teacher, or of the model that the teacher is fine-tuned from."""
        assert self._recipe.named_model is not None
        return resolve_folder(self._recipe.named_model, offline=self._offline)

    @cached_property
    def teacher(self) -> ModelRef:
        """The teacher.

        Raises:
            RunError: the stage teacher has not run, or its output is damaged.
        """
        if self._recipe.makes_its_teacher:
            return self.committed(self._run.teacher, "teacher")
        assert self._recipe.named_model is not None
        return self.named(self._recipe.named_model)

    def named(self, name: str) -> ModelRef:
        """The model of a folder or hub name."""
        if name not in self._named:
            folder = resolve_folder(name, offline=self._offline)
            hashed = self._ranks.on_rank0(lambda: folder_fingerprint(folder))
            self._named[name] = ModelRef(folder, hashed)
        return self._named[name]

    def committed(self, folder: Path, stage: str) -> ModelRef:
        """A model that a stage of this run has written.

        Raises:
            RunError: it has not, or the model is damaged.
        """
        return ModelRef(folder, self._ranks.on_rank0(lambda: verified_fingerprint(folder, stage)))


@dataclass(frozen=True)
class StageContext:
    """One run of one stage, for one seed where the stage runs per seed.

    Every rank has one. `run` is the folder of the seed, `overwrite` says whether old outputs and
    checkpoints of this stage are removed rather than kept, `shared` holds what the stage keeps from
    one seed to the next, and `written` lists the outputs that this run of the stage has written.
    """

    stage: str
    recipe: Recipe
    run: RunFolder
    seed: int
    models: Models
    reporter: Reporter
    ranks: Ranks
    offline: bool
    overwrite: bool
    shared: dict[str, Any]
    written: list[Path] = field(default_factory=list)

    def once(
        self,
        output: Path,
        make_inputs: Callable[[], Inputs],
        work: Callable[[Inputs], None],
        *,
        on_all_ranks: bool = False,
    ) -> None:
        """Call `work` unless `output` was made from the same inputs.

        The inputs are computed once, on the first rank; `work` runs there, or on every rank.
        """

        def needed_inputs() -> str:
            inputs = make_inputs()
            return json.dumps(asdict(inputs)) if self._is_needed(output, inputs) else ""

        needed = self.ranks.on_rank0(needed_inputs)
        if not needed:
            return
        inputs = Inputs(**json.loads(needed))
        begin_stage()
        if on_all_ranks:
            work(inputs)
        else:
            self.ranks.on_rank0(lambda: work(inputs))
        self.written.append(output)

    def _is_needed(self, output: Path, inputs: Inputs) -> bool:
        if output.exists() and is_up_to_date(output, inputs):
            self.reporter.say(f"{self.stage}: {output.name} is up to date")
            return False
        if changes := changed_settings(output, inputs):
            kept = "" if self.overwrite or not output.is_dir() else "; the old one is in replaced/"
            self.reporter.say(f"{self.stage}: running again, because {', '.join(changes)}{kept}")
        return True

    @property
    def metrics(self) -> MetricsFile:
        """Where a training of this stage logs its metrics."""
        settings = flattened(recipe_part(self.recipe))
        return MetricsFile(self.run.metrics, self.run.shared, self.recipe.metrics, settings)

    def require(self, output: Path, stage: str) -> None:
        """Check that an earlier stage has written its output.

        Raises:
            RunError: it has not.
        """
        self.ranks.on_rank0(lambda: require_output(output, stage).fingerprint)

    def verify(self, *outputs: Path) -> None:
        """Check every file of some outputs against its manifest, once in a stage.

        Raises:
            RunError: one is missing or damaged.
        """
        known = self.shared.setdefault("verified", {})

        def check() -> None:
            for output in outputs:
                manifest = read_manifest(output)
                if manifest is None or known.get(output) != manifest.fingerprint:
                    verify(output)
                    known[output] = manifest and manifest.fingerprint

        self.ranks.on_rank0(check)


def require_output(output: Path, stage: str) -> Manifest:
    """The manifest of an earlier stage's output, without which a stage cannot continue.

    Raises:
        RunError: it is not there.
    """
    manifest = read_manifest(output)
    if manifest is None:
        raise RunError(
            f"{output} is not there yet: run the stage {stage} first (`stillhouse run` does)."
        )
    return manifest


def verified_fingerprint(folder: Path, stage: str) -> str:
    """The fingerprint of a model that a stage has written, once its files are verified.

    Raises:
        RunError: it is not there, or damaged.
    """
    manifest = require_output(folder, stage)
    verify(folder)
    return manifest.fingerprint


def folder_fingerprint(folder: Path) -> str:
    """SHA-256 over the files of a model folder, whose configuration must be readable."""
    load_config(folder)
    files = result_files(folder)
    return fingerprint({file.relative_to(folder).as_posix(): sha256_of(file) for file in files})
