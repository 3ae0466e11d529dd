"""Multiple choice by a causal language model: the choice of the highest log-likelihood.

Prompts and tokens are those of lm-eval 0.4 in its tasks arc_easy, arc_challenge, piqa, openbookqa,
hellaswag, winogrande and copa, zero-shot: a choice follows its context after a space, and its
tokens are those that it adds to the context's, with spaces at the context's end counted as its own.
`accuracy` takes the log-likelihood, `accuracy_norm` (lm-eval's acc_norm) the log-likelihood divided
by the number of characters of the choice.

Winogrande is scored partially: the options are in the context, and the likelihood is that of the
same ending (Trinh and Le 2018, section 3).

Axes: P choices.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from stillhouse.data.rows import Row, name_of, read_rows
from stillhouse.errors import DataError
from stillhouse.families.registry import family_of
from stillhouse.tasks.encoded import EncodedExample
from stillhouse.tasks.metrics import MetricSamples, mean
from stillhouse.tasks.settings import ChoiceColumns, MultipleChoiceTask
from stillhouse.tasks.task import Task
from stillhouse.tasks.token_tree import all_log_likelihoods, encode_texts
from stillhouse.tasks.zero_shot import LanguageModelTask

PREPARED = ChoiceColumns(question="query", choices="choices", label="gold")
# For each format the columns of its data set on the hub, and of files prepared for scoring.
COLUMNS = {
    "plain": (ChoiceColumns(question="question", choices="choices", label="label"), PREPARED),
    "arc": (ChoiceColumns(question="question", choices="choices", label="answerKey"), PREPARED),
    "piqa": (ChoiceColumns(question="goal", choices=["sol1", "sol2"], label="label"), PREPARED),
    "openbookqa": (
        ChoiceColumns(question="question_stem", choices="choices", label="answerKey"),
        PREPARED,
    ),
    "hellaswag": (ChoiceColumns(question="ctx", choices="endings", label="label"), PREPARED),
    "winogrande": (
        ChoiceColumns(question="sentence", choices=["option1", "option2"], label="answer"),
        ChoiceColumns(question="continuation", choices="context_options", label="gold"),
    ),
    "copa": (
        ChoiceColumns(question="premise", choices=["choice1", "choice2"], label="label"),
        PREPARED,
    ),
}
CONNECTORS = {"cause": "because", "effect": "therefore"}  # of COPA


@dataclass(frozen=True)
class Question:
    """For each choice the text before it, and the text that is scored.

    `sizes` are the characters that normalize the log-likelihoods, `target` the number of the right
    choice; `where` names the row in errors.
    """

    question: str
    choices: tuple[str, ...]
    contexts: tuple[str, ...]
    continuations: tuple[str, ...]
    sizes: tuple[int, ...]
    target: int | None = None
    where: str = field(default="", compare=False)

    @property
    def inputs(self) -> dict[str, Any]:
        """What a model is given."""
        return {"question": self.question, "choices": list(self.choices)}


class MultipleChoice(LanguageModelTask[MultipleChoiceTask]):
    """The most likely of several choices."""

    _window: int | None = None  # of the model's attention

    def for_model(self, folder: Path, config: PretrainedConfig) -> Task:
        task = super().for_model(folder, config)
        assert isinstance(task, MultipleChoice)
        task._window = family_of(config).window(config)
        return task

    def read(self, path: Path, *, labeled: bool = True) -> list[Question]:
        """Questions with their choices in the columns of the recipe, or in those of its format."""
        known = COLUMNS[self.recipe.format]
        column = (self.recipe.columns or known[0]).question
        rows = read_rows(path, column, keep_blank=not labeled)
        columns = self.recipe.columns or _columns_in(rows[0], known, path)
        return [read_question(row, self.recipe.format, columns, labeled) for row in rows]

    def _sequences(
        self, example: Question, tokenizer: PreTrainedTokenizerFast
    ) -> list[EncodedExample]:
        pairs = [
            encode_pair(context, continuation, tokenizer)
            for context, continuation in zip(example.contexts, example.continuations, strict=True)
        ]
        return encode_texts(pairs, self.recipe.max_length, self._window)

    def all_outputs(
        self, model: PreTrainedModel, sequences: Sequence[EncodedExample]
    ) -> list[Float[Tensor, " _"]]:
        """The log-likelihoods of each tree's texts."""
        return all_log_likelihoods(model, sequences)

    def predict(
        self,
        example: Question,
        sequences: Sequence[EncodedExample],
        outputs: Sequence[Float[Tensor, " _"]],
    ) -> Float[np.ndarray, " P"]:
        """The log-likelihood of each choice."""
        return np.concatenate([output.numpy() for output in outputs])

    def metric_samples(
        self, predictions: Sequence[Float[np.ndarray, " P"]], examples: Sequence[Question]
    ) -> dict[str, MetricSamples]:
        pairs = list(zip(predictions, examples, strict=True))
        plain = [_is_right(found, each.target) for found, each in pairs]
        normalized = [_is_right(found / each.sizes, each.target) for found, each in pairs]
        return {
            name: MetricSamples(mean, np.array(values), np.array(values))
            for name, values in (("accuracy", plain), ("accuracy_norm", normalized))
        }

    def chance(self, examples: Sequence[Question]) -> float:
        """The mean of one over the number of choices."""
        return float(np.mean([1 / len(each.choices) for each in examples]))

    def result(self, prediction: Float[np.ndarray, " P"]) -> Any:
        return {"choice": int(prediction.argmax()), "log_likelihoods": prediction.tolist()}


def encode_pair(
    context: str, continuation: str, tokenizer: PreTrainedTokenizerFast
) -> tuple[list[int], int]:
    """The tokens of both texts, and the number of those that the continuation adds.

    White space at the context's end counts as the continuation's. An empty context is the start of
    text, or the end of text where the tokenizer has none.

    Raises:
        DataError: the continuation adds no token.
    """
    kept = context.rstrip()
    continuation = context[len(kept) :] + continuation

    def encode(text: str, *, special: bool) -> list[int]:
        options = {"add_special_tokens": special, "split_special_tokens": True}
        return tokenizer(text, verbose=False, **options)["input_ids"]  # pyright: ignore

    if kept:
        before, whole = encode(kept, special=True), encode(kept + continuation, special=True)
    else:
        start = tokenizer.bos_token_id
        before = [tokenizer.eos_token_id if start is None else start]
        whole = [*before, *encode(continuation, special=False)]
    if len(whole) <= len(before):
        raise DataError(f"The choice {continuation!r:.60} adds no token to {context!r:.60}.")
    return whole, len(whole) - len(before)


def read_question(row: Row, format: str, columns: ChoiceColumns, labeled: bool) -> Question:
    """The question of a row in the form that its data set has in lm-eval.

    Raises:
        DataError: a column that is missing, or does not hold what it should.
    """
    text, (choices, names) = row.text(columns.question), _choices(row, columns, format)
    target = _target(row, columns.label, names) if labeled else None
    contexts, endings = None, None
    match format:
        case "arc" | "piqa":
            asked = text.removeprefix("Question: ").removesuffix("\n")
            contexts = f"Question: {asked}\nAnswer:"
        case "hellaswag":
            if "ctx_b" in row.fields:
                start = f"{row.text('ctx_a')} {row.text('ctx_b').capitalize()}"
                text = f"{row.text('activity_label')}: {start}"
            contexts, choices = _cleaned(text), [_cleaned(choice) for choice in choices]
        case "copa" if "question" in row.fields:
            connector = CONNECTORS.get(row.text("question"))
            if connector is None:
                raise row.wrong("question", "cause or effect")
            contexts = f"{text.strip()[:-1]} {connector}"
            # Two spaces before a choice, as in lm-eval.
            choices = [f" {choice[:1].lower()}{choice[1:]}" for choice in choices]
        case "copa":
            contexts, choices = text, [f" {choice}" for choice in choices]
        case "winogrande":
            before, blank, after = text.partition("_")
            contexts = [before + choice for choice in choices] if blank else choices
            endings = [after.strip() if blank else text] * len(choices)
    size, endings = len(choices), endings or choices
    if not all(ending.strip() for ending in endings):
        if format == "winogrande":
            raise row.wrong(columns.question, "a text that continues after the options")
        raise row.wrong(_as_list(columns.choices)[0], "a text outside of brackets")
    return Question(
        text,
        tuple(choices),
        tuple(contexts) if isinstance(contexts, list) else (contexts or text,) * size,
        tuple(f" {ending}" for ending in endings),
        tuple(map(len, endings)),
        target,
        row.where,
    )


def _columns_in(row: Row, known: Sequence[ChoiceColumns], path: Path) -> ChoiceColumns:
    """The first of the known columns that a file has."""
    for columns in known:
        needed = {columns.question, *_as_list(columns.choices)}
        if needed <= row.fields.keys():
            return columns
    expected = " or ".join(
        ", ".join([each.question, *_as_list(each.choices), each.label]) for each in known
    )
    raise DataError(
        f"{name_of(path)} has the columns {', '.join(row.fields)}; expected are {expected}. Name "
        "others in `columns` (question, choices, label)."
    )


def _as_list(columns: str | list[str]) -> list[str]:
    return [columns] if isinstance(columns, str) else columns


def _choices(row: Row, columns: ChoiceColumns, format: str) -> tuple[list[str], list[str]]:
    """The choices, and what a label calls them: the names that the data gives (ARC), 1 and 2 for
    the options of Winogrande, else their numbers from 0."""
    names: Any = None
    if isinstance(columns.choices, str):
        found, where = row.value(columns.choices), columns.choices
        if isinstance(found, dict):
            found, names = found.get("text"), found.get("label")
        found = found if isinstance(found, list) else []
    else:
        found, where = [row.text(column) for column in columns.choices], columns.choices[0]
        names = ["1", "2"] if format == "winogrande" else None
    if len(found) < 2 or not all(isinstance(each, str) and each.strip() for each in found):
        raise row.wrong(where, "two or more choices, each a text")
    return found, [str(name) for name in names or range(len(found))]


def _target(row: Row, column: str, names: Sequence[str]) -> int:
    """The number of the right choice."""
    value = row.value(column)
    if isinstance(value, bool) or str(value).strip() not in names:
        raise row.wrong(column, f"the right choice, one of {', '.join(names)}")
    return names.index(str(value).strip())


def _is_right(scores: Float[np.ndarray, " P"], target: int | None) -> float:
    """1 where the highest score is the target's, or 0; NaN where a score is not finite."""
    return float(scores.argmax() == target) if np.isfinite(scores).all() else math.nan


def _cleaned(text: str) -> str:
    """A text of HellaSwag without the marks of WikiHow, as lm-eval cleans it."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")
