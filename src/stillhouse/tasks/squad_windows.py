"""Overlapping windows over long contexts, and the best answer of all windows.

Source: Devlin et al. 2019 (arXiv:1810.04805), section 4.2 and the procedure published with it:
windows overlap, each token of the context counts in the window with the most context around it, the
best starts are paired with the best ends, and answers have a limited length.

Axes: T tokens of a window.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int
from tokenizers import Encoding
from transformers import PreTrainedTokenizerFast

from stillhouse.data.text import check_whole_characters
from stillhouse.errors import RecipeError
from stillhouse.tasks.settings import QuestionAnsweringTask
from stillhouse.tasks.squad import Answer, Question
from stillhouse.tasks.texts import separate_pairs


@dataclass(frozen=True)
class Window:
    """A question and a span of its context, as one unpadded sequence.

    Attributes:
        characters: The start and end of each token in the context.
        in_context: Which tokens belong to the context.
        has_max_context: The tokens with more context here than in any other window.
        is_truncated: Whether the question was too long, in its first window.
    """

    input_ids: Int[np.ndarray, " T"]
    token_type_ids: Int[np.ndarray, " T"]
    characters: Int[np.ndarray, "T 2"]
    in_context: Bool[np.ndarray, " T"]
    has_max_context: Bool[np.ndarray, " T"]
    is_truncated: bool = False

    def place_of(self, answer: Answer) -> tuple[int, int] | None:
        """The first and last token of an answer; None unless it is whole in this window."""
        text = answer.text.strip()
        first = answer.start + answer.text.index(text)
        starts = self._tokens_at(first)
        ends = self._tokens_at(first + len(text) - 1)
        return (int(starts[0]), int(ends[-1])) if len(starts) and len(ends) else None

    def _tokens_at(self, character: int) -> Int[np.ndarray, " K"]:
        begin, end = self.characters.T
        return np.flatnonzero(self.in_context & (begin <= character) & (character < end))


@dataclass(frozen=True)
class AnswerSpan:
    """A span of the context as an answer; the score is the sum of its two logits."""

    text: str
    start: int
    score: float


def windows_of(
    question: Question, tokenizer: PreTrainedTokenizerFast, recipe: QuestionAnsweringTask
) -> list[Window]:
    """Windows that cover the context; a question that is too long is truncated.

    Raises:
        RecipeError: the question leaves no room for the context.
    """
    separate_pairs(tokenizer)
    for part in (question.question, question.context):
        check_whole_characters(part, "The question or its context")
    text = _truncated(question.question, tokenizer, recipe.max_question_length)
    num_tokens = len(
        tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    )
    room = recipe.max_length - num_tokens - tokenizer.num_special_tokens_to_add(pair=True)
    if room < 1:
        raise RecipeError(
            f"The task's max_length of {recipe.max_length} tokens has no room for context beside a "
            f"question of {num_tokens} tokens ({question.question!r:.60}). Raise max_length, or "
            "lower max_question_length."
        )
    step = min(recipe.doc_stride, room)  # a longer one would skip tokens
    encodings = tokenizer(
        text,
        question.context,
        max_length=recipe.max_length,
        truncation="only_second",
        stride=room - step,
        return_overflowing_tokens=True,
        return_token_type_ids=True,
        split_special_tokens=True,
    ).encodings
    assert encodings is not None
    contexts = [np.array([part == 1 for part in each.sequence_ids]) for each in encodings]
    owned = _with_max_context([int(context.sum()) for context in contexts], step)
    first, *others = [
        _window(encoding, context, mask)
        for encoding, context, mask in zip(encodings, contexts, owned, strict=True)
    ]
    return [replace(first, is_truncated=text != question.question), *others]


def best_answers(
    context: str,
    windows: Sequence[Window],
    starts: Sequence[Float[np.ndarray, " _"]],
    ends: Sequence[Float[np.ndarray, " _"]],
    recipe: QuestionAnsweringTask,
) -> list[AnswerSpan]:
    """The answers to one question, best first, each text once; none where no window has one.

    Args:
        starts: For each window the logit of each token as the start.
        ends: The same for the end.
    """
    found: dict[str, AnswerSpan] = {}
    for window, start, end in zip(windows, starts, ends, strict=True):
        for first in _highest(np.where(window.has_max_context, start, -np.inf), recipe.n_best):
            for last in _highest(np.where(window.in_context, end, -np.inf), recipe.n_best):
                if first <= last < first + recipe.max_answer_length:
                    begin, stop = int(window.characters[first, 0]), int(window.characters[last, 1])
                    each = AnswerSpan(context[begin:stop], begin, float(start[first] + end[last]))
                    if each.text not in found or found[each.text].score < each.score:
                        found[each.text] = each
    best = sorted(found.values(), key=lambda each: (-each.score, each.start, each.text))
    return best[: recipe.n_best]


def _truncated(text: str, tokenizer: PreTrainedTokenizerFast, length: int) -> str:
    encoding = tokenizer(
        text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
    )
    ends = [end for _, end in encoding["offset_mapping"]]
    return text if len(ends) <= length else text[: ends[length - 1]]


def _with_max_context(sizes: Sequence[int], step: int) -> list[Bool[np.ndarray, " _"]]:
    """For each window, which tokens of its context have more context here than in other windows.

    Context is the smaller number of tokens on either side plus a hundredth of the window's size;
    ties go to the first window.
    """
    total = (len(sizes) - 1) * step + sizes[-1]
    best, owner = np.full(total, -1.0), np.zeros(total, dtype=np.int64)
    for number, size in enumerate(sizes):
        places = np.arange(size)
        context = np.minimum(places, size - 1 - places) + 0.01 * size
        span = slice(number * step, number * step + size)
        more = context > best[span]
        best[span] = np.where(more, context, best[span])
        owner[span] = np.where(more, number, owner[span])
    return [
        owner[number * step : number * step + size] == number for number, size in enumerate(sizes)
    ]


def _window(
    encoding: Encoding, in_context: Bool[np.ndarray, " T"], owned: Bool[np.ndarray, " N"]
) -> Window:
    has_max_context = np.zeros_like(in_context)
    has_max_context[in_context] = owned
    ids, types, characters = (
        np.array(values, dtype=np.int64)
        for values in (encoding.ids, encoding.type_ids, encoding.offsets)
    )
    return Window(ids, types, characters, in_context, has_max_context)


def _highest(values: Float[np.ndarray, " T"], number: int) -> Iterator[int]:
    """The indices of the highest finite values, highest first."""
    for place in np.argsort(-values, kind="stable")[:number]:
        if np.isfinite(values[place]):
            yield int(place)
