"""Models side by side on the same text, without a run: size, speed, memory, quality."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stillhouse.data.sample import sample_documents
from stillhouse.errors import DataError, ModelError
from stillhouse.evaluation.perplexity import ScoredText, mean_loss, perplexity
from stillhouse.evaluation.speed import measure_speed, peak_memory_bytes
from stillhouse.evaluation.texts import read_text, scored_text
from stillhouse.families import count_parameters, load_model, resolve_folder
from stillhouse.machine import describe_machine
from stillhouse.recipe import MaskingRecipe
from stillhouse.tokens.held_out import is_validation
from stillhouse.tokens.packing import MaskedSequences
from stillhouse.tokens.shards import TokenSplit
from stillhouse.tokens.tokenizer import load_tokenizer, special_tokens

SAMPLE_FRACTION = 0.04  # the validation fraction of the recipe sample-teacher
MASKED_LENGTH = 128


def compare_models(names: Sequence[str], text: Path | None, *, offline: bool) -> dict[str, Any]:
    """Figures of each model; `text` is a file, or None for the sample's validation split."""
    texts = _sample_validation() if text is None else [read_text(text)]
    where = "the sample's validation split" if text is None else str(text)
    folders = {name: resolve_folder(name, offline=offline) for name in dict.fromkeys(names)}
    loaded = {name: load_model(folder) for name, folder in folders.items()}
    kinds = {family.language_modeling for family, _ in loaded.values()}
    if len(kinds) > 1:
        raise ModelError(
            "Causal and masked models have no common measure of quality; compare models of one "
            "kind."
        )
    speeds = measure_speed(loaded)
    models = {}
    for name, (family, model) in loaded.items():
        tokenizer = load_tokenizer(folders[name])
        special = special_tokens(tokenizer, family.language_modeling)
        scored = scored_text(texts, tokenizer, where=where)
        figures: dict[str, Any] = {"perplexity": None, "masked_loss": None}
        if family.language_modeling == "causal":
            assert special.end_of_text is not None
            figures["perplexity"] = perplexity(
                family, model, scored, end_of_text=special.end_of_text
            )
        else:
            length = min(MASKED_LENGTH, family.num_positions(model.config))
            split = _in_memory(scored, len(tokenizer))
            masking = MaskingRecipe(rarity_exponent=0)
            source = MaskedSequences(
                split, length, special, masking, vocabulary_size=len(tokenizer), counts=split.counts
            )
            figures["masked_loss"], _ = mean_loss(family, model, source)
        total, body = count_parameters(model)
        models[name] = {
            "path": str(folders[name]),
            "parameters": total,
            "body_parameters": body,
            "size_bytes": sum(file.stat().st_size for file in folders[name].glob("*.safetensors")),
            **figures,
            "speed": speeds[name],
            "peak_memory_bytes": peak_memory_bytes(folders[name]),
        }
    return {"text": where, "machine": describe_machine(), "models": models}


def _sample_validation() -> list[str]:
    texts = [text for name, text in sample_documents() if is_validation(name, SAMPLE_FRACTION)]
    if not texts:
        raise DataError(
            "This Python's library holds no validation document; give a text with --text."
        )
    return texts


def _in_memory(text: ScoredText, vocabulary_size: int) -> TokenSplit:
    """Tokenized documents as a split, without a folder."""
    ids = np.concatenate(text.documents)
    starts = np.cumsum([0, *map(len, text.documents)]).astype(np.uint64)
    counts = np.bincount(ids, minlength=vocabulary_size).astype(np.uint64)
    return TokenSplit(
        "text", vocabulary_size, (ids,), starts, counts, (Path(tempfile.gettempdir()),)
    )


def print_comparison(result: dict[str, Any]) -> None:
    """The comparison as a table, a column a model, on stdout; ratios are to the first model."""
    from rich.console import Console
    from rich.table import Table

    models = result["models"]
    table = Table("", *models, title=f"on {result['text']}")
    for column in table.columns[1:]:
        column.justify = "right"
    first = next(iter(models.values()))
    for label, read, show in _MEASURES:
        values = [read(model) for model in models.values()]
        base = read(first)
        if any(value is not None for value in values):
            table.add_row(label, *(_against(value, base, show) for value in values))
    Console().print(table)


_MEASURES: list[tuple[str, Callable[[dict[str, Any]], float | None], str]] = [
    ("parameters", lambda model: model["parameters"] / 1e6, "{:.1f} M"),
    ("size on disk", lambda model: model["size_bytes"] / 1e6, "{:.1f} MB"),
    ("reads", lambda model: model["speed"]["forward_tokens_per_second"], "{:,.0f} tokens/s"),
    ("writes", lambda model: model["speed"]["generate_tokens_per_second"], "{:,.0f} tokens/s"),
    ("peak memory", lambda model: (model["peak_memory_bytes"] or 0) / 1e6 or None, "{:.0f} MB"),
    ("masked loss", lambda model: model["masked_loss"], "{:.3f} nats"),
    ("perplexity per token", lambda model: _quality(model, "token"), "{:.2f}"),
    ("perplexity per word", lambda model: _quality(model, "word"), "{:,.1f}"),
    ("bits per byte", lambda model: _quality(model, "bits_per_byte"), "{:.3f}"),
]


def _quality(model: dict[str, Any], key: str) -> float | None:
    return model["perplexity"][key] if model["perplexity"] else None


def _against(value: float | None, base: float | None, show: str) -> str:
    if value is None:
        return ""
    ratio = f" ({value / base:.2f}x)" if base and value is not base else ""
    return show.format(value) + ratio
