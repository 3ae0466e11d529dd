"""Windows cover every token of a context, and the best answer is found across them."""

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from stillhouse.errors import RecipeError
from stillhouse.tasks.question_answering import best_answers, encode_question
from stillhouse.tasks.settings import QuestionAnsweringTask
from stillhouse.tasks.squad import Answer, Question

LAYOUT = QuestionAnsweringTask(
    max_length=20, doc_stride=4, max_question_length=6, n_best=5, max_answer_length=3
)


@pytest.fixture(scope="module")
def tokenizer():
    """A word is a token; a pair is [CLS] question [SEP] context [SEP]."""
    names = ["[UNK]", "[CLS]", "[SEP]", "who", *(f"w{number}" for number in range(200))]
    backend = Tokenizer(models.WordLevel({name: n for n, name in enumerate(names)}, "[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    backend.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")


def asked(num_words: int, *, question: str = "who w1 w2") -> Question:
    context = "  ".join(f"w{number}" for number in range(num_words))
    return Question("q", question, context, ())


def windows_of(question: Question, tokenizer, layout: QuestionAnsweringTask):
    return [each.source for each in encode_question(question, tokenizer, layout)]


def words(context: str, window, mask) -> list[str]:
    return [context[begin:end] for begin, end in window.characters[mask]]


@pytest.mark.parametrize("num_words", [1, 13, 14, 15, 17, 18, 19, 50, 131])
@pytest.mark.parametrize("step", [1, 4, 14, 100])
def test_windows_cover_every_word_once_in_order(tokenizer, num_words, step):
    """Whatever the step; one that is longer than the room would leave words out, and does not."""
    question = asked(num_words)
    layout = QuestionAnsweringTask(max_length=20, doc_stride=step, max_question_length=6)
    windows = windows_of(question, tokenizer, layout)
    everything = question.context.split()
    once = sorted(
        int(w[1:]) for each in windows for w in words(question.context, each, each.has_max_context)
    )
    assert once == list(range(num_words))
    for number, window in enumerate(windows):
        shown = words(question.context, window, window.in_context)
        begin = number * min(step, 14)
        assert shown == everything[begin : begin + 14]
        assert len(window.in_context) <= 20
        assert not (window.has_max_context & ~window.in_context).any()


def test_word_counts_in_the_window_with_max_context(tokenizer):
    """Of windows of 14 words, 4 apart: word 10 has 3 words after it in the first, 6 before it in
    the second, and in the third 2 before it."""
    windows = windows_of(asked(40), tokenizer, LAYOUT)
    owner = [
        next(
            n
            for n, each in enumerate(windows)
            if f"w{word}" in words(asked(40).context, each, each.has_max_context)
        )
        for word in range(40)
    ]
    assert owner[:16] == [0] * 9 + [1] * 4 + [2] * 3
    assert owner[-3:] == [len(windows) - 1] * 3


def test_windows_equal_the_tokenizer_s_sequences(tokenizer):
    """Question and context have different types; a long question is truncated."""
    long = asked(2, question="who w1 w2 w3 w4 w5 w6 w7")
    (sequence,) = encode_question(long, tokenizer, LAYOUT)
    said = tokenizer.convert_ids_to_tokens(sequence.input_ids)
    assert said == ["[CLS]", "who", "w1", "w2", "w3", "w4", "w5", "[SEP]", "w0", "w1", "[SEP]"]
    assert sequence.token_type_ids.tolist() == [0] * 8 + [1] * 3
    assert sequence.source.in_context.tolist() == [False] * 8 + [True, True, False]
    five = asked(2, question="who w1 w2 w3 w4")
    with pytest.raises(
        RecipeError, match=r"8 tokens has no room for context beside .* of 5 tokens"
    ):
        windows_of(five, tokenizer, QuestionAnsweringTask(max_length=8))


def test_answer_position_only_where_it_is_whole(tokenizer):
    """White space around it is no part; in a window that shows half of it, it is not."""
    question = asked(40)
    windows = windows_of(question, tokenizer, LAYOUT)
    start = question.context.index("w12")
    answer = Answer("w12  w13  w14 ", start)
    places = [window.place_of(answer) for window in windows]
    assert places[0] is None
    for window, place in zip(windows[1:4], places[1:4], strict=True):
        assert place is not None
        span = window.characters[place[0], 0], window.characters[place[1], 1]
        assert question.context[slice(*span)] == "w12  w13  w14"
    assert places[4] is None


def logits(windows, context, **values: float) -> list[np.ndarray]:
    """Zero, but for the words that are named, wherever they are shown."""
    found = []
    for window in windows:
        each = np.zeros(len(window.in_context))
        for place in np.flatnonzero(window.in_context):
            begin, end = window.characters[place]
            each[place] = values.get(context[begin:end], 0.0)
        found.append(each)
    return found


def test_the_best_start_and_end_are_found_across_windows(tokenizer):
    """Also at the end of the context; the score is the sum of both logits."""
    question = asked(40)
    windows = windows_of(question, tokenizer, LAYOUT)
    starts = logits(windows, question.context, w30=5.0, w3=4.0)
    ends = logits(windows, question.context, w31=3.0, w3=2.0)
    best, second, *_ = best_answers(question.context, windows, starts, ends, LAYOUT)
    assert (best.text, best.score) == ("w30  w31", 8.0)
    assert best.start == question.context.index("w30")
    assert (second.text, second.score) == ("w3", 6.0)


def test_answer_span_is_ordered_and_bounded(tokenizer):
    """Three words are the limit here; an end before the start is ignored."""
    question = asked(40)
    windows = windows_of(question, tokenizer, LAYOUT)
    starts = logits(windows, question.context, w20=9.0)
    for last, expected in ((22, "w20  w21  w22"), (23, None), (19, None)):
        ends = logits(windows, question.context, **{f"w{last}": 9.0})
        best = best_answers(question.context, windows, starts, ends, LAYOUT)[0]
        assert (best.text if best.score == 18.0 else None) == expected


def test_start_counts_only_with_max_context(tokenizer):
    """Starts at the edge of a window are ignored, however high their logits."""
    question = asked(40)
    windows = windows_of(question, tokenizer, LAYOUT)
    starts = logits(windows, question.context)
    edge = np.flatnonzero(windows[0].in_context & ~windows[0].has_max_context)[-1]
    starts[0][edge] = 99.0
    found = best_answers(
        question.context, windows, starts, logits(windows, question.context), LAYOUT
    )
    assert max(each.score for each in found) == 0.0


def test_special_tokens_and_the_question_are_never_answers(tokenizer):
    """Even where their logits are highest, answers come from the context; each text once."""
    question = asked(3)
    (window,) = windows_of(question, tokenizer, LAYOUT)
    high = np.where(window.in_context, 0.0, 50.0)
    found = best_answers(question.context, [window], [high], [high], LAYOUT)
    assert {each.text for each in found} <= {"w0", "w0  w1", "w0  w1  w2", "w1", "w1  w2", "w2"}
    assert len({each.text for each in found}) == len(found) == LAYOUT.n_best
