"""Writes the teacher cache: teacher + tokens/ -> teacher-cache/, once for all epochs, seeds and
students.

The teacher reads every sequence of the training split once. For each row that a loss uses, a sparse
sample of its distribution is stored (`objectives.sparse`), and the last hidden state where a loss
needs it. Masks are fixed. Parts are committed one by one, so that an interrupted run resumes."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PretrainedConfig

from stillhouse.distillation.settings import CACHED_LOSSES
from stillhouse.errors import RunError
from stillhouse.families.base import hidden_state_size
from stillhouse.objectives.chunks import rows_per_chunk
from stillhouse.objectives.language_model import Teacher, needs_hidden
from stillhouse.objectives.settings import LossesRecipe
from stillhouse.objectives.sparse import sparse_kl, sparse_rows
from stillhouse.recipe import Recipe
from stillhouse.runs.atomic import archive_existing
from stillhouse.runs.manifest import (
    Inputs,
    commit_folder,
    commit_parts,
    fingerprint_of,
    is_up_to_date,
    read_manifest,
    verify,
)
from stillhouse.runs.paths import RunFolder
from stillhouse.section import Rows, recipe_part
from stillhouse.tokens.batches import Batch, SparseRows, TeacherRows, sample_key
from stillhouse.tokens.packing import open_source
from stillhouse.tokens.teacher_cache import (
    FIXED_EPOCH,
    FIXED_SEED,
    CacheFormat,
    FixedMaskSource,
    TeacherCache,
    part_folder,
    write_rows,
)
from stillhouse.training.device import (
    Precision,
    autocast,
    explained_memory_errors,
    micro_batch_sequences,
    pick_device,
    pick_precision,
)
from stillhouse.training.progress import Reporter
from stillhouse.training.ranks import Ranks, StopRequest, stopped

TOKENS_PER_PART = 2**18
CHECKED_ROWS, FEWEST_CHECKED_SEQUENCES = 1_000, 4
# The largest difference between a cache and the teacher that wrote it: rounding in nats per row,
# sampling noise in standard errors, and rounding of hidden states relative to their norm.
LARGEST_LOSS, LARGEST_NOISE, LARGEST_DISTANCE = 0.02, 6, 0.05
SAMPLE_SEED = FIXED_SEED + 1  # not that of the masks, so that the sample is independent of them


def cached_rows(losses: LossesRecipe) -> Rows:
    """The rows that a cache holds: those of the teacher's term with the most rows."""
    terms = losses.active()
    return (
        "all" if any(terms[n].rows == "all" for n in CACHED_LOSSES if n in terms) else "predicted"
    )


def cache_inputs(recipe: Recipe, run: RunFolder, teacher: str) -> Inputs:
    """The inputs of a cache, which depends neither on the student nor on the seed."""
    settings = {
        "teacher_outputs": recipe_part(recipe.cache) if recipe.cache else None,
        "temperature": recipe.distillation.temperature,
        "precision": pick_precision(recipe.distillation.precision, pick_device()),
        "rows": cached_rows(recipe.distillation.losses),
        "hidden": needs_hidden(recipe.distillation.losses),
        "tokens_per_part": TOKENS_PER_PART,
        "tokens": recipe_part(recipe.tokens),
    }
    sources = {"tokens": fingerprint_of(run.tokens), "teacher": teacher}
    return Inputs("teacher-cache", settings, sources)


def cache_format(
    recipe: Recipe,
    teacher: PretrainedConfig,
    sequence_length: int,
    *,
    vocabulary_size: int | None = None,
) -> CacheFormat:
    """The layout of the recipe's cache.

    Args:
        vocabulary_size: The teacher's, without rows of padding, where it is known.
    """
    assert recipe.cache is not None
    losses = recipe.distillation.losses
    size = teacher.vocab_size if vocabulary_size is None else vocabulary_size
    return CacheFormat(
        recipe.cache.cache,
        min(recipe.cache.size, size),
        cached_rows(losses),
        size,
        hidden_state_size(teacher) if needs_hidden(losses) else None,
        max(1, TOKENS_PER_PART // sequence_length),
    )


class CacheWriter:
    """One recipe's teacher cache, and the teacher that fills it."""

    def __init__(self, recipe: Recipe, run: RunFolder, teacher: Teacher, ranks: Ranks) -> None:
        self.recipe = recipe
        self.run = run
        self.teacher = teacher
        self.ranks = ranks
        self.device = pick_device()
        self.source = open_source(run.tokens, recipe.tokens, "train")
        self.layout = cache_format(
            recipe,
            teacher.model.config,
            self.source.sequence_length,
            vocabulary_size=len(teacher.family.head(teacher.model).weight),
        )

    @property
    def num_parts(self) -> int:
        return -(-self.source.num_sequences // self.layout.sequences_per_part)

    def write(self, inputs: Inputs, reporter: Reporter, *, overwrite: bool = False) -> None:
        """Write the missing parts, which the ranks share, and complete the cache.

        Raises:
            Stopped: SIGINT or SIGTERM; the parts written so far are kept.
        """
        target = self.run.teacher_cache
        self.ranks.on_rank0(lambda: self._begin(inputs, overwrite=overwrite))
        reporter.start("teacher cache", 0, self.source.num_sequences)
        try:
            with StopRequest() as stop:
                for part in range(self.ranks.rank, self.num_parts, self.ranks.size):
                    if not self._is_written(part, reporter):
                        self._write_part(part, inputs, reporter, stop)
        finally:
            reporter.finish()
        facts = {
            "format": asdict(self.layout),
            "num_parts": self.num_parts,
            "bytes_per_row": self.layout.bytes_per_row,
        }
        self.ranks.barrier()
        self.ranks.on_rank0(lambda: commit_parts(target, inputs, facts))

    def _begin(self, inputs: Inputs, *, overwrite: bool) -> None:
        """Keep the parts of an unfinished cache of the same inputs; archive any other."""
        target = self.run.teacher_cache
        unfinished = read_manifest(target) is None
        if not (unfinished and all(is_up_to_date(part, inputs) for part in target.glob("part-*"))):
            archive_existing(target, overwrite=overwrite)

    def _is_written(self, part: int, reporter: Reporter) -> bool:
        folder = part_folder(self.run.teacher_cache, part)
        try:
            verify(folder)
        except RunError as error:
            if folder.exists():
                reporter.say(f"{error} It is rewritten.")
            return False
        return True

    def _write_part(self, part: int, inputs: Inputs, reporter: Reporter, stop: StopRequest) -> None:
        first = part * self.layout.sequences_per_part
        last = min(first + self.layout.sequences_per_part, self.source.num_sequences)
        rows: list[TeacherRows] = []
        counts: list[np.ndarray] = []
        folder = part_folder(self.run.teacher_cache, part)
        with commit_folder(folder, inputs, overwrite=True) as temporary:
            for sequences in self._micro_batches(first, last):
                if stop.signal_number is not None:
                    kept = len(list(self.run.teacher_cache.glob("part-*")))
                    parts = f"{kept} of {self.num_parts} parts of the teacher cache are committed."
                    raise stopped(stop.signal_number, parts)
                started = time.monotonic()
                batch = self._batch(sequences)
                with explained_memory_errors(len(sequences), self.source.sequence_length):
                    rows.append(self.rows(batch, sequences))
                counts.append(batch.rows(self.layout.rows).sum(1).numpy())
                rate = batch.num_rows("all") / (time.monotonic() - started)
                reporter.step(int(sequences[-1]) + 1, {"tokens_per_second": rate})
            write_rows(temporary, TeacherRows.join(rows), np.concatenate(counts), self.layout)

    def _micro_batches(self, first: int, last: int) -> Iterator[np.ndarray]:
        wanted = self.recipe.distillation.micro_batch_tokens
        size = micro_batch_sequences(wanted, self.device, self.source.sequence_length)
        for start in range(first, last, size):
            yield np.arange(start, min(start + size, last))

    def _batch(self, sequences: np.ndarray) -> Batch:
        return FixedMaskSource(self.source).batch(sequences, np.zeros_like(sequences), FIXED_SEED)

    def rows(self, batch: Batch, sequences: np.ndarray) -> TeacherRows:
        """The rows that the cache holds for a batch of the given sequences."""
        counts = batch.rows(self.layout.rows).sum(1).tolist()
        uniform = torch.from_numpy(chances(sequences.tolist(), counts))
        distillation = self.recipe.distillation
        return teacher_rows(
            self.teacher,
            batch.to(self.device),
            self.layout,
            uniform.to(self.device),
            temperature=distillation.temperature,
            precision=pick_precision(distillation.precision, self.device),
        )

    @torch.inference_mode()
    def check(self, cache: TeacherCache, seed: int) -> float:
        """Compare the cache with the teacher on random sequences of about `CHECKED_ROWS` rows.

        Returns:
            KL(cache || live teacher) in nats, mean over rows: zero up to rounding and sampling
            noise.

        Raises:
            RunError: they disagree, so this is the cache of another teacher.
        """
        sequences = self._sample_sequences(cache, seed)
        kept = cache.rows(sequences)
        distillation = self.recipe.distillation
        precision = pick_precision(distillation.precision, self.device)
        batch = self._batch(sequences).to(self.device)
        hidden, pieces = _teacher_outputs(self.teacher, batch, self.layout.rows, precision)
        temperature = distillation.temperature
        values = torch.cat(
            [
                sparse_kl(logits, kept.targets[part].to(self.device), temperature=temperature)
                for part, logits in pieces
            ]
        )
        if not len(values):
            return 0.0
        mean = float(values.mean())
        noise = float(values.std(correction=0)) / len(values) ** 0.5
        if not abs(mean) <= LARGEST_LOSS + LARGEST_NOISE * noise:
            raise self._differs(cache, f"{mean:.3f} nats a row", sequences)
        if kept.hidden is not None:
            distance = (kept.hidden.to(self.device) - hidden.float()).norm(dim=-1)
            apart = float((distance / hidden.float().norm(dim=-1)).mean())
            if not apart <= LARGEST_DISTANCE:
                raise self._differs(cache, f"{apart:.1%} of a hidden state's length", sequences)
        return mean

    def _sample_sequences(self, cache: TeacherCache, seed: int) -> np.ndarray:
        """Sequences with about `CHECKED_ROWS` rows, sorted, without repetition."""
        every = self.source.num_sequences
        wanted = math.ceil(CHECKED_ROWS * every / max(1, cache.num_rows))
        number = min(every, max(FEWEST_CHECKED_SEQUENCES, wanted))
        return np.sort(np.random.default_rng(seed).choice(every, number, replace=False))

    def _differs(self, cache: TeacherCache, by: str, sequences: np.ndarray) -> RunError:
        return RunError(
            f"{cache.folder} does not hold the outputs of this teacher: on {len(sequences)} "
            f"sequences they differ by {by}. Move it away to rewrite it."
        )


@torch.inference_mode()
def teacher_rows(
    teacher: Teacher,
    batch: Batch,
    layout: CacheFormat,
    uniform: Float[Tensor, " N"],
    *,
    temperature: float,
    precision: Precision,
) -> TeacherRows:
    """The rows that a cache stores for a batch: sparse distributions, and hidden states if needed.

    Args:
        batch: On the teacher's device.
        uniform: As for `sparse_rows`, one for each row.
    """
    hidden, pieces = _teacher_outputs(teacher, batch, layout.rows, precision)
    targets = [
        sparse_rows(
            logits, layout.kind, layout.size, temperature=temperature, uniform=uniform[part]
        )
        for part, logits in pieces
    ]
    kept = hidden.float().cpu() if layout.hidden_size is not None else None
    return TeacherRows(layout.rows, SparseRows.join(targets).to(torch.device("cpu")), kept)


def _teacher_outputs(
    teacher: Teacher, batch: Batch, rows: Rows, precision: Precision
) -> tuple[Float[Tensor, "N D"], Iterator[tuple[slice, Float[Tensor, "n V"]]]]:
    """The teacher's last hidden states of the rows, and their logits in chunks."""
    device = batch.input_ids.device
    with autocast(device, precision):
        hidden = teacher.family.run_rows(teacher.model, batch, rows)
        head = teacher.family.head(teacher.model)
        features = head.transform(hidden)

    def chunks() -> Iterator[tuple[slice, Tensor]]:
        size = rows_per_chunk(len(head.weight), device)
        for start in range(0, max(1, len(hidden)), size):  # without rows, one empty chunk
            part = slice(start, start + size)
            with autocast(device, precision):
                logits = head.logits(features[part])
            yield part, logits

    return hidden, chunks()


def chances(sequences: Sequence[int], counts: Sequence[int]) -> np.ndarray:
    """A number from [0, 1) per row, a function of its sequence and position alone."""
    keys = (sample_key(SAMPLE_SEED, FIXED_EPOCH, sequence) for sequence in sequences)
    drawn = (np.random.Generator(np.random.Philox(key=key)) for key in keys)
    return np.concatenate(
        [chance.random(count) for chance, count in zip(drawn, counts, strict=True)]
    )
