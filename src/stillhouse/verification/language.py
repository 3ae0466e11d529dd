"""Checks of language model distillation, on the user's own teacher and text.

Two sides are compared each time: what Stillhouse trains on, and the same computed in another way.
The reference side is transformers' own forward pass of one document at a time, and losses written
out row by row in float64.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import PreTrainedModel

from stillhouse.data.documents import read_documents
from stillhouse.distillation.cache import CacheWriter, cache_inputs
from stillhouse.distillation.settings import CacheRecipe
from stillhouse.families.base import Family
from stillhouse.models.load import load_model
from stillhouse.objectives.divergences import DIVERGENCES
from stillhouse.objectives.divergences.soft_target import soft_target_reference
from stillhouse.objectives.float64 import Row, log_softmax
from stillhouse.objectives.language_model import (
    LANGUAGE_MODELING_ALONE,
    LanguageModelObjective,
    Teacher,
)
from stillhouse.objectives.projection import add_projection
from stillhouse.objectives.settings import LossesRecipe
from stillhouse.pipeline import Pipeline
from stillhouse.race.candidates import plan_candidates
from stillhouse.race.speed import decoding_times
from stillhouse.recipe import Recipe
from stillhouse.runs.paths import RunFolder
from stillhouse.stages.check import RecipeCheck
from stillhouse.teacher.settings import TeacherRecipe
from stillhouse.tokens.batches import IGNORED, Batch, SequenceSource, SparseRows
from stillhouse.tokens.packing import CausalSequences, open_source
from stillhouse.tokens.settings import CacheKind
from stillhouse.tokens.teacher_cache import FixedMaskSource, TeacherCache
from stillhouse.tokens.tokenizer import open_tokenizer, special_tokens
from stillhouse.training.device import pick_device
from stillhouse.training.progress import QuietReporter
from stillhouse.training.ranks import ALONE
from stillhouse.verification.checks import (
    EXACT,
    Check,
    copy_check,
    means_of,
    relative,
    split_check,
    worst,
)
from stillhouse.verification.layouts import (
    Span,
    cropped,
    document_spans,
    each_alone,
    one_document_a_row,
    plain_outputs,
    transformers_loss,
    without_last_labels,
)

REFERENCE_SEQUENCES, REFERENCE_LENGTH = 2, 64  # a row costs milliseconds in float64
CACHE_ROUNDING = 5e-3  # nats a row: weights are kept in float16
STANDARD_ERRORS = 6
CACHE_SIZE = 32
# Of the text that is prepared; checks look at about TOKENS of it.
DOCUMENT_CHARACTERS = 8_000  # of each document, so that several share a sequence
TEXT_SEQUENCES = 12  # of training text, about
CHARACTERS_PER_TOKEN = 6  # more than tokenizers need, so that there is enough
FEWEST_DOCUMENTS = 6
TOKENS = 1024
FEWEST_SEQUENCES = 2


@dataclass(frozen=True)
class LanguageCase:
    """A prepared recipe, its models in float32 without dropout, and the sequences looked at."""

    recipe: Recipe
    run: RunFolder
    teacher: Teacher
    family: Family
    student: PreTrainedModel
    source: SequenceSource
    sequences: np.ndarray
    document_start: int | None
    pad: int

    @property
    def temperature(self) -> float:
        return self.recipe.distillation.temperature

    @cached_property
    def batch(self) -> Batch:
        """The sequences as the first epoch sees them."""
        return self.batch_of(self.source)

    def batch_of(self, source: SequenceSource, *, epoch: int = 0) -> Batch:
        epochs = np.full_like(self.sequences, epoch)
        return source.batch(self.sequences, epochs, self.recipe.seeds[0])

    def spans(self, batch: Batch) -> list[Span]:
        pads = None if batch.causal else self.pad
        return document_spans(batch, begins=self.document_start, pads=pads)

    def losses(self) -> LossesRecipe:
        """Every term: the recipe's as they are, the others with weight 1."""
        own = self.recipe.distillation.losses
        terms: dict[str, Any] = {name: {"weight": 1.0} for name in DIVERGENCES}
        terms["language_modeling"] = {"weight": 1.0}
        terms |= {name: term.model_dump() for name, term in own.active().items()}
        return LossesRecipe.model_validate(terms)

    def objective(
        self,
        losses: LossesRecipe,
        teacher: Teacher | Literal["cached"] | None,
        *,
        of_teacher: bool = False,
    ) -> LanguageModelObjective:
        """The objective of the student, or of a copy of the teacher in its place."""
        family = self.teacher.family if of_teacher else self.family
        return LanguageModelObjective(family, losses, teacher=teacher, temperature=self.temperature)


def language_case(recipe: Recipe, folder: Path, *, offline: bool) -> LanguageCase:
    """The recipe's own stages on its first text, in this folder, and what is to be looked at."""
    text, run, device = folder / "text.jsonl", RunFolder.at(folder / "run"), pick_device()
    write_first_documents(recipe, text, offline=offline)
    small = small_recipe(recipe, text)
    if small.student.budget is not None:  # any of its candidates will do
        teacher = RecipeCheck(small, (), offline).teacher
        relation, times = small.distillation.losses.relation, None
        if small.student.budget.tokens_per_second is not None:
            times = decoding_times(teacher, None, None)
        (student, *_) = plan_candidates(teacher, small.student, relation, times)
        small = small.model_copy(update={"student": student.recipe})
    pipeline = Pipeline(small, run, QuietReporter(), offline=offline)
    pipeline.run_stages(["prepare", "teacher", "init"])
    family, student = load_model(run.student_init)
    teacher_family, teacher = load_model(pipeline.models.teacher_folder)
    add_projection(student, teacher.config)
    for model in (student, teacher):
        model.to(device)  # pyright: ignore[reportArgumentType]
    tokenizer = open_tokenizer(run.tokens)
    special = special_tokens(tokenizer, small.tokens.language_modeling)
    source = open_source(run.tokens, small.tokens, "train")
    whole = source.num_sequences - 1  # the last sequence may end in padding
    number = min(whole, max(FEWEST_SEQUENCES, TOKENS // small.tokens.sequence_length))
    causal = small.tokens.language_modeling == "causal"
    begins = special.end_of_text if causal else special.cls
    if causal and small.tokens.attend_across_documents:
        begins = None
    pad = special.end_of_text if causal else special.pad
    assert pad is not None
    return LanguageCase(
        small,
        run,
        Teacher(teacher_family, teacher.requires_grad_(False)),
        family,
        student,
        source,
        np.arange(max(1, number)),
        begins,
        pad,
    )


def write_first_documents(recipe: Recipe, target: Path, *, offline: bool) -> None:
    """The beginnings of the recipe's first documents, as JSON lines."""
    wanted = TEXT_SEQUENCES * CHARACTERS_PER_TOKEN * recipe.tokens.sequence_length
    room = max(DOCUMENT_CHARACTERS, wanted // FEWEST_DOCUMENTS)
    chunks = read_documents(recipe.text, offline=offline)
    written = 0
    with target.open("w", encoding="utf-8") as file:
        for number, chunk in enumerate(each for each in chunks if each.starts_document):
            if written >= wanted and number >= FEWEST_DOCUMENTS:
                break
            beginning = chunk.text[:room]
            file.write(json.dumps({"id": chunk.document_id, "text": beginning}) + "\n")
            written += len(beginning)


def small_recipe(recipe: Recipe, text: Path) -> Recipe:
    """The recipe on this text alone, for one seed and without tasks; a teacher that it trains is
    trained for two steps."""
    corpus = recipe.text.model_copy(
        update={
            "source": str(text),
            "mixture": None,
            "text_field": "text",
            "validation_fraction": 0.3,
        }
    )
    changes: dict[str, object] = {"corpus": corpus, "seed": recipe.seeds[0], "finetuning": {}}
    if isinstance(recipe.teacher, TeacherRecipe):
        step = 2 * recipe.tokens.sequence_length
        training = recipe.teacher.training.model_copy(
            update={"tokens_per_step": step, "max_tokens": 2 * step, "precision": "fp32"}
        )
        changes["teacher"] = recipe.teacher.model_copy(update={"training": training})
    return recipe.model_copy(update=changes)


def language_checks(case: LanguageCase) -> Iterator[Check]:
    """All checks, one after the other."""
    yield label_check(case)
    losses = LossesRecipe.model_validate(
        case.losses().model_dump(exclude_none=True, exclude={"language_modeling"})
    )
    objective = case.objective(losses, case.teacher, of_teacher=True)
    yield copy_check(objective, case.teacher.model, [case.batch])
    yield split_check(
        case.recipe.distillation,
        case.student,
        case.objective(case.recipe.distillation.losses, case.teacher),
        case.source,
        case.run.path,
    )
    yield from layout_checks(case)
    yield transformers_check(case)
    yield from divergence_checks(case)
    if not {"language_modeling", "relation"} >= set(case.recipe.distillation.losses.active()):
        for kind in ("top_k", "sampled"):
            yield cache_check(case, kind)


def label_check(case: LanguageCase) -> Check:
    """Labels against the tokens on disk: the next token, or the one under the mask."""
    batch = case.batch
    if isinstance(case.source, CausalSequences):
        length, stream = case.source.sequence_length, case.source.split
        wrong = 0
        for row, sequence in enumerate(case.sequences.tolist()):
            tokens = stream.read(sequence * length, (sequence + 1) * length + 1)
            for found, at in ((batch.input_ids[row], 0), (batch.labels[row], 1)):
                expected = tokens[at : at + length]
                wrong += int((found[: len(expected)].numpy() != expected).sum())
        return Check("labels", "the next token on disk", wrong, 0, "tokens")
    seen = [case.batch_of(case.source, epoch=epoch) for epoch in (0, 1)]
    recovered = [torch.where(each.labels == IGNORED, each.input_ids, each.labels) for each in seen]
    wrong = int((recovered[0] != recovered[1]).sum())
    return Check("labels", "tokens recovered from two maskings", wrong, 0, "tokens")


def layout_checks(case: LanguageCase) -> Iterator[Check]:
    """Documents packed, padded, and each alone without padding: the same losses."""
    spans = case.spans(case.batch)
    objective = case.objective(case.losses(), case.teacher)
    alone = means_of(objective, case.student, each_alone(case.batch, spans, case.pad))
    padded = one_document_a_row(case.batch, spans, case.pad)
    for name, batch in (("packed", case.batch), ("padded", padded)):
        term, apart = worst(means_of(objective, case.student, [batch]), alone)
        compared = f"{len(spans)} documents, each alone ({term})"
        yield Check(f"{name} vs alone", compared, apart, EXACT, "rel.")


def transformers_check(case: LanguageCase) -> Check:
    """The language modeling loss against transformers' own, document by document."""
    spans = case.spans(case.batch)
    batch = without_last_labels(case.batch, spans) if case.batch.causal else case.batch
    objective = case.objective(LANGUAGE_MODELING_ALONE, None)
    found = means_of(objective, case.student, [batch])["language_modeling"]
    with torch.inference_mode():
        total, count = transformers_loss(case.student, case.batch, spans)
    apart = relative(found, total / max(1, count))
    if count != batch.num_rows("predicted"):
        apart = float("inf")
    compared = f"transformers' own loss, {count:,} labels"
    return Check("language_modeling", compared, apart, EXACT, "rel.")


def divergence_checks(case: LanguageCase) -> Iterator[Check]:
    """Each loss against its formula in float64, over outputs that transformers computed."""
    batch = cropped(case.batch, REFERENCE_SEQUENCES, REFERENCE_LENGTH)
    spans = case.spans(batch)
    losses = case.losses()
    found = means_of(case.objective(losses, case.teacher), case.student, [batch])
    outputs = [plain_outputs(model, batch, spans) for model in (case.student, case.teacher.model)]
    predicted = batch.labels.numpy() != IGNORED
    everything = np.zeros_like(predicted)
    for span in spans:
        everything[span.row, span.places] = True
    for name, term in losses.active().items():
        if name not in DIVERGENCES:
            continue
        mask = everything if term.rows == "all" else predicted
        divergence, settings = DIVERGENCES[name], term.model_dump(exclude={"weight", "rows"})
        if divergence.reads == "logits":
            settings["temperature"] = case.temperature
        rows = [each[divergence.reads][mask] for each in outputs]
        values = [divergence.reference(*row, **settings) for row in zip(*rows, strict=True)]
        apart = relative(found[name], math.fsum(values) / max(1, len(values)))
        yield Check(name, f"float64 loop, {len(values)} rows", apart, EXACT, "rel.")


def cache_check(case: LanguageCase, kind: CacheKind) -> Check:
    """The soft target from a teacher cache, written now, against the live teacher's.

    Of the teacher itself it must be 0, of the student what float64 gives: for `top_k` the
    divergence of k tokens and one outcome for the others; for `sampled`, which is unbiased, the
    exact one, up to the noise of the sample.
    """
    batch, losses, size = _cached_batch(case, kind)
    assert batch.teacher is not None
    live = replace(batch, teacher=None)
    mask = live.rows(losses.active()["soft_target"].rows).numpy()
    spans, temperature = case.spans(live), case.temperature
    ours, theirs = (
        plain_outputs(model, live, spans)["logits"][mask]
        for model in (case.student, case.teacher.model)
    )
    off, noise = 0.0, 0.0
    for model, logits in ((case.student, ours), (case.teacher.model, theirs)):
        objective = case.objective(losses, "cached", of_teacher=model is case.teacher.model)
        found = means_of(objective, model, [batch])["soft_target"] / temperature**2
        pairs = list(zip(logits, theirs, strict=True))
        if kind == "top_k":
            exact = [top_k_kl(*pair, size, temperature) for pair in pairs]
        else:
            exact = [
                soft_target_reference(s, t, temperature=temperature) / temperature**2
                for s, t in pairs
            ]
            spread = _sampled_kl(logits, batch.teacher.targets, temperature) - np.array(exact)
            noise = max(noise, float(spread.std() / max(1, len(exact)) ** 0.5))
        off = max(off, abs(found - float(np.mean(exact))))
    compared = f"live teacher, float64, {len(ours):,} rows"
    bound = CACHE_ROUNDING + STANDARD_ERRORS * noise
    return Check(f"cached vs live ({kind})", compared, off, bound, "nats")


def _cached_batch(case: LanguageCase, kind: CacheKind) -> tuple[Batch, LossesRecipe, int]:
    """The case's sequences with their rows of a cache that is written now, the one loss that reads
    it, and the tokens it keeps of each row."""
    cached = case.recipe.cache
    setting = CacheRecipe(cache=kind, size=cached.size if cached else CACHE_SIZE)
    term = case.recipe.distillation.losses.active().get("soft_target")
    rows = term.rows if term else "predicted"
    losses = LossesRecipe.model_validate({"soft_target": {"weight": 1.0, "rows": rows}})
    distillation = case.recipe.distillation.model_copy(
        update={"teacher_outputs": setting, "precision": "fp32", "losses": losses}
    )
    recipe = case.recipe.model_copy(update={"distillation": distillation})
    inputs = cache_inputs(recipe, case.run, "verification")
    writer = CacheWriter(recipe, case.run, case.teacher, ALONE)
    writer.write(inputs, QuietReporter(), overwrite=True)
    cache = TeacherCache(case.run.teacher_cache)
    batch = case.batch_of(FixedMaskSource(case.source, cache))
    return batch, losses, min(setting.size, case.teacher.model.config.vocab_size)


def _sampled_kl(logits: np.ndarray, kept: SparseRows, temperature: float) -> np.ndarray:
    """Each row's divergence by the sample alone, in float64: sum p log p, which the cache keeps,
    less the weighted log q of the tokens kept."""
    columns = (kept.ids.numpy(), kept.weights.double().numpy(), kept.rest.double().numpy())
    return np.array(
        [
            rest - weights @ log_softmax(row, temperature)[ids]
            for row, ids, weights, rest in zip(logits, *columns, strict=True)
        ]
    )


def top_k_kl(student: Row, teacher: Row, size: int, temperature: float) -> float:
    """KL over the teacher's `size` most likely tokens and one outcome for all others, in nats."""
    kept = np.argsort(-teacher)[:size]
    q, p = (np.exp(log_softmax(row, temperature)) for row in (student, teacher))
    ours, theirs = (np.append(row[kept], math.fsum(np.delete(row, kept))) for row in (q, p))
    held = theirs > 0
    return math.fsum(theirs[held] * (np.log(theirs[held]) - np.log(ours[held])))
