"""Task settings of a recipe: the kind of task, its model and how its data is read.

A task is given by its kind, or by a name for a kind with settings, such as `sst2`; other keys
override those settings. As in `recipe`, unknown keys are refused.
"""

from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    NonNegativeInt,
    PositiveInt,
    field_validator,
)

from stillhouse.section import Section

Length = Annotated[int, Field(ge=8)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


def _as_text(value: Any) -> Any:
    """The label text of what YAML has read as a number or a boolean."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else value


Label = Annotated[str, BeforeValidator(_as_text)]
LabelNames = Annotated[list[Label], Field(min_length=2)]
LabelMapping = Annotated[dict[Label, Label], Field(min_length=2)]


class Columns(Section):
    """The names of the columns of a table: a text, a second text, and the label."""

    text: str = "text"
    """Column of the text."""
    pair: str | None = None
    """Column of a second text."""
    target: str = "label"
    """Column of the label, value or continuation."""


class ClassificationTask(Section):
    """Classification of a text or a pair of texts, with one or, by `multi_label`, several labels.

    `labels` names them in the order of a new model's outputs, or maps the data's name of each to
    the model's. By default they are those of the training data, numbers in numeric order. A model
    with names for its outputs keeps its own order.
    """

    kind: Literal["classification"] = "classification"
    """Kind of task."""
    columns: Columns = Columns()
    """Columns of the table."""
    header: list[str] | None = None
    """Column names of a table without a header line."""
    labels: LabelNames | LabelMapping | None = None
    """Labels in the order of a new model's outputs, or a mapping from the data's labels to the
    model's; by default those of the training data."""
    multi_label: bool = False
    """Any number of labels per text, comma-separated, each predicted separately."""
    max_length: Length = 128
    """Longest sequence in tokens, special tokens included."""
    metric: Literal["accuracy", "f1", "accuracy_and_f1", "matthews"] = "accuracy"
    """Metric that selects the best state and compares models."""


class RegressionTask(Section):
    """Regression of one number for a text or a pair of texts."""

    kind: Literal["regression"] = "regression"
    """Kind of task."""
    columns: Columns = Columns()
    """Columns of the table."""
    header: list[str] | None = None
    """Column names of a table without a header line."""
    max_length: Length = 128
    """Longest sequence in tokens, special tokens included."""
    metric: Literal["pearson", "spearman", "pearson_and_spearman"] = "pearson_and_spearman"
    """Metric that selects the best state and compares models."""


class QuestionAnsweringTask(Section):
    """Extractive question answering: data in SQuAD's format, windows over long contexts.

    A question has no answer (SQuAD 2.0) where the null score exceeds the best answer's score by
    more than `null_score_diff_threshold`. By default it is the model's own: where training data has
    such questions, the best one on the split `training.select`, or on the first split.

    Lengths are in tokens. Each window begins `doc_stride` tokens after the one before it. (Some
    programs call the overlap of two windows their stride.)
    """

    kind: Literal["question_answering"] = "question_answering"
    """Kind of task."""
    max_length: Length = 384
    """Longest sequence in tokens, special tokens included."""
    doc_stride: PositiveInt = 128
    """Tokens from the start of one window of a long context to the start of the next."""
    max_question_length: PositiveInt = 64
    """Longest question in tokens."""
    n_best: PositiveInt = 20
    """Start and end positions considered per window."""
    max_answer_length: PositiveInt = 30
    """Longest answer in tokens."""
    null_score_diff_threshold: float | None = None
    """Excess of the null score over the best answer's score above which a question has no answer;
    by default the model's own, chosen where training data has such questions."""
    metric: Literal["exact_match", "f1"] = "f1"
    """Metric that selects the best state and compares models."""


class TokenClassificationTask(Section):
    """Token classification: data as in CoNLL files, a token and its tag per line.

    In tables the columns `tokens` and `tags` hold lists of a sentence's tokens and tags. `labels`
    names numeric tags, in their order, and the outputs of a new model; by default these are the
    tags of the training data.
    """

    kind: Literal["token_classification"] = "token_classification"
    """Kind of task."""
    tokens: str = "tokens"
    """Column of a table that lists a sentence's tokens."""
    tags: str = "ner_tags"
    """Column of a table that lists a sentence's tags."""
    token_column: int = 0
    """Column of the token in a CoNLL file, counted from 0."""
    tag_column: int = -1
    """Column of the tag in a CoNLL file; -1 is the last."""
    labels: LabelNames | None = None
    """Tags in the order of a new model's outputs, and of numeric tags; by default those of the
    training data."""
    prefix: str = ""
    """Text before every token of a file that is not part of it, such as `en:`."""
    max_length: Length = 128
    """Longest sequence in tokens, special tokens included."""
    metric: Literal["strict", "default"] = "strict"
    """Metric that selects the best state and compares models."""


class EmbeddingsTask(Section):
    """A normalized embedding of a text, compared by cosine similarity.

    It is the mean of the last hidden states, or that of the first token (`cls`). Training uses
    single texts, from `train_column`, and compares those of a `group` with each other.
    """

    kind: Literal["embeddings"] = "embeddings"
    """Kind of task."""
    columns: Columns = Columns(pair="text_2", target="score")
    """Columns of the table."""
    header: list[str] | None = None
    """Column names of a table without a header line."""
    max_length: Length = 128
    """Longest sequence in tokens, special tokens included."""
    pooling: Literal["mean", "cls"] = "mean"
    """Mean of the last hidden states, or that of the first token."""
    train_column: str = "text"
    """Column of the training texts."""
    group: Annotated[int, Field(ge=2)] = 32
    """Texts compared with each other in one loss."""
    metric: Literal["pearson", "spearman", "pearson_and_spearman"] = "spearman"
    """Metric that selects the best state and compares models."""


class LastWordTask(Section):
    """Prediction of a text's last word by a causal language model (LAMBADA)."""

    kind: Literal["last_word"] = "last_word"
    """Kind of task."""
    column: str = "text"
    """Column of the text."""
    max_length: Length = 1024
    """Longest sequence in tokens, special tokens included."""
    metric: Literal["last_word", "last_token"] = "last_word"
    """Metric that selects the best state and compares models."""


class ChoiceColumns(Section):
    """The columns of a table of questions."""

    question: str
    """Column of the question, or of what precedes the choices."""
    choices: str | Annotated[list[str], Field(min_length=2)]
    """Column that lists the choices, or the columns of one choice each."""
    label: str
    """Column of the right choice: its name where the data names the choices, else its number from
    0."""


class MultipleChoiceTask(Section):
    """Choice of the most likely of several continuations by a causal language model."""

    kind: Literal["multiple_choice"] = "multiple_choice"
    """Kind of task."""
    format: Literal["plain", "arc", "piqa", "openbookqa", "hellaswag", "winogrande", "copa"] = (
        "plain"
    )
    """Data set whose prompt and columns are used; `plain` is the question alone."""
    columns: ChoiceColumns | None = None
    """Columns of the table; by default those of the data set on the hub, or `query`, `choices` and
    `gold`."""
    max_length: Length = 2048
    """Longest sequence in tokens; a longer one loses its beginning."""
    metric: Literal["accuracy", "accuracy_norm"] = "accuracy"
    """Metric that compares models: the most likely choice, or the most likely per character."""


class BiasTask(Section):
    """Sentences that differ in a group, an attribute or a pronoun, by their probability."""

    kind: Literal["bias"] = "bias"
    """Kind of task."""
    format: Literal["crows_pairs", "stereoset", "winobias", "winogender"] = "crows_pairs"
    """Data set whose files, comparisons and metrics are used."""
    max_length: Length = 1024
    """Longest sequence in tokens; of a masked model special tokens included."""
    metric: Literal["stereotype_score"] = "stereotype_score"
    """Metric that compares models."""


class TemplatesTask(Section):
    """The words that follow templates with groups of people, sampled from a language model."""

    kind: Literal["templates"] = "templates"
    """Kind of task."""
    samples: Annotated[int, Field(ge=100)] = 1000
    """Samples of each prompt."""
    max_new_tokens: PositiveInt = 6
    """Longest continuation in tokens, of which the first word counts."""
    seed: Seed = 0
    """Seed of sampling."""
    max_length: Length = 1024
    """Longest sequence in tokens, prompt and continuation together."""
    metric: Literal["separation"] = "separation"
    """Metric that compares models."""


class GenderPolarityTask(Section):
    """Words of one gender in continuations that are sampled from a causal model (BOLD)."""

    kind: Literal["gender_polarity"] = "gender_polarity"
    """Kind of task."""
    max_new_tokens: PositiveInt = 25
    """Longest continuation in tokens."""
    seed: Seed = 0
    """Seed of sampling."""
    max_length: Length = 1024
    """Longest sequence in tokens, prompt and continuation together."""
    metric: Literal["gender_polarity"] = "gender_polarity"
    """Metric that compares models."""


class ContinuationTask(Section):
    """Zero-shot or few-shot generation after a prompt by a causal language model.

    The first `shots` rows precede each prompt as examples and are not scored. Decoding is greedy,
    or samples from the `top_k` most probable tokens; the text ends at `stop`, and after
    `sentences` sentences. `max_length` includes prompt and continuation.
    """

    kind: Literal["continuation"] = "continuation"
    """Kind of task."""
    columns: Columns = Columns(target="target")
    """Columns of the table."""
    header: list[str] | None = None
    """Column names of a table without a header line."""
    prompt: str = "{text}"
    """Prompt, with {text} where the text goes."""
    shots: NonNegativeInt = 0
    """Leading rows used as examples in each prompt and not scored."""
    max_new_tokens: PositiveInt = 100
    """Longest continuation in tokens."""
    top_k: PositiveInt = 1
    """Tokens to sample from; 1 is greedy."""
    seed: Seed = 0
    """Seed of sampling."""
    stop: str | None = None
    """Text that ends a continuation."""
    sentences: PositiveInt | None = None
    """Sentences kept of a continuation; by default all."""
    max_length: Length = 1024
    """Longest sequence in tokens, prompt and continuation together."""
    metric: Literal["bleu", "rouge1", "rouge2", "rougeLsum"] = "bleu"
    """Metric that selects the best state and compares models."""

    @field_validator("prompt")
    @classmethod
    def _has_one_place_for_the_text(cls, prompt: str) -> str:
        if prompt.count("{text}") != 1:
            raise ValueError(f"{prompt!r} must hold {{text}} once")
        return prompt


class WordProblemTask(Section):
    """Few-shot solution of math word problems by a causal language model (GSM8K).

    The first `shots` rows precede each prompt as examples and are not scored. Decoding is greedy.
    `max_length` includes prompt and solution.
    """

    kind: Literal["word_problem"] = "word_problem"
    """Kind of task."""
    shots: NonNegativeInt = 5
    """Leading rows used as examples in each prompt and not scored."""
    max_new_tokens: PositiveInt = 256
    """Longest solution in tokens."""
    max_length: Length = 2048
    """Longest sequence in tokens, prompt and solution together."""
    metric: Literal["strict_match", "flexible_match"] = "strict_match"
    """Metric that compares models: the number after ####, or the last number."""


def _glue(text: str, pair: str | None, target: str = "label", **settings: Any) -> dict[str, Any]:
    columns = {"text": text, "pair": pair, "target": target}
    return {"kind": "classification", "columns": columns, **settings}


ENTAILMENT = ["entailment", "not_entailment"]


def _numbered(*names: str) -> dict[str, str]:
    """What models and the hub call the labels 0, 1, ... of a published table."""
    return {str(number): name for number, name in enumerate(names)}


def _choices(format: str, metric: str = "accuracy_norm") -> dict[str, Any]:
    return {"kind": "multiple_choice", "format": format, "metric": metric}


# The tables of GLUE as published (Wang et al. 2019), and other published formats.
NAMED_TASKS: Mapping[str, Mapping[str, Any]] = {
    "cola": _glue(
        "sentence",
        None,
        header=["source", "label", "mark", "sentence"],
        labels=_numbered("unacceptable", "acceptable"),
        metric="matthews",
    ),
    "mnli": _glue(
        "sentence1",
        "sentence2",
        target="gold_label",
        labels=["entailment", "neutral", "contradiction"],
    ),
    "mrpc": _glue(
        "#1 String",
        "#2 String",
        target="Quality",
        labels=_numbered("not_equivalent", "equivalent"),
        metric="accuracy_and_f1",
    ),
    "qnli": _glue("question", "sentence", labels=ENTAILMENT),
    "qqp": _glue(
        "question1",
        "question2",
        target="is_duplicate",
        labels=_numbered("not_duplicate", "duplicate"),
        metric="accuracy_and_f1",
    ),
    "rte": _glue("sentence1", "sentence2", labels=ENTAILMENT),
    "sst2": _glue("sentence", None, labels=_numbered("negative", "positive")),
    "stsb": {
        "kind": "regression",
        "columns": {"text": "sentence1", "pair": "sentence2", "target": "score"},
    },
    "wnli": _glue("sentence1", "sentence2", labels=_numbered("not_entailment", "entailment")),
    "xnli": _glue(
        "sentence1",
        "sentence2",
        target="gold_label",
        labels=["entailment", "neutral", "contradiction"],
    ),
    "sts": {
        "kind": "embeddings",
        "columns": {"text": "sentence1", "pair": "sentence2", "target": "score"},
        "header": ["genre", "file", "year", "index", "score", "sentence1", "sentence2"],
    },
    "lambada": {"kind": "last_word"},
    **{name: _choices(name) for name in ("arc", "piqa", "openbookqa", "hellaswag")},
    **{name: _choices(name, "accuracy") for name in ("winogrande", "copa")},
    "gsm8k": {"kind": "word_problem"},
    **{
        name: {"kind": "bias", "format": name}
        for name in ("crows_pairs", "stereoset", "winobias", "winogender")
    },
    # Radford et al. 2019, sections 3.7 and 3.6.
    "translation": {
        "kind": "continuation",
        "prompt": "{text} =",
        "shots": 5,
        "stop": "\n",
        "sentences": 1,
    },
    "summary": {
        "kind": "continuation",
        "prompt": "{text}\nTL;DR:",
        "top_k": 2,
        "sentences": 3,
        "metric": "rougeLsum",
    },
    "bold": {"kind": "gender_polarity"},
    "squad": {"kind": "question_answering"},
    "conll": {"kind": "token_classification"},
}


def _start_from_the_name(value: Any) -> Any:
    if isinstance(value, str):
        value = {"kind": value}
    if not isinstance(value, Mapping) or str(value.get("kind")) not in NAMED_TASKS:
        return value
    named = NAMED_TASKS[str(value["kind"])]
    given = {key: each for key, each in value.items() if key != "kind"}
    if isinstance(given.get("columns"), Mapping):
        given["columns"] = {**named.get("columns", {}), **given["columns"]}
    return {**named, **given}


TaskRecipe = Annotated[
    ClassificationTask
    | RegressionTask
    | QuestionAnsweringTask
    | TokenClassificationTask
    | EmbeddingsTask
    | LastWordTask
    | MultipleChoiceTask
    | ContinuationTask
    | WordProblemTask
    | BiasTask
    | TemplatesTask
    | GenderPolarityTask,
    Discriminator("kind"),
]
TASK_KINDS: Mapping[str, type[Section]] = {
    section.model_fields["kind"].default: section for section in get_args(get_args(TaskRecipe)[0])
}
NamedTaskRecipe = Annotated[TaskRecipe, BeforeValidator(_start_from_the_name)]
# Those whose metrics are shares of the examples.
ZeroShotTask = Annotated[
    Annotated[LastWordTask | MultipleChoiceTask | WordProblemTask, Discriminator("kind")],
    BeforeValidator(_start_from_the_name),
]
NamedBiasTask = Annotated[
    Annotated[BiasTask | TemplatesTask | GenderPolarityTask, Discriminator("kind")],
    BeforeValidator(_start_from_the_name),
]


def task_names(kinds: Collection[str]) -> list[str]:
    """What a recipe may call the tasks of these kinds: named ones, then the kinds themselves."""
    return [*(name for name, own in NAMED_TASKS.items() if own["kind"] in kinds), *kinds]
