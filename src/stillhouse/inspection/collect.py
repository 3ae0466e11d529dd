"""The pass over a text that observes all neurons of a model, and the folder that it writes.

    tokens/                the text as token ids (`PackedText`)
    progress.safetensors   the statistics so far, while the pass runs
    units/                 the statistics, and layers.json

`tokens/` and `units/` have manifests with the hashes of their files. A pass that was stopped
resumes from its progress and gives what an uninterrupted one gives, to the bit.
"""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save, save_file

from stillhouse import terminal, units
from stillhouse.errors import RecipeError, RunError
from stillhouse.inference.loaded import LoadedModel
from stillhouse.inspection.statistics import UnitStatistics
from stillhouse.inspection.text import PackedText, read_text
from stillhouse.inspection.units import Neuron, num_units, observed_units
from stillhouse.machine import describe_machine
from stillhouse.runs.atomic import explained_os_errors, write_atomic
from stillhouse.runs.manifest import (
    Inputs,
    commit_folder,
    fingerprint,
    fingerprint_of,
    read_manifest,
    verify,
)
from stillhouse.runs.paths import RunFolder, locked
from stillhouse.student.calibration import check_source
from stillhouse.tokens.batches import Batch
from stillhouse.training.progress import Reporter
from stillhouse.wording import counted

STAGE = "inspect"
NUM_TOKENS = 100_000
SAVE_SECONDS = 30.0


@dataclass(frozen=True)
class CollectRequest:
    """What to observe: a text and the number of its tokens, by default those of the folder, or the
    sample and `NUM_TOKENS`.

    Attributes:
        fingerprint: Of the model's files.
    """

    fingerprint: str
    text: str | None = None
    tokens: int | None = None
    offline: bool = False


@dataclass(frozen=True)
class Inspection:
    """What a folder holds once its pass is complete."""

    folder: Path
    text: PackedText
    statistics: UnitStatistics
    facts: Mapping[str, Any]


def fingerprint_in(folder: Path) -> str:
    """The fingerprint of the model that a folder is of.

    Raises:
        RunError: it is no such folder.
    """
    manifest = read_manifest(folder / "tokens")
    if manifest is None:
        raise RunError(
            f"{folder} is not a folder of `stillhouse inspect`: it has no tokens/manifest.json."
        )
    return manifest.inputs.sources["model"]


def open_inspection(folder: Path, model_fingerprint: str) -> Inspection:
    """A complete folder of this model.

    Raises:
        RunError: it is not complete, damaged, or of another model.
    """
    _check_model(folder, model_fingerprint)
    for part in ("tokens", "units"):
        with _option_named():
            verify(folder / part)
    manifest = read_manifest(folder / "units")
    assert manifest is not None
    text = PackedText.load(folder / "tokens")
    tensors = load_file(folder / "units" / "units.safetensors")
    statistics = UnitStatistics.from_tensors(tensors, torch.device("cpu"))
    return Inspection(folder, text, statistics, manifest.facts)


def _check_model(folder: Path, model_fingerprint: str) -> None:
    if fingerprint_in(folder) != model_fingerprint:
        raise RunError(
            f"{folder} has the neurons of another model. Give that model, or another --output."
        )


def check_text(folder: Path, text: str | None, *, offline: bool) -> None:
    """Check that the text is there, if the folder does not have it already.

    Raises:
        DataError, NetworkError: it cannot be read.
    """
    if text is not None and read_manifest(folder / "tokens") is None:
        check_source(text, "--text", offline=offline)


def collect(
    loaded: LoadedModel, folder: Path, request: CollectRequest, reporter: Reporter
) -> Inspection:
    """Observe all neurons of a model on a text, or what is left of it after an interruption.

    Raises:
        RecipeError: the folder has another text.
        RunError: the folder is damaged, of another model, or in use.
        DataError: text that cannot be read.
    """
    with _option_named(), locked(RunFolder.at(folder)):
        if read_manifest(folder / "tokens") is None:
            _write_text(loaded, folder, request, reporter)
        _check_model(folder, request.fingerprint)
        _check_request(folder, request)
        if read_manifest(folder / "units") is None:
            verify(folder / "tokens")
            _Pass(loaded, folder, reporter).run()
        return open_inspection(folder, request.fingerprint)


@contextmanager
def _option_named() -> Iterator[None]:
    """Errors on run folders name the option of this command."""
    try:
        yield
    except RunError as error:
        raise RunError(str(error).replace("--run-dir", "--output")) from error


def _write_text(
    loaded: LoadedModel, folder: Path, request: CollectRequest, reporter: Reporter
) -> None:
    source, num_tokens = request.text or "sample", request.tokens or NUM_TOKENS
    text = read_text(loaded, source, num_tokens, reporter, offline=request.offline)
    settings = {"text": source, "tokens": num_tokens}
    with commit_folder(
        folder / "tokens", Inputs(STAGE, settings, {"model": request.fingerprint})
    ) as target:
        text.save(target)


def _check_request(folder: Path, request: CollectRequest) -> None:
    manifest = read_manifest(folder / "tokens")
    assert manifest is not None
    for key in ("text", "tokens"):
        wanted, known = getattr(request, key), manifest.inputs.settings[key]
        if wanted is not None and wanted != known:
            raise RecipeError(
                f"--{key} is {wanted}, but {folder} was made with {known}. Leave --{key} out, or "
                "give another --output."
            )


@dataclass
class _Pass:
    """One pass over a text, from where the last one stopped."""

    loaded: LoadedModel
    folder: Path
    reporter: Reporter
    seconds: float = 0.0  # of all processes
    text: PackedText = field(init=False)
    statistics: UnitStatistics = field(init=False)

    def __post_init__(self) -> None:
        self.text = PackedText.load(self.folder / "tokens")
        self.statistics = UnitStatistics(*num_units(self.loaded), self.loaded.model.device)

    @property
    def progress(self) -> Path:
        return self.folder / "progress.safetensors"

    def run(self) -> None:
        starts, done = self.text.starts(), self._resume()
        before, started = self.seconds, time.monotonic()
        saved = started
        self.reporter.start("inspect", done, len(starts))
        try:
            for number, start in enumerate(starts[done:], start=done + 1):
                self._observe(*self.text.batch(start), start)
                now = time.monotonic()
                self.seconds = before + now - started
                rate = self.statistics.num_rows / self.seconds
                if now - saved > SAVE_SECONDS:
                    self._save(number)
                    saved = now
                self.reporter.step(number, {"tokens_per_second": rate})
        finally:
            self.reporter.finish()
        self._commit()

    @torch.inference_mode()
    def _observe(self, batch: Batch, rows: torch.Tensor, start: int) -> None:
        batch, rows = batch.to(self.loaded.model.device), rows.to(self.loaded.model.device)
        positions = start * batch.input_ids.shape[1] + rows

        def add(layer: int, activations: torch.Tensor) -> None:
            self.statistics.add(layer, activations.index_select(0, rows), positions)

        if len(rows):
            with observed_units(self.loaded, add):
                self.loaded.family.run_body(self.loaded.model, batch)
            self.statistics.num_rows += len(rows)

    def _state(self, number: int, tensors: dict[str, torch.Tensor]) -> dict[str, str]:
        """What identifies a state: the text it is of, its batches, and its content."""
        content = {
            name: hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
            for name, tensor in tensors.items()
        }
        return {
            "tokens": fingerprint_of(self.folder / "tokens"),
            "batches": str(number),
            "digest": fingerprint(content),
        }

    def _save(self, number: int) -> None:
        tensors = self.statistics.tensors()
        facts = self._state(number, tensors) | {"seconds": str(self.seconds)}
        with explained_os_errors(self.progress):
            write_atomic(self.progress, save(tensors, facts))

    def _resume(self) -> int:
        """Restore the progress; the number of batches that are done.

        Raises:
            RunError: it is damaged.
        """
        if not self.progress.exists():
            return 0
        try:
            with safe_open(self.progress, "pt") as file:
                facts = file.metadata()
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            done = int(facts["batches"])
            if self._state(done, tensors).items() - facts.items():
                raise ValueError("its content does not match its digest")
            self.seconds = float(facts["seconds"])
        except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(
                f"{self.progress} is damaged ({error}). Remove it to start the pass again."
            ) from error
        self.statistics = UnitStatistics.from_tensors(tensors, self.loaded.model.device)
        return done

    def _commit(self) -> None:
        tensors = self.statistics.tensors()
        facts = {
            "tokens": self.statistics.num_rows,
            "seconds": round(self.seconds, 3),
            "tokens_per_second": self.statistics.num_rows / self.seconds,
            "machine": describe_machine(),
        }
        sources = {"tokens": fingerprint_of(self.folder / "tokens")}
        with commit_folder(self.folder / "units", Inputs(STAGE, {}, sources), facts) as target:
            save_file(tensors, target / "units.safetensors")
            rows = layer_rows(UnitStatistics.from_tensors(tensors, torch.device("cpu")))
            text = json.dumps(rows, indent=1) + "\n"
            (target / "layers.json").write_text(text, encoding="utf-8")
        self.progress.unlink(missing_ok=True)


def layer_rows(statistics: UnitStatistics) -> list[dict[str, Any]]:
    """Of each layer: the median share of positions where a neuron is positive, the median standard
    deviation, neurons that never differ from their mean, and the strongest activation."""
    rows = []
    spread, values = statistics.variance.sqrt(), statistics.values[:, :, 0]
    for layer, strongest in enumerate(values.abs().argmax(1).tolist()):
        rows.append(
            {
                "layer": layer,
                "neurons": values.shape[1],
                "positive": float(statistics.positive[layer].median()),
                "standard_deviation": float(spread[layer].median()),
                "constant": int((spread[layer] == 0).sum()),
                "strongest": str(Neuron(layer, strongest)),
                "activation": float(values[layer, strongest]),
            }
        )
    return rows


def summary(inspection: Inspection) -> dict[str, Any]:
    """The layers, and how they were measured."""
    return {
        "folder": str(inspection.folder),
        **inspection.facts,
        "layers": layer_rows(inspection.statistics),
    }


def print_summary(found: dict[str, Any]) -> None:
    """Print a table of the layers on stdout."""
    rows = [
        [
            str(row["layer"]),
            units.percent(row["positive"]),
            f"{row['standard_deviation']:.3g}",
            f"{row['constant']:,}",
            row["strongest"],
            f"{row['activation']:.4g}",
        ]
        for row in found["layers"]
    ]
    neurons = counted(found["layers"][0]["neurons"], "neuron")
    speed = units.tokens_per_second(found["tokens_per_second"])
    tokens = counted(found["tokens"], "token")
    title = f"{counted(len(rows), 'layer')} of {neurons} on {tokens}, {speed}"
    columns = ["layer", "positive", "standard deviation", "constant", "strongest", "activation"]
    terminal.show(
        terminal.table(columns, rows, title=title),
        f"{found['folder']}: add --neuron {found['layers'][-1]['strongest']} to see one neuron",
    )
