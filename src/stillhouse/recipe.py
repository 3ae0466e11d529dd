"""The recipe: typed, frozen, and the only place where a user's settings are checked.

Every section is a pydantic model that refuses unknown keys; `recipe_file` reads it from YAML. What
needs the teacher's configuration (is layer 12 there?) is checked by `stillhouse.check`.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
    field_validator,
    model_validator,
)

from stillhouse.recipe_tasks import NamedTaskRecipe, Seed
from stillhouse.section import Section
from stillhouse.stages import STAGES

Rows = Literal["all", "predicted"]
LanguageModeling = Literal["causal", "masked"]
CacheKind = Literal["top_k", "sampled"]
Fraction = Annotated[float, Field(gt=0, lt=1)]
UnitInterval = Annotated[float, Field(ge=0, le=1)]


class OptimizerRecipe(Section):
    """AdamW, with the 2019 settings as defaults."""

    name: Literal["adamw"] = "adamw"
    learning_rate: PositiveFloat = 5e-4
    betas: tuple[Fraction, Fraction] = (0.9, 0.98)
    eps: PositiveFloat = 1e-6
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: PositiveFloat = 5.0


class ScheduleRecipe(Section):
    """How the learning rate rises (warm-up) and falls (to zero) over the optimizer steps."""

    name: Literal["linear", "cosine", "constant"] = "linear"
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.05


class CheckpointRecipe(Section):
    """How often training commits its state, and how many states stay on disk."""

    every_steps: PositiveInt = 500
    keep_last: Annotated[int, Field(ge=2)] = 2
    keep_every_steps: PositiveInt | None = None  # of these steps every state stays


class TrainingRecipe(Section):
    """What every training run needs, with a teacher or without."""

    optimizer: OptimizerRecipe = OptimizerRecipe()
    schedule: ScheduleRecipe = ScheduleRecipe()
    micro_batch_tokens: PositiveInt | Literal["auto"] = "auto"
    epochs: PositiveInt = 3
    dropout: bool = True  # as the model's configuration says, or off while it learns
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: bool | Literal["auto"] = "auto"
    sharded: bool = False  # over the ranks: weights, gradients, optimizer; else each has all
    activation_checkpointing: bool = False  # compute activations twice rather than keep them
    checkpoint: CheckpointRecipe = CheckpointRecipe()


class PretrainingRecipe(TrainingRecipe):
    """Training on text, whose steps are counted in tokens."""

    tokens_per_step: PositiveInt = 262_144
    max_tokens: PositiveInt | None = None


class TeacherRecipe(Section):
    """A teacher trained here from random weights, on the recipe's own tokens."""

    family: Literal["gpt2", "bert", "roberta"]
    num_layers: PositiveInt
    hidden_size: PositiveInt
    num_heads: PositiveInt
    intermediate_size: PositiveInt | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    training: PretrainingRecipe = PretrainingRecipe()

    @model_validator(mode="after")
    def _heads_divide_the_hidden_size(self) -> Any:
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}; "
                "each attention head takes an equal share of it"
            )
        return self


class TunedTeacherRecipe(Section):
    """A teacher that goes on from a model (a folder or a hub name), on the recipe's own tokens."""

    start: str
    training: PretrainingRecipe = PretrainingRecipe()


class CorpusRecipe(Section):
    """Where the text comes from, and what one document is."""

    source: str | list[str]
    documents: Literal["per_file", "per_line", "per_block"] = "per_file"
    text_field: str = "text"
    validation_fraction: Fraction = 0.005

    @property
    def sources(self) -> list[str]:
        """The sources as a list, whichever way they were written."""
        return [self.source] if isinstance(self.source, str) else self.source

    @model_validator(mode="after")
    def _names_a_source(self) -> Any:
        if not self.sources or not all(self.sources):
            raise ValueError("source names no text; give a path, a glob, hf://NAME, or sample")
        return self


Trainable = Literal["byte_bpe", "wordpiece"]
OWN_TOKENIZER = (
    f"a tokenizer's folder, or {{train: {' or '.join(get_args(Trainable))}, vocabulary_size: N}}"
)


class TrainedTokenizer(Section):
    """A tokenizer trained on the corpus itself."""

    train: Trainable
    vocabulary_size: Annotated[int, Field(ge=300)] = 32_000


class MaskingRecipe(Section):
    """Masked language modeling: how many tokens are predicted, and what stands in their place."""

    fraction: Fraction = 0.15
    mask: UnitInterval = 0.8
    keep: UnitInterval = 0.1
    random: UnitInterval = 0.1
    rarity_exponent: NonNegativeFloat = 0.7
    draw: Literal["per_sequence", "per_batch"] = "per_sequence"

    @model_validator(mode="after")
    def _shares_sum_to_one(self) -> Any:
        total = self.mask + self.keep + self.random
        if abs(total - 1) > 1e-6:
            raise ValueError(f"mask + keep + random is {total:g}; the three shares must sum to 1")
        return self


def _kind_of_tokenizer(value: object) -> str:
    return "trained" if isinstance(value, (Mapping, TrainedTokenizer)) else "named"


class TokensRecipe(Section):
    """How documents become sequences of tokens."""

    language_modeling: LanguageModeling = "causal"
    tokenizer: Annotated[
        Annotated[str, Tag("named")] | Annotated[TrainedTokenizer, Tag("trained")],
        Discriminator(_kind_of_tokenizer),
    ] = "teacher"
    sequence_length: Annotated[int, Field(ge=8)] = 1024
    attend_across_documents: bool = False
    masking: MaskingRecipe = MaskingRecipe()


class StudentRecipe(Section):
    """Which student follows from the teacher, and with which weights it starts."""

    family: Literal["gpt2", "bert", "distilbert", "roberta"] | None = None
    layer_map: PositiveInt | Annotated[list[int], Field(min_length=1)] | None = None
    weights: str = "teacher"
    freeze: list[Literal["word_embeddings", "position_embeddings", "token_type_embeddings"]] = (
        Field(default=[])
    )


class LossRecipe(Section):
    """One term of the objective: its weight, and the rows (positions) that count."""

    weight: NonNegativeFloat
    rows: Rows = "all"


class HardLossRecipe(Section):
    """The language modeling loss: always on the predicted rows."""

    weight: NonNegativeFloat

    @property
    def rows(self) -> Rows:
        return "predicted"


class JsdRecipe(LossRecipe):
    """Generalised Jensen-Shannon divergence; beta is the teacher's share of the mixture."""

    beta: Fraction = 0.5


class SkewRecipe(LossRecipe):
    """Skew KL; alpha is the teacher's share of the mixture."""

    alpha: Annotated[float, Field(ge=0, lt=1)] = 0.1


class RelationRecipe(LossRecipe):
    """Self-relations of queries, keys and values, compared in `heads` heads (by default as many as
    the student's attention has) of one layer of each model (from 0; by default the last)."""

    heads: PositiveInt | None = None
    teacher_layer: NonNegativeInt | None = None
    student_layer: NonNegativeInt | None = None


class LossesRecipe(Section):
    """The terms of the distillation objective. A term that is left out has no weight."""

    soft_target: LossRecipe | None = None
    reverse_kl: LossRecipe | None = None
    jsd: JsdRecipe | None = None
    skew_kl: SkewRecipe | None = None
    total_variation: LossRecipe | None = None
    logit_mse: LossRecipe | None = None
    language_modeling: HardLossRecipe | None = None
    hidden_cosine: LossRecipe | None = None
    hidden_mse: LossRecipe | None = None
    relation: RelationRecipe | None = None

    def active(self) -> dict[str, LossRecipe | HardLossRecipe]:
        """The terms with a weight above zero, by name, in the order of this class."""
        terms = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: term for name, term in terms.items() if term is not None and term.weight > 0}

    @model_validator(mode="after")
    def _something_to_learn_from(self) -> Any:
        if not self.active():
            raise ValueError("every weight is zero or left out, so there is nothing to learn from")
        return self


class CacheRecipe(Section):
    """The teacher's outputs, written once: `size` tokens of each row, the likeliest or a sample."""

    cache: CacheKind
    size: PositiveInt = 32


def _kind_of_teacher_outputs(value: object) -> str:
    return "cached" if isinstance(value, (Mapping, CacheRecipe)) else "named"


# Of a training's settings, those that say how often it is committed and where it runs.
PLACING = {"checkpoint", "sharded", "teacher_sharded", "activation_checkpointing"}
# The terms of the objective that a cached teacher serves, beside those that need none.
CACHED_LOSSES = ("soft_target", "hidden_cosine", "hidden_mse")
DEFAULT_PRESET = "fast"
PRESETS: dict[str, dict[str, Any]] = {
    # What reached a given validation loss soonest (docs/experiments.md, "Time to quality").
    "fast": {
        "temperature": 1.0,
        "losses": {
            "soft_target": {"weight": 5.0, "rows": "predicted"},
            "language_modeling": {"weight": 1.0},
            "hidden_cosine": {"weight": 20.0, "rows": "predicted"},
        },
        "dropout": False,
    },
    # DistilBERT's weights, confirmed by its author (huggingface/transformers#2013).
    "classic": {
        "temperature": 2.0,
        "losses": {
            "soft_target": {"weight": 5.0},
            "language_modeling": {"weight": 2.0},
            "hidden_cosine": {"weight": 1.0},
        },
    },
}


def preset_of(section: Mapping[str, Any]) -> dict[str, Any]:
    """The values that a distillation section starts from; a name that is refused stands for the
    default, so that it is the one mistake."""
    return PRESETS.get(str(section.get("preset", DEFAULT_PRESET)), PRESETS[DEFAULT_PRESET])


class DistillationRecipe(PretrainingRecipe):
    """How the student learns from its teacher, and which control it is held against."""

    preset: Literal["fast", "classic"] = DEFAULT_PRESET
    temperature: PositiveFloat
    losses: LossesRecipe
    teacher_outputs: Annotated[
        Annotated[Literal["live"], Tag("named")] | Annotated[CacheRecipe, Tag("cached")],
        Discriminator(_kind_of_teacher_outputs),
    ] = "live"
    teacher_sharded: bool = False  # over the ranks: a live teacher's layers
    control: Literal["same_tokens", "same_time", "both", "none"] = "same_tokens"

    @model_validator(mode="before")
    @classmethod
    def _start_from_the_preset(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        return {**preset_of(data), **data}

    @model_validator(mode="after")
    def _a_cache_serves_the_losses(self) -> Any:
        if isinstance(self.teacher_outputs, CacheRecipe):
            served = {*CACHED_LOSSES, "language_modeling"}
            if unserved := [name for name in self.losses.active() if name not in served]:
                raise ValueError(
                    f"losses.{unserved[0]} needs the teacher's whole distribution, which a cache "
                    "does not hold; set teacher_outputs to live, or take "
                    f"{', '.join(CACHED_LOSSES)}"
                )
        return self


# Of a task or one of its models: a folder of the run.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]


class TaskDataRecipe(Section):
    """Files of a task's examples: to learn from, and one or several splits to be scored on.

    Of the training examples `num_train` are taken, the same ones for every model and seed; or all.
    Those of `transfer` (`num_transfer` of them) have no answers, or none that is looked at: what
    has a teacher learns from them what the teacher says, and a model that has none and teaches
    none takes as many steps on `train` alone.
    """

    train: str
    validation: str | Annotated[dict[str, str], Field(min_length=1)]
    num_train: PositiveInt | None = None
    transfer: str | None = None
    num_transfer: PositiveInt | None = None

    @property
    def splits(self) -> dict[str, str]:
        """The files to be scored on, by the name of the split."""
        if isinstance(self.validation, str):
            return {"validation": self.validation}
        return self.validation

    @property
    def sources(self) -> dict[str, str]:
        """All files and datasets, by their keys, such as `train` and `validation.matched`."""
        transfer = {} if self.transfer is None else {"transfer": self.transfer}
        splits = {self.key_of(split): source for split, source in self.splits.items()}
        return {"train": self.train, **transfer, **splits}

    def key_of(self, split: str) -> str:
        """The key of the file of a split."""
        return "validation" if isinstance(self.validation, str) else f"validation.{split}"


class TaskOptimizerRecipe(OptimizerRecipe):
    """AdamW, as models are fine-tuned with it (Devlin et al. 2019, appendix A.3)."""

    learning_rate: PositiveFloat = 5e-5
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    max_grad_norm: PositiveFloat = 1.0


class TaskScheduleRecipe(ScheduleRecipe):
    """The same, with the warm-up that is usual for a task."""

    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1


class TaskTrainingRecipe(TrainingRecipe):
    """Training on examples, whose steps are counted in them.

    `evaluations` states of the training, evenly spread, the last among them, are scored; the best
    one by the task's metric on the split `select` is kept, or the last where no split is named.
    """

    # Sections never change, so a narrower kind is safe.
    optimizer: TaskOptimizerRecipe = TaskOptimizerRecipe()  # pyright: ignore[reportIncompatibleVariableOverride]
    schedule: TaskScheduleRecipe = TaskScheduleRecipe()  # pyright: ignore[reportIncompatibleVariableOverride]
    examples_per_step: PositiveInt = 32
    evaluations: PositiveInt = 1
    select: str | None = None


class TaskModelRecipe(Section):
    """One model of a task: what it starts from, and what teaches it.

    `start` is teacher, student, student_init or control (of this recipe), a folder, or a hub name;
    `teacher` another model of the same task, a folder, or a hub name.
    """

    start: str = "student"
    layer_map: PositiveInt | Annotated[list[NonNegativeInt], Field(min_length=1)] | None = None
    teacher: str | None = None


class TaskLossesRecipe(Section):
    """The weights of a task's terms; those of a teacher count where there is one.

    Vectors have vector_cosine, vector_mse and similarity in place of soft_target.
    """

    hard_target: NonNegativeFloat = 0.5
    soft_target: NonNegativeFloat = 0.5
    vector_cosine: NonNegativeFloat = 0.0
    vector_mse: NonNegativeFloat = 0.0
    similarity: NonNegativeFloat = 0.0
    relation: RelationRecipe | None = None  # over all tokens

    def active(self) -> dict[str, float]:
        """The terms with a weight above zero, by name."""
        weights = self.model_dump(exclude={"relation"})
        if self.relation is not None:
            weights["relation"] = self.relation.weight
        return {name: weight for name, weight in weights.items() if weight > 0}

    @field_validator("relation")
    @classmethod
    def _relate_all_tokens(cls, relation: RelationRecipe | None) -> RelationRecipe | None:
        if relation is not None and relation.rows != "all":
            raise ValueError(f"rows is {relation.rows}; a task relates all tokens, so give all")
        return relation

    @model_validator(mode="after")
    def _something_to_learn_from(self) -> Any:
        if not self.active():
            raise ValueError("every weight is zero, so there is nothing to learn from")
        return self


def _three_models() -> dict[str, TaskModelRecipe]:
    return {
        "teacher": TaskModelRecipe(start="teacher"),
        "student": TaskModelRecipe(start="student"),
        "distilled": TaskModelRecipe(start="student", teacher="teacher"),
    }


class FinetuningRecipe(Section):
    """A task, and the models that are trained on it in turn."""

    task: NamedTaskRecipe
    data: TaskDataRecipe
    models: Annotated[dict[Name, TaskModelRecipe], Field(min_length=1)] = Field(
        default_factory=_three_models
    )
    temperature: PositiveFloat = 2.0  # with the weights of the losses as in 2019
    losses: TaskLossesRecipe = TaskLossesRecipe()
    training: TaskTrainingRecipe = TaskTrainingRecipe()

    @model_validator(mode="after")
    def _models_follow_one_another(self) -> Any:
        """(A teacher that is not a model of this task is a folder or a hub name.)"""
        done: set[str] = set()
        for name, model in self.models.items():
            if model.teacher in self.models and model.teacher not in done:
                raise ValueError(
                    f"models.{name} is taught by {model.teacher}, which comes after it; put "
                    f"{model.teacher} first"
                )
            done.add(name)
        self._check_transfer()
        select = self.training.select
        if select is None and self.training.evaluations > 1:
            raise ValueError(
                f"training.evaluations is {self.training.evaluations}, but training.select names "
                "no split to choose the best state by"
            )
        if select is not None and select not in self.data.splits:
            raise ValueError(
                f"training.select is {select}, but data.validation has "
                f"{', '.join(self.data.splits)}"
            )
        return self

    def _check_transfer(self) -> None:
        """Refuse texts without answers that nobody would learn from."""
        if self.data.transfer is None:
            if self.data.num_transfer is not None:
                raise ValueError("data.num_transfer is given, but data.transfer names no file")
            return
        if all(model.teacher is None for model in self.models.values()):
            raise ValueError(
                "data.transfer is given, but no model has a teacher to say what is right for it"
            )
        if self.task.kind == "embeddings":
            raise ValueError(
                "data.transfer is given, but vectors need no answers; give all texts as data.train"
            )


class EvaluationRecipe(Section):
    """What is measured: perplexity on the validation split or on files, and speed."""

    perplexity: Annotated[list[str], Field(min_length=1)] = Field(default=["validation"])
    speed: bool = True


class ReportRecipe(Section):
    """What the model card says of name and licence."""

    model_name: str | None = None
    license: str | None = None


def _kind_of_teacher(value: object) -> str:
    if isinstance(value, Mapping):
        described = set(TeacherRecipe.model_fields) - {"training"}
        return "trained" if described & set(value) and "start" not in value else "tuned"
    if isinstance(value, TunedTeacherRecipe):
        return "tuned"
    return "trained" if isinstance(value, TeacherRecipe) else "named"


class Recipe(Section):
    """A whole run: from raw text to a proven student."""

    seed: Seed | Annotated[list[Seed], Field(min_length=1)] = 0
    teacher: Annotated[
        Annotated[str, Tag("named")]
        | Annotated[TeacherRecipe, Tag("trained")]
        | Annotated[TunedTeacherRecipe, Tag("tuned")],
        Discriminator(_kind_of_teacher),
    ]
    corpus: CorpusRecipe | None = None  # none where all there is to do is a task
    tokens: TokensRecipe = TokensRecipe()
    student: StudentRecipe = StudentRecipe()
    distillation: DistillationRecipe = Field(
        default_factory=lambda: DistillationRecipe.model_validate({})
    )
    finetuning: dict[Name, FinetuningRecipe] = Field(default={})
    evaluation: EvaluationRecipe = EvaluationRecipe()
    report: ReportRecipe = ReportRecipe()

    @property
    def seeds(self) -> list[int]:
        """The seeds as a list, whichever way they were written."""
        return [self.seed] if isinstance(self.seed, int) else self.seed

    @property
    def trains_its_teacher(self) -> bool:
        """Whether the teacher is made by the stage teacher."""
        return not isinstance(self.teacher, str)

    @property
    def named_model(self) -> str | None:
        """The folder or hub name of the teacher, or of what it goes on from; None for a teacher
        that is trained from random weights."""
        if isinstance(self.teacher, TunedTeacherRecipe):
            return self.teacher.start
        return self.teacher if isinstance(self.teacher, str) else None

    @property
    def text(self) -> CorpusRecipe:
        """The corpus of a recipe that has one."""
        assert self.corpus is not None
        return self.corpus

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that have something to do."""
        if self.corpus is None:
            return ("finetune", "report")
        return tuple(stage for stage in STAGES if stage != "finetune" or self.finetuning)

    @property
    def cache(self) -> CacheRecipe | None:
        """The teacher cache that the recipe asks for."""
        outputs = self.distillation.teacher_outputs
        return outputs if isinstance(outputs, CacheRecipe) else None

    def _check_starts(self) -> None:
        """Refuse models of tasks that start from what this recipe does not make."""
        made = {"student", "student_init"} if self.corpus is not None else set()
        if made and self.distillation.control in ("same_tokens", "both"):
            made.add("control")
        for name, task in self.finetuning.items():
            for model, settings in task.models.items():
                if settings.start in {"student", "student_init", "control"} - made:
                    raise ValueError(
                        f"finetuning.{name}.models.{model}.start is {settings.start}, which this "
                        "recipe does not make; give teacher, a folder or a hub name"
                    )

    @model_validator(mode="after")
    def _parts_agree(self) -> Any:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seed lists {self.seeds}; name each seed once")
        if self.corpus is None and not self.finetuning:
            raise ValueError("there is neither a corpus to distil on nor a task in finetuning")
        if self.corpus is None and self.trains_its_teacher:
            raise ValueError("a teacher that is trained here needs a corpus")
        self._check_starts()
        masked = self.tokens.language_modeling == "masked"
        if self.cache is not None and masked and self.tokens.masking.draw == "per_batch":
            raise ValueError(
                "distillation.teacher_outputs is a cache, which needs the same mask at every "
                "visit, but tokens.masking.draw is per_batch; set it to per_sequence"
            )
        if isinstance(self.teacher, TeacherRecipe):
            if self.tokens.tokenizer == "teacher":
                raise ValueError(
                    "tokens.tokenizer is 'teacher', but the teacher is trained here and has none; "
                    f"give {OWN_TOKENIZER}"
                )
            causal = self.teacher.family == "gpt2"
            if causal != (self.tokens.language_modeling == "causal"):
                raise ValueError(
                    f"teacher.family is {self.teacher.family}, which does not do "
                    f"{self.tokens.language_modeling} language modeling; "
                    "gpt2 is causal, bert and roberta are masked"
                )
        return self


def recipe_part(section: BaseModel | str) -> Any:
    """A section as plain JSON values, for manifests and fingerprints."""
    return section if isinstance(section, str) else json.loads(section.model_dump_json())


def shaping_part(training: TrainingRecipe) -> dict[str, Any]:
    """The settings of a training that shape its result: all but how often it is committed, and
    how it is spread over the ranks and memory."""
    return {key: value for key, value in recipe_part(training).items() if key not in PLACING}
