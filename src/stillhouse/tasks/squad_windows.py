"""Passages longer than a sequence: windows over them, and the best answer of all windows.

Source: Devlin et al. 2019 (arXiv:1810.04805), section 4.2 and the procedure published with it:
windows that overlap, each token of the passage asked in the window that shows most around it, the
best starts with the best ends, and answers of a limited length.

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
    """A question and a stretch of its passage, as one sequence without padding.

    `characters` are the begin and end of each token in the passage, where `in_passage`. `asked` are
    the tokens of the passage that no other window shows with more context. The first window of a
    question that was too long `is_cut`.
    """

    input_ids: Int[np.ndarray, " T"]
    token_type_ids: Int[np.ndarray, " T"]
    characters: Int[np.ndarray, "T 2"]
    in_passage: Bool[np.ndarray, " T"]
    asked: Bool[np.ndarray, " T"]
    is_cut: bool = False

    def place_of(self, answer: Answer) -> tuple[int, int] | None:
        """The first and the last token of an answer; None where it is not whole in this window."""
        text = answer.text.strip()
        first = answer.start + answer.text.index(text)
        starts = self._tokens_at(first)
        ends = self._tokens_at(first + len(text) - 1)
        return (int(starts[0]), int(ends[-1])) if len(starts) and len(ends) else None

    def _tokens_at(self, character: int) -> Int[np.ndarray, " K"]:
        begin, end = self.characters.T
        return np.flatnonzero(self.in_passage & (begin <= character) & (character < end))


@dataclass(frozen=True)
class Found:
    """A stretch of the passage as an answer; the score is the sum of its two logits."""

    text: str
    start: int
    score: float


def windows_of(
    question: Question, tokenizer: PreTrainedTokenizerFast, recipe: QuestionAnsweringTask
) -> list[Window]:
    """Windows that show every token of the passage; a question that is too long loses its end.

    Raises:
        RecipeError: the question leaves no room for the passage.
    """
    separate_pairs(tokenizer)
    for part in (question.question, question.context):
        check_whole_characters(part, "The question or its context")
    text = _shortened(question.question, tokenizer, recipe.question_length)
    asked = len(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])
    room = recipe.length - asked - tokenizer.num_special_tokens_to_add(pair=True)
    if room < 1:
        raise RecipeError(
            f"The task's length of {recipe.length} tokens holds no passage beside a question of "
            f"{asked} tokens ({question.question!r:.60}). Raise length, or lower question_length."
        )
    step = min(recipe.step, room)  # a longer one would leave tokens out
    encodings = tokenizer(
        text,
        question.context,
        max_length=recipe.length,
        truncation="only_second",
        stride=room - step,
        return_overflowing_tokens=True,
        return_token_type_ids=True,
        split_special_tokens=True,
    ).encodings
    assert encodings is not None
    passages = [np.array([part == 1 for part in each.sequence_ids]) for each in encodings]
    most = _with_most_context([int(passage.sum()) for passage in passages], step)
    first, *others = [
        _window(encoding, passage, shown)
        for encoding, passage, shown in zip(encodings, passages, most, strict=True)
    ]
    return [replace(first, is_cut=text != question.question), *others]


def best_answers(
    context: str,
    windows: Sequence[Window],
    starts: Sequence[Float[np.ndarray, " _"]],
    ends: Sequence[Float[np.ndarray, " _"]],
    recipe: QuestionAnsweringTask,
) -> list[Found]:
    """The answers of one question, the best first, each text once; none where no window has one.

    Args:
        starts: For each window the logit of beginning at each of its tokens.
        ends: The same for ending there.
    """
    found: dict[str, Found] = {}
    for window, start, end in zip(windows, starts, ends, strict=True):
        for first in _highest(np.where(window.asked, start, -np.inf), recipe.n_best):
            for last in _highest(np.where(window.in_passage, end, -np.inf), recipe.n_best):
                if first <= last < first + recipe.longest_answer:
                    begin, stop = int(window.characters[first, 0]), int(window.characters[last, 1])
                    each = Found(context[begin:stop], begin, float(start[first] + end[last]))
                    if each.text not in found or found[each.text].score < each.score:
                        found[each.text] = each
    best = sorted(found.values(), key=lambda each: (-each.score, each.start, each.text))
    return best[: recipe.n_best]


def _shortened(text: str, tokenizer: PreTrainedTokenizerFast, length: int) -> str:
    encoding = tokenizer(
        text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
    )
    ends = [end for _, end in encoding["offset_mapping"]]
    return text if len(ends) <= length else text[: ends[length - 1]]


def _with_most_context(sizes: Sequence[int], step: int) -> list[Bool[np.ndarray, " _"]]:
    """For each window, which of its passage's tokens it shows with more context than the others.

    Context is the smaller number of tokens at either side, and a hundredth of the window's size;
    of equal windows the first one has the token.
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
    encoding: Encoding, passage: Bool[np.ndarray, " T"], shown: Bool[np.ndarray, " N"]
) -> Window:
    asked = np.zeros_like(passage)
    asked[passage] = shown
    ids, types, characters = (
        np.array(values, dtype=np.int64)
        for values in (encoding.ids, encoding.type_ids, encoding.offsets)
    )
    return Window(ids, types, characters, passage, asked)


def _highest(values: Float[np.ndarray, " T"], number: int) -> Iterator[int]:
    """The places of the highest values that are finite, the highest first."""
    for place in np.argsort(-values, kind="stable")[:number]:
        if np.isfinite(values[place]):
            yield int(place)
