"""The recipe: one YAML file, typed, frozen, and the only place where a user's settings are checked.

Every section is a pydantic model that refuses unknown keys. `load_recipe` turns every mistake into
one `RecipeError` that names the key, what was found, and the nearest valid name. What needs the
teacher's configuration (is layer 12 there?) is checked by `stillhouse.check`."""

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
    ValidationError,
    model_validator,
)
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

from stillhouse.errors import RecipeError

Rows = Literal["all", "predicted"]
LanguageModeling = Literal["causal", "masked"]
CacheKind = Literal["top_k", "sampled"]
Fraction = Annotated[float, Field(gt=0, lt=1)]
UnitInterval = Annotated[float, Field(ge=0, le=1)]
# How pydantic calls the members of a union where it says which of them a value is not.
UNION_MEMBER = re.compile(
    r"named|trained|cached|int|str|bool|constrained-int|list\[.*\]|literal\[.*\]"
)


class Section(BaseModel):
    """A part of a recipe: immutable, and strict about names."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


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
    tokens_per_step: PositiveInt = 262_144
    micro_batch_tokens: PositiveInt | Literal["auto"] = "auto"
    epochs: PositiveInt = 3
    max_tokens: PositiveInt | None = None
    dropout: bool = True  # as the model's configuration says, or off while it learns
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: bool | Literal["auto"] = "auto"
    sharded: bool = False  # over the ranks: weights, gradients, optimizer; else each has all
    activation_checkpointing: bool = False  # compute activations twice rather than keep them
    checkpoint: CheckpointRecipe = CheckpointRecipe()


class TeacherRecipe(Section):
    """A teacher trained here from random weights, on the recipe's own tokens."""

    family: Literal["gpt2", "bert", "roberta"]
    num_layers: PositiveInt
    hidden_size: PositiveInt
    num_heads: PositiveInt
    intermediate_size: PositiveInt | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    training: TrainingRecipe = TrainingRecipe()

    @model_validator(mode="after")
    def _heads_divide_the_hidden_size(self) -> Any:
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}; "
                "each attention head takes an equal share of it"
            )
        return self


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


class TrainedTokenizer(Section):
    """A tokenizer trained on the corpus itself."""

    train: Literal["byte_bpe", "wordpiece"]
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
    freeze: list[Literal["word_embeddings", "position_embeddings", "token_type_embeddings"]] = []


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


# The terms of the objective that a cached teacher serves, beside those that need none.
PLACING = {"checkpoint", "sharded", "teacher_sharded", "activation_checkpointing"}
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


def _preset_of(section: Mapping[str, Any]) -> dict[str, Any]:
    """The values that a distillation section starts from; none under a name that is refused."""
    return PRESETS.get(str(section.get("preset", DEFAULT_PRESET)), {})


class DistillationRecipe(TrainingRecipe):
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
        return {**_preset_of(data), **data}

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


class EvaluationRecipe(Section):
    """What is measured: perplexity on the validation split or on files, and speed."""

    perplexity: list[str] = ["validation"]
    speed: bool = True


class ReportRecipe(Section):
    """What the model card says of name and licence."""

    model_name: str | None = None
    license: str | None = None


def _kind_of_teacher(value: object) -> str:
    return "trained" if isinstance(value, (Mapping, TeacherRecipe)) else "named"


class Recipe(Section):
    """A whole run: from raw text to a proven student."""

    seed: int | Annotated[list[int], Field(min_length=1)] = 0
    teacher: Annotated[
        Annotated[str, Tag("named")] | Annotated[TeacherRecipe, Tag("trained")],
        Discriminator(_kind_of_teacher),
    ]
    corpus: CorpusRecipe
    tokens: TokensRecipe = TokensRecipe()
    student: StudentRecipe = StudentRecipe()
    distillation: DistillationRecipe = Field(
        default_factory=lambda: DistillationRecipe.model_validate({})
    )
    evaluation: EvaluationRecipe = EvaluationRecipe()
    report: ReportRecipe = ReportRecipe()

    @property
    def seeds(self) -> list[int]:
        """The seeds as a list, whichever way they were written."""
        return [self.seed] if isinstance(self.seed, int) else self.seed

    @property
    def cache(self) -> CacheRecipe | None:
        """The teacher cache that the recipe asks for."""
        outputs = self.distillation.teacher_outputs
        return outputs if isinstance(outputs, CacheRecipe) else None

    @model_validator(mode="after")
    def _parts_agree(self) -> Any:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seed lists {self.seeds}; name each seed once")
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
                    "give a tokenizer's folder or {train: byte_bpe, vocabulary_size: N}"
                )
            causal = self.teacher.family == "gpt2"
            if causal != (self.tokens.language_modeling == "causal"):
                raise ValueError(
                    f"teacher.family is {self.teacher.family}, which does not do "
                    f"{self.tokens.language_modeling} language modeling; "
                    "gpt2 is causal, bert and roberta are masked"
                )
        return self


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    files = (resources.files("stillhouse") / "recipes").iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def recipe_text(name_or_path: str) -> tuple[str, str]:
    """The recipe's name (the file's stem) and its text, from a packaged name or a path."""
    path = Path(name_or_path)
    if name_or_path in recipe_names():
        packaged = resources.files("stillhouse") / "recipes" / f"{name_or_path}.yaml"
        return name_or_path, packaged.read_text(encoding="utf-8")
    if path.is_file():
        try:
            return path.stem, path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise RecipeError(
                f"{path} is not UTF-8 text ({error.reason} at byte {error.start})."
            ) from error
    near = _nearest(name_or_path, recipe_names())
    raise RecipeError(
        f"There is no recipe {name_or_path!r}: neither a file nor a packaged recipe."
        f"{near} `stillhouse recipes` lists the packaged ones."
    )


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> tuple[str, Recipe]:
    """Read, override (`a.b=c`) and validate a recipe; returns its name and the recipe.

    Raises:
        RecipeError: no such recipe, broken YAML, an unknown key, a wrong type or value.
    """
    name, text = recipe_text(name_or_path)
    return name, parse_recipe(text, overrides, where=name_or_path)


def parse_recipe(text: str, overrides: Sequence[str] = (), *, where: str = "recipe") -> Recipe:
    """Validate a recipe's YAML text after applying `overrides`; `where` names it in errors."""
    data = _parse_yaml(text, where)
    if not isinstance(data, dict):
        raise RecipeError(
            f"{where}: a recipe is a mapping of keys to values, got {type(data).__name__}."
        )
    _write_out_preset(data, overrides)
    for override in overrides:
        _apply_override(data, override)
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise RecipeError(_explain(error, where)) from error


def dump_recipe(recipe: Recipe) -> str:
    """The whole recipe as YAML, every default written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def recipe_part(section: BaseModel | str) -> Any:
    """A section as plain JSON values, for manifests and fingerprints."""
    return section if isinstance(section, str) else json.loads(section.model_dump_json())


def shaping_part(training: TrainingRecipe) -> dict[str, Any]:
    """The settings of a training that shape its result: all but how often it is committed, and
    how it is spread over the ranks and memory."""
    return {key: value for key, value in recipe_part(training).items() if key not in PLACING}


def _parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise RecipeError(f"{where}:{place} is not YAML: {problem}.") from error
    except (RecursionError, ValueError) as error:
        raise RecipeError(f"{where} cannot be read as YAML: {error}.") from error


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML that refuses a key written twice, and anchors (a few lines of which can fill
    memory)."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise ComposerError(None, None, "aliases (*name) are not allowed", mark)
        return super().compose_node(parent, index)  # pyright: ignore[reportArgumentType]

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ConstructorError(None, None, "a key is a single word", key.start_mark)
            if key.value in seen:
                raise ConstructorError(
                    None, None, f"the key {key.value!r} stands twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _write_out_preset(data: dict[str, Any], overrides: Sequence[str]) -> None:
    """Where --set changes one loss of a preset, write out the preset's losses, so the others
    stay."""
    if not any(override.strip().startswith("distillation.losses.") for override in overrides):
        return
    section = data.setdefault("distillation", {})
    if isinstance(section, dict) and "losses" not in section:
        terms = _preset_of(section).get("losses", {})
        section["losses"] = {name: dict(term) for name, term in terms.items()}


def _apply_override(data: dict[str, Any], override: str) -> None:
    path, separator, value = override.partition("=")
    keys = path.strip().split(".")
    if not separator or not all(keys):
        raise RecipeError(
            "--set takes KEY.KEY=VALUE, such as seed=1 or tokens.sequence_length=256; got "
            f"{override!r}."
        )
    target = data
    for key in keys[:-1]:
        target = target.setdefault(key, {})
        if not isinstance(target, dict):
            raise RecipeError(f"--set {override}: {key} is a value here, not a section.")
    target[keys[-1]] = _parse_yaml(value, f"--set {path}")


def _explain(error: ValidationError, where: str) -> str:
    lines = []
    for problem in error.errors():
        keys = _path_of(problem["loc"], unknown_key=problem["type"] == "extra_forbidden")
        path = ".".join(map(str, keys))
        if problem["type"] == "extra_forbidden":
            known = _fields_at(keys[:-1])
            lines.append(f"{path} is not a key of a recipe.{_nearest(str(keys[-1]), known)}")
        elif problem["type"] == "missing":
            lines.append(f"{path} is missing.")
        elif problem["type"] == "value_error":
            message = str(problem.get("ctx", {}).get("error"))
            lines.append(f"{path + ': ' if path else ''}{message}.")
        else:
            message = problem["msg"][0].lower() + problem["msg"][1:]
            lines.append(f"{path}: {message}, got {problem['input']!r:.80}.")
    unique = list(dict.fromkeys(lines))
    return f"{where}: " + (
        unique[0] if len(unique) == 1 else "".join(f"\n  {line}" for line in unique)
    )


def _path_of(location: Sequence[int | str], *, unknown_key: bool) -> list[int | str]:
    """The user's own keys, without the members of unions that pydantic went through."""
    own = location[-1:] if unknown_key else ()
    inner = location[: len(location) - len(own)]
    return [*(key for key in inner if not UNION_MEMBER.fullmatch(str(key))), *own]


def _fields_at(keys: Sequence[int | str]) -> list[str]:
    """Names of the fields of the section that `keys` leads to."""
    section: type[BaseModel] = Recipe
    for key in keys:
        candidates = (
            _sections_in(section.model_fields[str(key)].annotation)
            if str(key) in section.model_fields
            else []
        )
        if not candidates:
            return []
        section = candidates[0]
    return list(section.model_fields)


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [found for part in getattr(annotation, "__args__", ()) for found in _sections_in(part)]


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if near:
        return f" Did you mean {near[0]!r}?"
    return f" Known here: {', '.join(known)}." if known else ""
