"""Tokenizing with gigatoken compared with the `tokenizers` library: verified equal, then timed.

    python -m benchmarks.tokenize --output tokenize.json

Reads the sample text and the sample teacher's tokenizer, or those of --text and --tokenizer.
Writes a table, and with --output every raw number. Exits with 1 if the tokens are not equal.

Two things are timed, alternating. The encoders: `tokenizers` alone in its best configuration (all
text in one `encode_batch_fast` on all cores, in parts of its fastest size), compared with gigatoken
as `prepare` uses it, with its verification and new caches each time. And `prepare` as a whole, with
and without gigatoken.
"""

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from benchmarks import measure
from stillhouse.corpus.prepare import BATCH_BYTES, PART_CHARACTERS, prepare
from stillhouse.data.chunks import split_text
from stillhouse.data.documents import read_documents
from stillhouse.models.hub import resolve_folder
from stillhouse.recipe import Recipe
from stillhouse.runs.paths import RunFolder
from stillhouse.tokens.encoders import (
    FAST,
    REFERENCE,
    FastTokenizerMismatchError,
    open_fast,
    version_of,
)
from stillhouse.tokens.tokenizer import load_tokenizer, text_encoder

BEST_CHARACTERS = 2**13  # of 2**11, 2**13 and 2**15; `tokenizers` slows down on longer texts


@dataclass(frozen=True)
class Result:
    """Seconds of each round, by engine; a round contains both."""

    size_bytes: int
    num_tokens: int
    encoding: dict[str, list[float]]
    prepare: dict[str, list[float]]

    def ratios(self, seconds: dict[str, list[float]]) -> list[float]:
        """The speedup over `tokenizers`, round by round."""
        pairs = zip(seconds[REFERENCE], seconds[FAST], strict=True)
        return [theirs / ours for theirs, ours in pairs]

    def megabytes_per_second(self, seconds: list[float]) -> float:
        return self.size_bytes / 1e6 / statistics.median(seconds)


def recipe_for(source: str) -> Recipe:
    """A recipe that only prepares; with a tenth held out, few documents suffice for both splits."""
    return Recipe.model_validate(
        {"teacher": "any", "corpus": {"source": source, "validation_fraction": 0.1}}
    )


def batches_of(recipe: Recipe) -> list[list[str]]:
    """The whole corpus in the parts, and about the batches, in which `prepare` encodes it."""
    batches: list[list[str]] = [[]]
    size = 0
    for piece in read_documents(recipe.text, offline=True):
        for part in split_text(piece.text, PART_CHARACTERS):
            if size >= BATCH_BYTES:
                batches.append([])
                size = 0
            batches[-1].append(part)
            size += len(part)
    return batches


def bare(tokenizer: PreTrainedTokenizerFast, batches: list[list[str]]) -> measure.Step:
    """`tokenizers` alone, nothing converted."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True

    whole = "".join(text for batch in batches for text in batch)
    texts = list(split_text(whole, BEST_CHARACTERS))

    def step() -> None:
        backend.encode_batch_fast(texts, add_special_tokens=False)

    return step


def checked(
    tokenizer: PreTrainedTokenizerFast, batches: list[list[str]], *, times: int
) -> measure.Step:
    """gigatoken as `prepare` uses it; opened beforehand, each used once, since it caches words."""
    encoders = iter([open_fast(tokenizer) for _ in range(times)])

    def step() -> None:
        with next(encoders) as encode:
            for batch in batches:
                encode(batch)

    return step


@contextlib.contextmanager
def without_gigatoken() -> Iterator[None]:
    """As on a machine where it is not installed."""
    import gigatoken

    sys.modules["gigatoken"] = None  # pyright: ignore[reportArgumentType]
    try:
        yield
    finally:
        sys.modules["gigatoken"] = gigatoken


def preparing(recipe: Recipe, tokenizer: Path) -> dict[str, measure.Step]:
    """The whole stage into a temporary folder, with each engine."""

    def step() -> None:
        with tempfile.TemporaryDirectory() as folder:
            prepare(recipe, RunFolder.at(Path(folder, "run")), teacher_tokenizer=tokenizer)

    def slow_step() -> None:
        with without_gigatoken():
            step()

    return {REFERENCE: slow_step, FAST: step}


def measure_text(source: str, tokenizer_folder: Path, repeats: int) -> Result:
    """Equality of every token, then the timings.

    Raises:
        FastTokenizerMismatchError: gigatoken is missing, or its ids are not those of `tokenizers`.
    """
    recipe, tokenizer = recipe_for(source), load_tokenizer(tokenizer_folder)
    batches = batches_of(recipe)
    num_tokens = check_equality(tokenizer, batches)
    encoders = {
        REFERENCE: bare(tokenizer, batches),
        FAST: checked(tokenizer, batches, times=repeats + 1),
    }
    return Result(
        size_bytes=sum(len(text.encode()) for batch in batches for text in batch),
        num_tokens=num_tokens,
        encoding=measure.interleaved_seconds(encoders, repeats=repeats),
        prepare=measure.interleaved_seconds(preparing(recipe, tokenizer_folder), repeats=repeats),
    )


def check_equality(tokenizer: PreTrainedTokenizerFast, batches: list[list[str]]) -> int:
    """The number of tokens, after comparing each."""
    encode, num_tokens = text_encoder(tokenizer), 0
    with open_fast(tokenizer) as fast:
        for batch in batches:
            for text, found, expected in zip(batch, fast(batch), encode(batch), strict=True):
                if not np.array_equal(found, expected):
                    raise FastTokenizerMismatchError(
                        f"{FAST} gives other tokens for {text[:80]!r}..."
                    )
                num_tokens += len(expected)
    return num_tokens


def comparison_table(result: Result) -> Table:
    """One line for each engine and each timed part."""
    title = f"{result.size_bytes / 1e6:.1f} MB of text, {result.num_tokens:,} tokens, all equal"
    table = Table("what", "engine", title=title)
    for column in ("seconds", "fastest", "MB/s", f"x {REFERENCE}"):
        table.add_column(column, justify="right", no_wrap=True)
    for what, seconds in (("encoding", result.encoding), ("prepare", result.prepare)):
        for engine, rounds in seconds.items():
            table.add_row(
                what,
                engine,
                f"{statistics.median(rounds):.2f}",
                f"{min(rounds):.2f}",
                f"{result.megabytes_per_second(rounds):.1f}",
                "1" if engine == REFERENCE else f"{statistics.median(result.ratios(seconds)):.2f}",
            )
    return table


def report(result: Result, options: argparse.Namespace, load: Any) -> dict[str, Any]:
    """Every raw number, and how it was measured."""
    timed = {"encoding": result.encoding, "prepare": result.prepare}
    return {
        "command": " ".join(["python -m benchmarks.tokenize", *sys.argv[1:]]),
        "settings": {"repeats": options.repeats},
        **measure.environment(),
        "engines": [version_of(FAST), version_of(REFERENCE)],
        "load_average": {"before": load, "after": os.getloadavg()},
        "result": asdict(result)
        | {
            "megabytes_per_second": {
                what: {
                    name: result.megabytes_per_second(rounds) for name, rounds in seconds.items()
                }
                for what, seconds in timed.items()
            },
            f"times_{REFERENCE}": {what: result.ratios(seconds) for what, seconds in timed.items()},
            f"median_times_{REFERENCE}": {
                what: statistics.median(result.ratios(seconds)) for what, seconds in timed.items()
            },
        },
    }


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tokenize", description=__doc__)
    parser.add_argument("--text", default="sample", help="a file, folder or glob, as corpus.source")
    parser.add_argument("--tokenizer", default="sample", help="a folder with byte-level BPE")
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds, each with both")
    parser.add_argument("--output", type=Path, help="a JSON file for every raw number")
    return parser.parse_args(arguments)


def main() -> int:
    options, load, console = parse_options(), os.getloadavg(), Console()
    try:
        folder = resolve_folder(options.tokenizer, offline=True)
        result = measure_text(options.text, folder, options.repeats)
    except FastTokenizerMismatchError as reason:
        console.print(f"Nothing timed: {reason}", markup=False)
        return 1
    console.print(comparison_table(result))
    if options.output is not None:
        text = json.dumps(report(result, options, load), indent=1)
        options.output.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
