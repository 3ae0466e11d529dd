"""Question answering: where an answer can be, and its score."""

import json

import numpy as np
import pytest
import torch
from transformers.pipelines.document_question_answering import select_starts_ends

from stillhouse.models.task_models import load_task_model
from stillhouse.tasks.encoded import collate
from stillhouse.tasks.question_answering import FAR_BELOW, QuestionAnswering
from stillhouse.tasks.registry import make_task
from stillhouse.tasks.settings import QuestionAnsweringTask
from stillhouse.tasks.squad import Answer, Question
from stillhouse.tokens.tokenizer import load_tokenizer

PASSAGE = "The distiller of Islay turns the still in the old house by the sea. "
QUESTION = "Who turns the still?"


def asked(passage: str, answer: str) -> Question:
    return Question("q", QUESTION, passage, (Answer(answer, passage.index(answer)),))


def oracle(task, question, tokenizer):
    """The answer from logits that say what the targets say."""
    (sequences,) = task.encode([question], tokenizer)
    outputs = []
    for sequence in sequences:
        logits = torch.zeros(2, len(sequence.input_ids) + 3)  # with some padding
        logits[[0, 1], torch.from_numpy(sequence.target)] = 9.0
        outputs.append(logits)
    return sequences, task.predict(question, sequences, outputs)


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2"])
def test_training_target_is_predicted_as_the_answer(tokenizer_of, family):
    """An answer in a late window is recovered to the character."""
    question = asked(PASSAGE * 4 + "Nobody knew of London. " + PASSAGE * 2, "of London")
    task = make_task(QuestionAnsweringTask(max_length=56, doc_stride=9, max_question_length=24))
    sequences, found = oracle(task, question, tokenizer_of(family))
    assert len(sequences) > 3
    shown = [each for each in sequences if each.target is not None and each.target.any()]
    assert 0 < len(shown) < len(sequences)
    assert found[0].text == "of London"
    assert found[0].start == question.answers[0].start
    measures = task.metric_samples([found], [question])
    assert measures["exact_match"].value == measures["f1"].value == 100.0


def test_answer_span_lies_in_the_context(task_folder):
    """No probability for the question or the padding; some for the first token, which says that
    the window does not show it."""
    task = make_task(QuestionAnsweringTask(max_length=56, max_question_length=24))
    folder = task_folder("bert", task.head, **task.model_settings)
    tokenizer = load_tokenizer(folder)
    (short,), (long,) = task.encode([asked("The sea.", "sea"), asked(PASSAGE, "Islay")], tokenizer)
    batch = collate([short, long], pad_token_id=0)
    with torch.no_grad():
        shares = task.outputs(load_task_model(folder, task.head, {}), batch).softmax(-1)
    separator = short.input_ids.tolist().index(tokenizer.sep_token_id)
    length = len(short.input_ids)
    assert (shares[0, :, 1 : separator + 1] == 0).all()
    assert (shares[0, :, length - 1 :] == 0).all()
    assert (shares[0, :, 0] > 0).all()
    assert (shares[0, :, separator + 1 : length - 1] > 0).all()
    assert -np.finfo(np.float32).max < FAR_BELOW / 0.01


def test_answer_score_is_its_softmax_among_the_best(tokenizer_of):
    """Between 0 and 1; a context without candidates has no answer."""
    task = make_task(QuestionAnsweringTask(max_length=56, max_question_length=24))
    _, found = oracle(task, asked(PASSAGE, "Islay"), tokenizer_of("bert"))
    result = task.result(found)
    assert result["answer"] == "Islay"
    assert PASSAGE[result["start"] : result["end"]] == "Islay"
    assert 0.9 < result["score"] < 1
    assert task.result(found[-1:]) == {"score": 0.0, "start": 0, "end": 0, "answer": ""}


def test_questions_without_answers_are_read_from_json_lines(tmp_path, tokenizer_of):
    """For a model that is to answer them."""
    path = tmp_path / "questions.jsonl"
    rows = [{"question": QUESTION, "context": PASSAGE}, {"question": "Where?", "context": "Here."}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = make_task(QuestionAnsweringTask())
    questions = task.read(path, labeled=False)
    assert [each.question for each in questions] == [QUESTION, "Where?"]
    assert [each.context for each in questions] == [PASSAGE, "Here."]
    (sequences,) = task.encode(questions[1:], tokenizer_of("bert"))
    assert not sequences[0].is_labeled


@pytest.mark.parametrize("handle_impossible_answer", [False, True])
def test_handle_impossible_answer_equals_transformers(tokenizer_of, handle_impossible_answer):
    """The best stretch; with the parameter, empty where transformers ranks that first."""
    longest = 6
    task = QuestionAnswering(
        QuestionAnsweringTask(max_length=64, n_best=64, max_answer_length=longest)
    )
    question, draw = asked(PASSAGE, "Islay"), np.random.default_rng(0)
    ((sequence,),) = task.encode([question], tokenizer_of("bert"))
    window = sequence.source
    answers = []
    for _ in range(40):
        logits = draw.normal(size=(2, len(window.in_context))).astype(np.float32)
        logits[:, 0] += 1
        outside = ~window.in_context
        outside[0] = False  # the first token stands for no answer
        masked = np.where(outside, FAR_BELOW, logits).astype(np.float32)
        found = task.answer(
            task.predict(question, [sequence], [torch.from_numpy(masked)]),
            handle_impossible_answer=handle_impossible_answer,
        )
        (first,), (last,), (score,), null = select_starts_ends(
            logits[:1].copy(), logits[1:].copy(), outside[None].astype(int),
            np.ones((1, len(outside)), int),
            handle_impossible_answer=handle_impossible_answer, max_answer_len=longest,
        )  # fmt: skip
        begin, end = window.characters[first, 0], window.characters[last, 1]
        if handle_impossible_answer and null > score:
            begin = end = 0
        assert (found["start"], found["end"], found["answer"]) == (begin, end, PASSAGE[begin:end])
        assert 0 < found["score"] <= 1
        answers.append(found["answer"])
    assert ("" in answers) == handle_impossible_answer
    assert any(answers)
