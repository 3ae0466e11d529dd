"""The corpus stage: read the documents, tokenize them, write token shards.

Reads `corpus.source` and a tokenizer. Writes `corpus/` (counts of what was read) and `tokens/`
(shards, token counts, the tokenizer). Contract: bounded memory for any input; the output follows
from the text, the tokenizer and the recipe, not from the machine or the number of its cores. The
log and the manifest list the formats that were read, what was skipped, and how text was split.
"""

import contextlib
import glob
import json
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from stillhouse.corpus.part_sizes import (
    SPLITS,
    Sizes,
    check_length,
    of_text,
    of_tokens,
    sizes_in_all,
    text_size,
)
from stillhouse.corpus.parts import Part, plan_parts, text_of_training
from stillhouse.corpus.vocabulary import TextTokens, Vocabulary, trim_to_text
from stillhouse.data.chunks import SAFE_STARTS, Chunk, split_text
from stillhouse.data.documents import ReadSummary, describe_sources, summarize_sources
from stillhouse.data.settings import CorpusRecipe
from stillhouse.errors import DataError
from stillhouse.recipe import Recipe
from stillhouse.runs.manifest import Inputs, commit_folder, fingerprint, fingerprint_of
from stillhouse.runs.paths import DOCUMENTS, RunFolder, part_folder_name
from stillhouse.section import recipe_part
from stillhouse.tokens.encoders import (
    FAST,
    REFERENCE,
    Encode,
    FastTokenizerMismatchError,
    open_fast,
    version_of,
    word_starts,
)
from stillhouse.tokens.mixture import drawn_parts
from stillhouse.tokens.settings import TrainedTokenizer
from stillhouse.tokens.shards import COUNTS, ShardWriter, token_dtype
from stillhouse.tokens.tokenizer import (
    load_tokenizer,
    num_ids,
    save_tokenizer,
    special_tokens,
    text_encoder,
    tokenizer_fingerprint,
    tokenizer_folder,
    tokenizer_path,
)
from stillhouse.tokens.vocabulary import write_kept
from stillhouse.wording import counted

BATCH_BYTES = 2**20
LETTER = "a"  # tokens end between it and a space or line end
PART_CHARACTERS = 2**15  # small enough that a batch keeps every core busy
TRAINING_BYTES = 200 * 10**6  # the most text that a tokenizer is trained or trimmed on
PROGRESS_SECONDS = 5.0

Progress = Callable[[str], None]
EncodedChunk = tuple[Chunk, int, np.ndarray]  # with its size in UTF-8 bytes and its token ids


@dataclass
class TextCounts:
    """The size of one split of the text, in words separated by white space, too."""

    documents: int = 0
    bytes: int = 0
    words: int = 0
    _inside_word: bool = False

    def add(self, chunk: Chunk, num_bytes: int) -> None:
        """Count a chunk; a word that is cut in two counts once."""
        if chunk.starts_document:
            self.documents += 1
            self._inside_word = False
        self.bytes += num_bytes
        self.words += word_starts(chunk.text, inside_word=self._inside_word)
        self._inside_word = not chunk.text[-1].isspace()

    def facts(self) -> dict[str, int]:
        return {"documents": self.documents, "bytes": self.bytes, "words": self.words}


def text_to_tokenize(recipe: Recipe, run: RunFolder) -> CorpusRecipe:
    """The recipe's text, or what the stage clean has made of it."""
    if recipe.cleaning is None:
        return recipe.text
    folder = glob.escape(str(run.clean))
    found = {
        name: f"{folder}/{part_folder_name(name, '*')}/{DOCUMENTS}" for name in recipe.text.parts
    }
    source = found.get("", found)
    return recipe.text.model_copy(update={"source": source, "text_field": "text"})


def prepare_inputs(recipe: Recipe, run: RunFolder, *, teacher_tokenizer: Path | None) -> Inputs:
    """What the tokens depend on, from the sizes and times of the files; reads no text."""
    if recipe.cleaning is None:
        sources = {"text": fingerprint(describe_sources(recipe.text))}
    else:
        sources = {"text": fingerprint_of(run.clean)}
    tokenizer = recipe.tokens.tokenizer
    if not isinstance(tokenizer, TrainedTokenizer):
        sources["tokenizer"] = tokenizer_fingerprint(tokenizer_path(tokenizer, teacher_tokenizer))
    tokens = {
        "language_modeling": recipe.tokens.language_modeling,
        "tokenizer": recipe_part(tokenizer),
    }
    if recipe.student.vocabulary is not None:
        tokens["vocabulary"] = recipe.student.vocabulary
    return Inputs("prepare", {"corpus": recipe_part(recipe.text), "tokens": tokens}, sources)


def prepare(
    recipe: Recipe,
    run: RunFolder,
    *,
    teacher_tokenizer: Path | None,
    offline: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write `run.corpus` and `run.tokens`, both atomically.

    Raises:
        DataError: invalid text or an invalid tokenizer, or a split without documents.
        NetworkError: a hub dataset while offline or without a connection.
    """
    report = progress or (lambda message: None)
    inputs = prepare_inputs(recipe, run, teacher_tokenizer=teacher_tokenizer)
    recipe = recipe.model_copy(update={"corpus": text_to_tokenize(recipe, run)})
    summary = summarize_sources(recipe.text)
    parts = plan_parts(recipe.text, offline=offline)

    def training_chunks() -> Iterator[Chunk]:
        return text_of_training(parts, recipe.text.mixture, TRAINING_BYTES)

    chosen = recipe.tokens.tokenizer
    if isinstance(chosen, TrainedTokenizer):
        from stillhouse.tokens.tokenizer_training import train_tokenizer

        report(f"training a {chosen.train} tokenizer of {chosen.vocabulary_size:,} entries")
        texts = (chunk.text for chunk in training_chunks())
        modeling = recipe.tokens.language_modeling
        tokenizer = train_tokenizer(chosen.train, chosen.vocabulary_size, texts, modeling)
    else:
        tokenizer = load_tokenizer(tokenizer_path(chosen, teacher_tokenizer))
    vocabulary, size = None, recipe.student.vocabulary
    if size is not None:
        report(f"counting tokens, to keep {size:,} of {len(tokenizer):,}")

        def count(tokenizer: PreTrainedTokenizerFast) -> TextTokens:
            def with_engine(_: str, encoding: contextlib.AbstractContextManager[Encode]) -> Any:
                with encoding as encode:
                    return TextTokens.of(tokenizer, _with_ids(training_chunks(), encode))

            return _with_fastest(tokenizer, with_engine)

        vocabulary = trim_to_text(tokenizer, size, count)
        tokenizer = vocabulary.trimmed.tokenizer
        report(_cost_of_cut(vocabulary.facts()))
    work = _Work(recipe, run, tokenizer, vocabulary, inputs, summary, parts, overwrite, report)
    _with_fastest(tokenizer, partial(_write_folders, work), report)


def _with_fastest(
    tokenizer: PreTrainedTokenizerFast,
    run: Callable[[str, contextlib.AbstractContextManager[Encode]], Any],
    report: Progress = lambda message: None,
) -> Any:
    """What `run` gives with the fast encoder, or with the reference where that one fails."""
    try:
        encoding = open_fast(tokenizer)
        report(f"tokenizing with {version_of(FAST)}, checked against {REFERENCE}")
        return run(FAST, encoding)
    except FastTokenizerMismatchError as reason:
        report(f"tokenizing with {version_of(REFERENCE)}: {reason}")
        return run(REFERENCE, contextlib.nullcontext(text_encoder(tokenizer)))


@dataclass(frozen=True)
class _Work:
    """The arguments of `_write_folders`, for either encoder."""

    recipe: Recipe
    run: RunFolder
    tokenizer: PreTrainedTokenizerFast
    vocabulary: Vocabulary | None
    inputs: Inputs
    summary: ReadSummary
    parts: list[Part]
    overwrite: bool
    report: Progress


def _write_folders(
    work: _Work, engine: str, encoding: contextlib.AbstractContextManager[Encode]
) -> None:
    """Write both folders with one encoder; neither is written if it raises an error."""
    work.report(f"reading {work.summary}")
    for part in work.parts:
        if note := part.splitting.note:
            work.report(f"{part.name}: {note}" if part.name else note)
    corpus, tokenizer = work.recipe.text, work.tokenizer
    language_modeling = work.recipe.tokens.language_modeling
    special = special_tokens(tokenizer, language_modeling)
    prefix = special.document_prefix if language_modeling == "causal" else ()
    files = describe_sources(corpus)
    token_facts: dict[str, Any] = {
        "language_modeling": language_modeling,
        "dtype": token_dtype(num_ids(tokenizer)).name,
        "vocabulary_size": num_ids(tokenizer),
        "special_tokens": asdict(special),
        "engine": version_of(engine),
    }
    text_facts: dict[str, Any] = {}
    tokens, overwrite = work.run.tokens, work.overwrite
    with (
        commit_folder(tokens, work.inputs, token_facts, overwrite=overwrite) as tokens_folder,
        commit_folder(work.run.corpus, work.inputs, text_facts, overwrite=overwrite) as folder,
    ):
        writers = {
            split: ShardWriter(
                tokens_folder, split, vocabulary_size=num_ids(tokenizer), document_prefix=prefix
            )
            for split in SPLITS
        }
        with writers["train"], writers["validation"], encoding as encode:
            work.summary.blank_documents = 0
            parts = {part.name: _write_part(work, part, writers, encode) for part in work.parts}
            if number := work.summary.blank_documents:
                work.report(f"left out {counted(number, 'blank document')}")
        totals = sizes_in_all(parts.values())
        token_facts["splits"] = {
            split: {
                **of_text(totals[split]),
                "documents": writer.num_documents,
                "tokens": writer.num_tokens,
                "empty_documents": writer.empty_documents,
                "shards": writer.shards,
            }
            for split, writer in writers.items()
        }
        text_facts["splits"] = {split: of_text(own) for split, own in totals.items()}
        text_facts["read"] = work.summary.facts()
        if "" in parts:
            text_facts["splitting"] = asdict(work.parts[0].splitting)
        else:
            _add_parts(work, parts, token_facts, text_facts)
        if work.vocabulary is not None:
            write_kept(tokens_folder, work.vocabulary.kept)
            token_facts["vocabulary"] = work.vocabulary.facts()
        (tokens_folder / COUNTS).write_bytes(writers["train"].counts.tobytes())
        save_tokenizer(tokenizer, tokenizer_folder(tokens_folder))
        (folder / "sources.json").write_text(json.dumps(files, indent=1) + "\n", encoding="utf-8")


def _cost_of_cut(facts: Mapping[str, Any]) -> str:
    """How a text reads in the vocabulary that was chosen on it."""
    per_byte, lost = facts["tokens_per_byte"], facts["unknown_share"]
    cost = (
        f"{facts['tokens']:,} of {facts['of']:,} tokens stay, which are {facts['kept_share']:.2%} "
        "of those in the text they were chosen on; it has "
        f"{per_byte['trimmed'] / per_byte['whole'] - 1:+.2%} tokens"
    )
    if any(lost.values()):
        cost += f", {lost['trimmed']:.3%} of them unknown ({lost['whole']:.3%} before)"
    return cost


def _with_ids(chunks: Iterator[Chunk], encode: Encode) -> Iterator[EncodedChunk]:
    """Encode the chunks in batches, each while the next one is read."""
    with ThreadPoolExecutor(1) as encoder:
        previous = encoder.submit(_encode_batch, [], encode)
        for batch in _batches(chunks):
            following = encoder.submit(_encode_batch, batch, encode)
            yield from previous.result()
            previous = following
        yield from previous.result()


def _batches(chunks: Iterator[Chunk]) -> Iterator[list[tuple[Chunk, int]]]:
    """Chunks and their sizes in bytes, in batches of at least `BATCH_BYTES`."""
    batch: list[tuple[Chunk, int]] = []
    waiting = 0
    for chunk in chunks:
        size = len(chunk.text.encode())
        batch.append((chunk, size))
        waiting += size
        if waiting >= BATCH_BYTES:
            yield batch
            batch, waiting = [], 0
    if batch:
        yield batch


def _encode_batch(batch: list[tuple[Chunk, int]], encode: Encode) -> list[EncodedChunk]:
    """Encode chunks in parts. Some tokenizers add a space to a text, so a part that continues
    another one is encoded after a letter, whose tokens are dropped. (Not where a million characters
    had no safe place to cut: the space stays there.)"""
    parts = [list(split_text(chunk.text, PART_CHARACTERS)) for chunk, _ in batch]
    continued = [
        (number > 0 or not chunk.starts_document) and part.startswith(SAFE_STARTS)
        for (chunk, _), own in zip(batch, parts, strict=True)
        for number, part in enumerate(own)
    ]
    texts = chain.from_iterable(parts)
    led = [LETTER * after + text for text, after in zip(texts, continued, strict=True)]
    letter, *found = encode([LETTER, *led])
    ids = (own[after * len(letter) :] for own, after in zip(found, continued, strict=True))
    return [
        (chunk, size, np.concatenate([next(ids) for _ in own]))
        for (chunk, size), own in zip(batch, parts, strict=True)
    ]


def _write_part(work: _Work, part: Part, writers: dict[str, ShardWriter], encode: Encode) -> Sizes:
    """Write the tokens of a part of the text, after those of the parts before it."""
    before = {split: (each.num_documents, each.num_tokens) for split, each in writers.items()}
    counts = {split: TextCounts() for split in writers}
    last = time.monotonic()
    for chunk, size, ids in _with_ids(part.chunks(work.summary), encode):
        split = "validation" if part.splitting.is_validation(chunk) else "train"
        counts[split].add(chunk, size)
        writers[split].add(ids, starts_document=chunk.starts_document)
        if time.monotonic() - last >= PROGRESS_SECONDS:
            work.report(_progress(part.name, counts, before, writers))
            last = time.monotonic()
    work.report(_progress(part.name, counts, before, writers))
    for split, writer in writers.items():
        if writer.num_documents == before[split][0]:
            of_part = f" of the part {part.name}" if part.name else ""
            raise DataError(
                f"The {split} split{of_part} is empty: the tokenizer gives no token for any of its "
                f"{counts[split].documents} documents. Give other text, or another tokenizer."
            )
    return {
        split: {
            **counts[split].facts(),
            "stored": writer.num_documents - before[split][0],
            "tokens": writer.num_tokens - before[split][1],
        }
        for split, writer in writers.items()
    }


def _progress(
    part: str,
    counts: dict[str, TextCounts],
    before: dict[str, tuple[int, int]],
    writers: dict[str, ShardWriter],
) -> str:
    documents = sum(count.documents for count in counts.values())
    size = sum(count.bytes for count in counts.values())
    tokens = sum(each.num_tokens - before[split][1] for split, each in writers.items())
    written = f"{counted(documents, 'document')}, {text_size(size)}, {counted(tokens, 'token')}"
    return f"{part}: {written}" if part else written


def _add_parts(
    work: _Work, parts: dict[str, Sizes], token_facts: dict[str, Any], text_facts: dict[str, Any]
) -> None:
    """Note the size of each part, and how often it is drawn.

    Raises:
        DataError: weights that draw far more than the text has.
    """
    tokens = {name: own["train"]["tokens"] for name, own in parts.items()}
    drawn = drawn_parts(tokens, work.recipe.text.mixture)
    check_length(drawn)
    for split, facts in token_facts["splits"].items():
        facts["parts"] = {name: of_tokens(own[split]) for name, own in parts.items()}
    token_facts["parts"] = drawn
    text_facts["parts"] = {
        part.name: {
            "splits": {
                split: {**of_text(own), "tokens": own["tokens"]}
                for split, own in parts[part.name].items()
            },
            "repeats": drawn[part.name]["repeats"],
            "share": drawn[part.name]["share"],
            "splitting": asdict(part.splitting),
        }
        for part in work.parts
    }
    for name, own in drawn.items():
        train = parts[name]["train"]
        work.report(
            f"{name}: {counted(train['documents'], 'document')} to train on, "
            f"{text_size(train['bytes'])}, {counted(own['tokens'], 'token')}; an epoch has them "
            f"{own['repeats']:.3g} times, {own['share']:.1%} of what it draws"
        )
