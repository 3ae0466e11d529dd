"""Models side by side on the same text, without a run: size, speed, memory, quality.

Models of a run are scored as in the run's report: on its held-out documents, in its blocks.
Otherwise all models are scored on the same documents, in blocks of the shortest context among them.

In a terminal: a column for each model, with ratios to the first.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerFast

from stillhouse import terminal, units
from stillhouse.data.documents import is_validation
from stillhouse.data.sources.sample import sample_documents
from stillhouse.errors import DataError, ModelError
from stillhouse.evaluation.metrics.base import Metric, Model, Protocol, Subjects, read
from stillhouse.evaluation.metrics.registry import METRICS, measure
from stillhouse.evaluation.metrics.speed import is_noisy
from stillhouse.evaluation.perplexity import ScoredText, UnitLosses, difference
from stillhouse.evaluation.quality import (
    causal_protocol,
    has_diverged,
    masked_protocol,
    read_text,
    run_protocol,
    scored_text,
)
from stillhouse.machine import describe_machine
from stillhouse.models.folder_check import load_model_tokenizer
from stillhouse.models.hub import resolve_folder
from stillhouse.models.load import load_model
from stillhouse.recipe import Recipe
from stillhouse.recipe_file import load_recipe
from stillhouse.runs.manifest import read_manifest
from stillhouse.runs.paths import RunFolder
from stillhouse.tokens.batches import SequenceSource
from stillhouse.tokens.packing import pack
from stillhouse.tokens.settings import MaskingRecipe, TokensRecipe
from stillhouse.tokens.shards import TokenSplit
from stillhouse.tokens.tokenizer import num_ids, open_tokenizer, special_tokens
from stillhouse.training.device import pick_device
from stillhouse.training.progress import QuietReporter, Reporter
from stillhouse.wording import counted

# Text that no packaged recipe trains on: the validation fraction of quickstart, a part of what was
# held out from the sample teacher.
SAMPLE_FRACTION = 0.02
MASKED_LENGTH = 128

Loaded = Mapping[str, Model]


def compare_models(
    names: Sequence[str], text: Path | None, *, offline: bool, reporter: Reporter | None = None
) -> dict[str, Any]:
    """The metrics of each model, under the keys of `evaluation.json`.

    Args:
        text: What to score; by default the held-out text of the models' run, or of the sample.

    Raises:
        ModelError: causal and masked models together.
        DataError: a text that has no words or cannot be read.
    """
    folders = {name: resolve_folder(name, offline=offline) for name in dict.fromkeys(names)}
    loaded = {name: load_model(folder) for name, folder in folders.items()}
    if len({family.language_modeling for family, _ in loaded.values()}) > 1:
        raise ModelError(
            "Causal and masked models have no common measure of quality; compare models of one "
            "kind."
        )
    for _, model in loaded.values():
        model.to(device=pick_device())  # pyright: ignore[reportCallIssue]
    where, facts, protocol = _protocol(folders, loaded, text)
    own = {name: name for name in loaded}  # each is timed, also those of one configuration
    subjects = Subjects(folders, loaded, protocol, own, reporter or QuietReporter())
    models = measure(subjects)
    losses = {name: subjects.cache.quality[folder][1] for name, folder in folders.items()}
    for name, model in models.items():
        size = num_ids(load_model_tokenizer(folders[name]))
        model["diverged"] = has_diverged(losses[name].mean, size)
        model["loss_minus_first"] = _to_first(losses, name)
    return {
        "text": where,
        "protocol": {**facts, **protocol.facts},
        "machine": describe_machine(),
        "models": models,
    }


def _to_first(losses: Mapping[str, UnitLosses], name: str) -> dict[str, float | None] | None:
    """The difference to the first model's loss with its interval, where both were scored on the
    same tokens."""
    first, own = next(iter(losses.values())), losses[name]
    if own is first or not np.array_equal(first.tokens, own.tokens):
        return None
    return difference(own, first)


def _protocol(
    folders: Mapping[str, Path], loaded: Loaded, text: Path | None
) -> tuple[str, dict[str, Any], Protocol]:
    """The text, facts on it, and the protocol. Students of a run get the figures of its report."""
    if text is None and (found := _common_run(folders)) is not None:
        recipe, run = found
        name = recipe.evaluation.perplexity[0]
        where = f"the held-out documents of {run.path}" if name == "validation" else name
        return where, {"run": str(run.path)}, run_protocol(recipe, run, loaded)
    texts = _sample_validation() if text is None else [read_text(text)]
    where = "the sample's held-out documents" if text is None else str(text)
    tokenizers = {name: load_model_tokenizer(folder) for name, folder in folders.items()}
    scored = {name: scored_text(texts, each, where=where) for name, each in tokenizers.items()}
    context = min(family.num_positions(model.config) for family, model in loaded.values())
    family, _ = next(iter(loaded.values()))
    if family.language_modeling == "causal":
        starts = {
            name: special_tokens(each, "causal").document_start for name, each in tokenizers.items()
        }
        own = {name: {where: each} for name, each in scored.items()}
        protocol = causal_protocol(loaded, own, starts, context)
    else:
        length = min(MASKED_LENGTH, context)
        protocol = masked_protocol(
            loaded,
            {name: _masked_source(scored[name], each, length) for name, each in tokenizers.items()},
        )
    return where, {"documents": len(texts)}, protocol


def _common_run(folders: Mapping[str, Path]) -> tuple[Recipe, RunFolder] | None:
    """The run that the models belong to, where all others share its vocabulary; None without a run,
    or where the models belong to runs on different texts."""
    runs: dict[str, RunFolder] = {}
    for folder in folders.values():
        for place in folder.resolve().parents[:2]:
            run = RunFolder.at(place)
            manifest = read_manifest(run.tokens) if run.recipe.is_file() else None
            if manifest is not None:
                runs[manifest.fingerprint] = run
                break
    if len(runs) != 1:
        return None
    run = next(iter(runs.values()))
    vocabulary = open_tokenizer(run.tokens).get_vocab()
    if any(load_model_tokenizer(folder).get_vocab() != vocabulary for folder in folders.values()):
        return None
    return load_recipe(str(run.recipe))[1], run


def _sample_validation() -> list[str]:
    texts = [text for name, text in sample_documents() if is_validation(name, SAMPLE_FRACTION)]
    if not texts:
        raise DataError(
            "This Python's library holds no validation document; give a text with --text."
        )
    return texts


def _masked_source(
    text: ScoredText, tokenizer: PreTrainedTokenizerFast, length: int
) -> SequenceSource:
    """Packed sequences of tokenized documents that are in memory."""
    recipe = TokensRecipe(
        language_modeling="masked",
        sequence_length=length,
        masking=MaskingRecipe(rarity_exponent=0),
    )
    return pack(TokenSplit.in_memory(text.documents, num_ids(tokenizer)), tokenizer, recipe)


NUMBER_WIDTH = 26  # a rate with its ratio
LABEL_WIDTH = 21
Models = Mapping[str, dict[str, Any]]


def print_comparison(result: dict[str, Any]) -> None:
    """Print on stdout; models that do not fit side by side are in tables below each other."""
    models: Models = result["models"]
    first, *others = models
    beside = max(1, (Console().width - LABEL_WIDTH - NUMBER_WIDTH) // NUMBER_WIDTH)
    parts: list[terminal.Part] = [Text(f"On {_text(result)}")]
    parts += [
        _table({name: models[name] for name in [first, *others[start:][:beside]]})
        for start in range(0, max(1, len(others)), beside)
    ]
    parts += [
        Text(
            f"{name}: the loss is not finite, or far above that of a uniform guess: its training "
            "diverged, or its weights are damaged."
        )
        for name, model in models.items()
        if model["diverged"]
    ]
    if len({read(model, "perplexity.tokens_scored") for model in models.values()}) > 1:
        parts.append(Text("The models read other tokens: compare them per word and per byte."))
    intervals = [read(model, each.interval) for model in models.values() for each in METRICS]
    if any(map(is_noisy, intervals)):
        parts.append(Text("noisy: the range of the speed ratio; other work ran on the machine."))
    terminal.show(*parts)


def _text(result: dict[str, Any]) -> str:
    """The text, and how it was scored."""
    facts, model = result["protocol"], next(iter(result["models"].values()))
    parts = [result["text"]]
    if "documents" in facts:
        parts.append(counted(facts["documents"], "document"))
    if model["perplexity"]:
        parts.append(f"{counted(model['perplexity']['tokens_scored'], 'token')} of the first model")
    if "perplexity_block" in facts:
        parts.append(f"in blocks of {counted(facts['perplexity_block'], 'token')}")
    else:
        parts.append(f"in masked sequences of {counted(facts['sequence_length'], 'token')}")
    return ", ".join(parts)


def _table(models: Models) -> Table:
    rows = [row for metric in METRICS if metric.compared for row in _rows(metric, models)]
    rows.append(["Loss minus the first", *map(_difference, models.values())])
    rows.append(["State", *("diverged" if each["diverged"] else "" for each in models.values())])
    return terminal.table(["", *models], [row for row in rows if any(row[1:])], wrap=True)


def _rows(metric: Metric, models: Models) -> list[Sequence[str]]:
    """A metric of every model with its ratio to the first, and the range of a noisy ratio."""
    values = [read(model, metric.key) for model in models.values()]
    intervals = [read(model, metric.interval) for model in models.values()]
    return [
        [metric.label, *(_with_ratio(metric, value, values[0]) for value in values)],
        [
            "",
            *(
                f"noisy: {units.between(each[0], each[1], units.times)}" if is_noisy(each) else ""
                for each in intervals
            ),
        ],
    ]


def _with_ratio(metric: Metric, value: int | float | None, base: int | float | None) -> str:
    if value is None:
        return ""
    ratio = f" ({value / base:.2f}{units.TIMES})" if base and value is not base else ""
    return metric.unit.show(value) + ratio


def _difference(model: dict[str, Any]) -> str:
    found = model["loss_minus_first"]
    if found is None or found["value"] is None:
        return ""
    value, low, high = (
        None if found[key] is None else units.signed(found[key]) for key in ("value", "low", "high")
    )
    return f"{value}" if low is None else f"{value} ({low} to {high})"
