"""Time of the parts of a run on text: trainings, the teacher cache, the evaluation.

How many tokens a text has is estimated from a part of it where it is not prepared yet.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from transformers import PretrainedConfig, PreTrainedTokenizerFast

from stillhouse.corpus.splits import plan_splits
from stillhouse.data.documents import describe_sources, read_documents, summarize_sources
from stillhouse.data.settings import CorpusRecipe
from stillhouse.data.sources import source_of
from stillhouse.estimate.speeds import LanguageTraining, MeasuredSpeeds, scoring_step
from stillhouse.evaluation.metrics.agreement import ROWS
from stillhouse.evaluation.metrics.speed import LENGTH, NEW_TOKENS
from stillhouse.evaluation.perplexity import stride_of
from stillhouse.evaluation.quality import read_text
from stillhouse.evaluation.samples import NEW_TOKENS as SAMPLE_TOKENS
from stillhouse.evaluation.samples import NUM_SAMPLES
from stillhouse.evaluation.settings import BiasRecipe, ZeroShotRecipe
from stillhouse.evaluation.teacher_fit import NUM_TOKENS
from stillhouse.families.registry import family_of
from stillhouse.inference.causal_lm import PROMPTS_AT_ONCE
from stillhouse.inference.reference import BATCH, MOST_SECONDS, MOST_TURNS, TURNS
from stillhouse.objectives.language_model import LANGUAGE_MODELING_ALONE
from stillhouse.race.speed import NEW_TOKENS as DECODED_TOKENS
from stillhouse.recipe import Recipe
from stillhouse.runs.manifest import read_manifest
from stillhouse.runs.paths import RunFolder
from stillhouse.section import LanguageModeling
from stillhouse.student.calibration import sequence_length_of
from stillhouse.student.greedy import REPEATED, num_passes
from stillhouse.student.plan import plan_student
from stillhouse.student.settings import RaceRecipe
from stillhouse.tasks.continuation import GenerativeTask
from stillhouse.tasks.registry import make_task
from stillhouse.tasks.zero_shot import LanguageModelTask, spread_sample
from stillhouse.tokens.mixture import drawn_parts, mean_repeats
from stillhouse.tokens.tokenizer import text_encoder
from stillhouse.training.cost import (
    forward_flops,
    planned_step,
    projection_size,
    sequences_per_step,
)
from stillhouse.training.device import pick_device
from stillhouse.training.settings import PretrainingRecipe

# Of a fresh process that imports the libraries and loads a model, whose memory is measured:
# `time python -c "import stillhouse.evaluation.metrics.speed"` on two cores of an AMD EPYC.
PROCESS_SECONDS = 4.0
MOST_BYTES = 16 * 10**6  # read; of a longer text the rest is taken to be alike
BEGINNING, MOST_BEGINNINGS = 2_000, 300  # characters of a document that are tokenized
# Forward passes of a student that is fitted to its teacher: two, and as much for the products of
# what its projections read.
RECONSTRUCTION_PASSES = 3
SCORES_OF_PARTS = 4  # passes of a teacher over the text: layers, and each kind of width
PLAIN = {"text"}  # formats whose files are as large as their text


@dataclass(frozen=True)
class Part:
    """One part of a run, over all seeds: its seconds here, or the reason why they are unknown.

    `num_steps` and `step_seconds` are those of a training of one seed; `setting` is the key of the
    recipe that makes its steps shorter.
    """

    name: str
    seconds: float | None
    reason: str = ""
    num_steps: int | None = None
    step_seconds: float | None = None
    setting: str = ""


@dataclass(frozen=True)
class TextSize:
    """Tokens of the splits, and of a document of the validation split on average; and how often an
    epoch has a token of the training split on average, which differs from 1 in a mixture."""

    train_tokens: int
    validation_tokens: int
    document_tokens: int | float
    repeats: float = 1.0


class DataSetSize(NamedTuple):
    """About how many tokens a model reads for a data set that it is scored on, and generates at
    most."""

    read: int
    generated: int = 0


@dataclass(frozen=True)
class LanguagePlan:
    """The models and the text of a run that trains a student; `data_sets` are those that can be
    read. `num_candidates` are those of a budget, all of the student's size."""

    recipe: Recipe
    teacher: PretrainedConfig
    student: PretrainedConfig
    text: TextSize | str
    tokenizer: PreTrainedTokenizerFast | None
    data_sets: Mapping[str, DataSetSize] = field(default_factory=dict)
    num_candidates: int = 0

    def trainings(self) -> dict[str, LanguageTraining]:
        """All trainings on text, by model, in order."""
        recipe = self.recipe
        control = replace(
            self.distillation(), teacher=None, losses=LANGUAGE_MODELING_ALONE, projection=0
        )
        found: dict[str, LanguageTraining] = {}
        if not isinstance(recipe.teacher, str):
            found["teacher"] = replace(
                control, model=self.teacher, training=recipe.teacher.training
            )
        found["student"] = self.distillation()
        return {**found, **dict.fromkeys(recipe.distillation.models[1:], control)}

    def distillation(self) -> LanguageTraining:
        """The student's training."""
        recipe = self.recipe
        teacher = self.teacher if recipe.cache is None else None
        losses = recipe.distillation.losses
        size = projection_size(losses, self.student, self.teacher)
        return LanguageTraining(
            self.student, teacher, losses, recipe.distillation, recipe.tokens, size
        )

    def tokens_to_train(self, training: PretrainingRecipe) -> int | None:
        """Number of tokens that a training reads; None where the text is unknown."""
        if training.max_tokens is not None:
            return training.max_tokens
        if isinstance(self.text, str):
            return None
        return training.epochs * round(self.text.repeats * self.text.train_tokens)


def language_parts(plan: LanguagePlan, speeds: MeasuredSpeeds) -> list[Part]:
    """Trainings, the cache and the evaluation, in the order in which they run."""
    found: dict[str, Part] = {}
    for name, training in plan.trainings().items():
        if name == "student" and plan.recipe.cache is not None:
            found["teacher cache"] = _cache_part(plan, speeds)
        if name == "student":
            found |= {part.name: part for part in _cut_parts(plan, speeds)}
        if name == "control_same_time":
            found[name] = _same_time(found)
        else:
            found[name] = _training_part(plan, name, training, speeds)
    return [*found.values(), _evaluation_part(plan, speeds)]


def _cut_parts(plan: LanguagePlan, speeds: MeasuredSpeeds) -> list[Part]:
    """The race, or the scores of the teacher's parts, where there is either."""
    recipe = plan.recipe.student
    if recipe.budget is not None:
        return [_race_part(plan, recipe.budget.race, speeds)]
    student = plan_student(plan.teacher, recipe)
    if not student.is_measured:
        return []
    layers = heads = 0.0  # passes of the teacher over the text
    if student.choice is not None:
        layers += 1
    if student.choice is not None and student.choice.by == "greedy":
        layers, heads = num_passes(plan.teacher.num_hidden_layers, student.choice.layers)
    if recipe.is_narrower:
        layers += 1
    if recipe.reconstruct:
        layers += 1
    length = sequence_length_of(recipe.importance, plan.teacher)
    tokens = plan.recipe.tokens.model_copy(update={"sequence_length": length})
    step = scoring_step(tokens)
    whole = forward_flops(step, plan.teacher)
    body = forward_flops(replace(step, teacher_rows=0), plan.teacher)
    number = recipe.importance.tokens + (2 * math.prod(REPEATED) if heads else 0)
    flops = number * (layers * body + heads * (whole - body))
    if recipe.reconstruct:
        student_body = forward_flops(replace(step, teacher_rows=0), plan.student)
        flops += number * RECONSTRUCTION_PASSES * student_body
    return [Part("init", flops / speeds.scoring(plan.teacher, tokens))]


def _race_part(plan: LanguagePlan, race: RaceRecipe, speeds: MeasuredSpeeds) -> Part:
    """The teacher reads the text for each score of its parts, and every candidate reads it once;
    then come the short distillations, and held-out text for each of them."""
    recipe = plan.recipe
    length = sequence_length_of(recipe.student.importance, plan.teacher)
    importance = recipe.tokens.model_copy(update={"sequence_length": length})
    (teacher, student), held_out = (
        [
            forward_flops(scoring_step(tokens), config) / speeds.scoring(config, tokens)
            for config in (plan.teacher, plan.student)
        ]
        for tokens in (importance, recipe.tokens)
    )
    cuts = SCORES_OF_PARTS * teacher + plan.num_candidates * student
    if recipe.student.reconstruct:
        cuts += race.finalists * (teacher + RECONSTRUCTION_PASSES * student)
    per_step, step_seconds = _step(plan, "student", plan.distillation(), speeds)
    finalist = race.tokens / per_step * step_seconds
    finalist += _compared_tokens(plan) * sum(held_out)
    seconds = recipe.student.importance.tokens * cuts
    if recipe.student.budget is not None and recipe.student.budget.tokens_per_second is not None:
        both = sum(1 / speeds.generation(config) for config in (plan.teacher, plan.student))
        seconds += plan.num_candidates * (1 + TURNS) * DECODED_TOKENS * both
    return Part("race", seconds + min(race.finalists, plan.num_candidates) * finalist)


def _training_part(
    plan: LanguagePlan, name: str, training: LanguageTraining, speeds: MeasuredSpeeds
) -> Part:
    recipe = training.training
    per_step, step_seconds = _step(plan, name, training, speeds)
    tokens = plan.tokens_to_train(recipe)
    section, times = "distillation", len(plan.recipe.seeds)
    if name == "teacher":
        section, times = "teacher.training", 1
    setting = f"{section}.tokens_per_step"
    if tokens is None:
        return Part(name, None, str(plan.text), None, step_seconds, setting)
    seconds = times * step_seconds * tokens / per_step
    return Part(name, seconds, "", math.ceil(tokens / per_step), step_seconds, setting)


def _step(
    plan: LanguagePlan, name: str, training: LanguageTraining, speeds: MeasuredSpeeds
) -> tuple[int, float]:
    """Tokens and seconds of a step."""
    length = plan.recipe.tokens.sequence_length
    per_step = sequences_per_step(training.training, length) * length
    flops = training.cost().flops_per_token * per_step
    if name == "student" and plan.recipe.cache is not None:
        # A cached teacher's rows cost little beside the student's own passes.
        training = replace(training, losses=LANGUAGE_MODELING_ALONE, projection=0)
    return per_step, speeds.training(training).step_seconds(flops, training.model)


def _same_time(found: Mapping[str, Part]) -> Part:
    """The control takes as long as the student, with the cache that was written for it."""
    parts = [found[name] for name in ("student", "teacher cache") if name in found]
    for part in parts:
        if part.seconds is None:
            return Part("control_same_time", None, part.reason)
    return Part("control_same_time", sum(part.seconds or 0 for part in parts))


def _cache_part(plan: LanguagePlan, speeds: MeasuredSpeeds) -> Part:
    """One pass of the teacher over the whole training split, for all seeds."""
    if isinstance(plan.text, str):
        return Part("teacher cache", None, plan.text)
    distillation = plan.recipe.distillation
    step = planned_step(distillation.losses, plan.recipe.tokens, distillation, pick_device())
    work = forward_flops(step, plan.teacher) * plan.text.train_tokens
    return Part("teacher cache", work / speeds.caching(plan.recipe, plan.teacher))


def _evaluation_part(plan: LanguagePlan, speeds: MeasuredSpeeds) -> Part:
    """Losses of every model, agreement with the teacher, samples, speed and memory."""
    if isinstance(plan.text, str):
        return Part("evaluation", None, plan.text)
    tokens, seeds = plan.recipe.tokens, len(plan.recipe.seeds)
    per_token = {
        name: forward_flops(scoring_step(tokens), config) / speeds.scoring(config, tokens)
        for name, config in (("teacher", plan.teacher), ("student", plan.student))
    }
    students = len(plan.recipe.distillation.models)
    positions = _scored_positions(plan)
    teachers = 1 if plan.recipe.student.vocabulary is None else 2  # and that with all tokens
    seconds = positions * (
        teachers * per_token["teacher"] + seeds * students * per_token["student"]
    )
    compared = per_token["teacher"] + students * per_token["student"]
    seconds += seeds * _compared_tokens(plan) * compared
    seconds += seeds * min(plan.text.validation_tokens, NUM_TOKENS) * per_token["teacher"]
    seconds += seeds * _generation_seconds(plan, speeds, students)
    if plan.recipe.evaluation.speed:
        seconds += seeds * _speed_seconds(plan, per_token, speeds) + 2 * PROCESS_SECONDS
    return Part("evaluation", seconds)


def _compared_tokens(plan: LanguagePlan) -> int | float:
    """Held-out tokens on which a student is compared with its teacher."""
    tokens = plan.recipe.tokens
    fraction = 1.0 if tokens.language_modeling == "causal" else tokens.masking.fraction
    most = ROWS / fraction
    return most if isinstance(plan.text, str) else min(plan.text.validation_tokens, most)


def _scored_positions(plan: LanguagePlan) -> int | float:
    """Positions that a model reads to score all texts: each token once and, in a causal model,
    again in overlapping windows."""
    assert isinstance(plan.text, TextSize)
    tokens = plan.recipe.tokens
    if tokens.language_modeling == "masked":
        return plan.text.validation_tokens
    context = min(tokens.sequence_length, family_of(plan.student).num_positions(plan.student))
    positions = 0.0
    for name in plan.recipe.evaluation.perplexity:
        number, document = float(plan.text.validation_tokens), plan.text.document_tokens
        if name != "validation":
            if plan.tokenizer is None:
                continue
            number = document = file_tokens(Path(name), plan.tokenizer)
        positions += number * (1 + _window_share(document, context))
    return positions + sum(each.read for each in plan.data_sets.values())


def _window_share(document: int | float, context: int) -> float:
    """Positions that sliding windows read per token of a document of this length."""
    beyond = document - (context - 1)
    if beyond <= 0:
        return 1.0
    return context * (1 + beyond / stride_of(context)) / document


def _generation_seconds(plan: LanguagePlan, speeds: MeasuredSpeeds, students: int) -> float:
    """Seconds of the samples, and of solutions, of which each step of a model gives several."""
    if plan.recipe.tokens.language_modeling == "masked":
        return 0.0
    per_token = 1 / speeds.generation(plan.teacher) + students / speeds.generation(plan.student)
    steps = sum(each.generated for each in plan.data_sets.values()) / PROMPTS_AT_ONCE
    return (NUM_SAMPLES * SAMPLE_TOKENS + steps) * per_token


def _speed_seconds(
    plan: LanguagePlan, per_token: dict[str, float], speeds: MeasuredSpeeds
) -> float:
    """Seconds of the turns in which teacher and student are timed."""
    forward = generation = 0.0
    tokens = plan.recipe.tokens
    # In a timed pass all positions reach the head.
    every = scoring_step(tokens.model_copy(update={"language_modeling": "causal"}))
    for name, config in (("teacher", plan.teacher), ("student", plan.student)):
        length = min(LENGTH, family_of(config).num_positions(config))
        more = forward_flops(every, config) / forward_flops(scoring_step(tokens), config)
        forward += BATCH * length * per_token[name] * more
        if family_of(config).language_modeling == "causal":
            generation += NEW_TOKENS / speeds.generation(config)
    return turns_seconds(forward) + turns_seconds(generation)


def turns_seconds(turn: int | float) -> float:
    """Seconds of all turns, given those of one: the fewest, and half of the optional ones."""
    return (TURNS + 1) * turn + min((MOST_TURNS - TURNS) * turn, MOST_SECONDS + turn) / 2


def text_size(
    recipe: Recipe,
    run: RunFolder | None,
    tokenizer: PreTrainedTokenizerFast | None,
    *,
    offline: bool,
) -> TextSize | str:
    """The size of the text, or why it is not known.

    Raises:
        DataError: text that cannot be read.
    """
    manifest = None if run is None else read_manifest(run.tokens)
    if manifest is not None:
        train, validation = (manifest.facts["splits"][name] for name in ("train", "validation"))
        mean = validation["tokens"] / max(1, validation["documents"])
        repeats = mean_repeats(manifest.facts.get("parts", {}))
        return TextSize(train["tokens"], validation["tokens"], mean, repeats)
    if recipe.cleaning is not None:
        return "the text is cleaned first, so its size is known once it is prepared"
    if any(source_of(source).is_remote for source in recipe.text.sources):
        return "the text is a dataset of the hub, whose size is known once it is prepared"
    if tokenizer is None:
        return "the tokenizer is trained by the run, so the number of tokens is known only then"
    return _size_of_parts(recipe.text, tokenizer, offline=offline)


def _size_of_parts(
    corpus: CorpusRecipe, tokenizer: PreTrainedTokenizerFast, *, offline: bool
) -> TextSize | str:
    """The parts of the text together, which for a text without parts are all of it."""
    parts: dict[str, TextSize] = {}
    for name, own in corpus.parts.items():
        size = _estimated_size(own, tokenizer, offline=offline)
        if isinstance(size, str):
            return size
        parts[name] = size
    if "" in parts:
        return parts[""]
    train, validation = (
        {name: getattr(size, key) for name, size in parts.items()}
        for key in ("train_tokens", "validation_tokens")
    )
    documents = sum(size.validation_tokens / size.document_tokens for size in parts.values())
    drawn = drawn_parts({name: max(1, size) for name, size in train.items()}, corpus.mixture)
    return TextSize(
        sum(train.values()),
        sum(validation.values()),
        sum(validation.values()) / documents,
        mean_repeats(drawn),
    )


def _estimated_size(
    corpus: CorpusRecipe, tokenizer: PreTrainedTokenizerFast, *, offline: bool
) -> TextSize | str:
    splitting = plan_splits(corpus, offline=offline)
    # By whether a document is held out.
    size, documents = Counter[bool](), Counter[bool]()
    beginnings: dict[bool, list[str]] = {True: [], False: []}
    for piece in splitting.cut(read_documents(corpus, offline=offline)):
        held_out = splitting.is_validation(piece)
        size[held_out] += len(piece.text.encode())
        if piece.starts_document:
            documents[held_out] += 1
            if len(beginnings[held_out]) < MOST_BEGINNINGS:
                beginnings[held_out].append(piece.text[:BEGINNING])
        if size.total() > MOST_BYTES:
            break
    read = size.total()
    is_whole = read <= MOST_BYTES
    if not (is_whole or {*summarize_sources(corpus).files} <= PLAIN):
        return "the text is long and not in plain files, so its size is known once it is prepared"
    ratio = bytes_per_token(tokenizer, [*beginnings[True], *beginnings[False]])
    train, validation = (round(size[held_out] / ratio) for held_out in (False, True))
    if not is_whole:  # what is held out may be anywhere
        whole = sum(each["size_bytes"] for each in describe_sources(corpus)) / ratio
        validation = round(splitting.limit * whole)
        train = round(whole) - validation
    mean = read / max(1, documents.total()) / ratio
    if documents[True]:
        mean = size[True] / documents[True] / ratio
    return TextSize(train, validation, mean)


def bytes_per_token(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]) -> float:
    """Of a sample of texts."""
    texts = list(texts)
    tokens = sum(map(len, text_encoder(tokenizer)(texts)))
    return sum(len(text.encode()) for text in texts) / max(1, tokens)


def data_set_size(
    recipe: ZeroShotRecipe | BiasRecipe,
    file: Path,
    tokenizer: PreTrainedTokenizerFast,
    language_modeling: LanguageModeling,
) -> DataSetSize:
    """The size of a data set, from some of its examples."""
    task = make_task(recipe.task)
    assert isinstance(task, LanguageModelTask)
    task = task.for_language_modeling(language_modeling)
    examples = task.read(file)[: recipe.num_examples]
    some = spread_sample(examples)
    tokens = sum(len(each.input_ids) for own in task.encode(some, tokenizer) for each in own)
    new = 0
    if isinstance(task, GenerativeTask) and task.head == "CausalLM":
        new = task.recipe.max_new_tokens * task.generation().get("num_return_sequences", 1)
    return DataSetSize(round(tokens * len(examples) / len(some)), new * len(examples))


def file_tokens(path: Path, tokenizer: PreTrainedTokenizerFast) -> float:
    """About how many tokens a text file has."""
    text = read_text(path)
    return len(text.encode()) / bytes_per_token(tokenizer, [text[: 10 * BEGINNING]])
