"""SQuAD 2.0: its scores and thresholds against the published rules, written here by other means."""

import string
from collections import Counter

import numpy as np
import pytest

from stillhouse.tasks.question_answering import AnswerSpan, QuestionAnswering
from stillhouse.tasks.settings import QuestionAnsweringTask
from stillhouse.tasks.squad import (
    Answer,
    BestAnswers,
    Question,
    best_null_threshold,
    samples_with_no_answers,
)

WORDS = ["the", "sea", "old", "house", "Islay", "a", "1842", "wind!"]


def normal(text):
    kept = "".join(each for each in text.lower() if each not in string.punctuation)
    return " ".join(word for word in kept.split() if word not in ("a", "an", "the"))


def reference_scores(texts, references):
    """Exact and F1 of each question: against [""] where nothing is right; where one side is empty,
    whether both are."""
    exact, f1 = [], []
    for text, right in zip(texts, references, strict=True):
        gold = [each for each in right if normal(each)] or [""]
        exact.append(max(float(normal(each) == normal(text)) for each in gold))
        best = 0.0
        for each in gold:
            ours, theirs = normal(text).split(), normal(each).split()
            if not ours or not theirs:
                best = max(best, float(ours == theirs))
                continue
            same = sum((Counter(ours) & Counter(theirs)).values())
            if same:
                precision, recall = same / len(ours), same / len(theirs)
                best = max(best, 2 * precision * recall / (precision + recall))
        f1.append(best)
    return exact, f1


def reference_best(texts, differences, references, scores):
    """Every threshold tried: all questions up to it keep their answer, the others have none."""
    best, chosen = sum(not right for right in references), None
    for threshold in sorted(differences):
        total = 0.0
        for text, difference, right, score in zip(
            texts, differences, references, scores, strict=True
        ):
            given = text if difference <= threshold else ""
            total += (score if difference <= threshold else 0.0) if right else float(not given)
        if total > best + 1e-12:
            best, chosen = total, threshold
    return 100 * best / len(texts), chosen


@pytest.mark.parametrize("seed", range(6))
def test_squad_2_scores_equal_published_rules(seed):
    """Random answers, some of them empty, to questions of which half have none."""
    draw = np.random.default_rng(seed)

    def text(most):
        return " ".join(draw.choice(WORDS, draw.integers(0, most + 1)))

    references = [
        [text(3) or "sea" for _ in range(draw.integers(1, 4))] if draw.random() < 0.5 else []
        for _ in range(60)
    ]
    texts = [right[0] if right and draw.random() < 0.5 else text(3) for right in references]
    differences = draw.normal(0, 3, 60) - 2 * np.array([bool(right) for right in references])
    answered = BestAnswers(texts, differences)
    threshold = 0.5
    found = {
        name: each.value
        for name, each in samples_with_no_answers(answered, references, threshold).items()
    }
    final = ["" if d > threshold else t for t, d in zip(texts, differences, strict=True)]
    exact, f1 = (np.array(each) for each in reference_scores(final, references))
    has = np.array([bool(right) for right in references])
    assert found["exact_match"] == pytest.approx(100 * exact.mean())
    assert found["f1"] == pytest.approx(100 * f1.mean())
    assert found["HasAns_exact"] == pytest.approx(100 * exact[has].mean())
    assert found["HasAns_f1"] == pytest.approx(100 * f1[has].mean())
    assert found["NoAns_exact"] == pytest.approx(100 * exact[~has].mean())
    assert found["NoAns_f1"] == pytest.approx(100 * f1[~has].mean())
    for name, scores in zip(("exact", "f1"), reference_scores(texts, references), strict=True):
        best, chosen = reference_best(texts, differences, references, scores)
        assert found[f"best_{name}"] == pytest.approx(best)
        assert chosen is not None
        assert found[f"best_{name}_thresh"] == pytest.approx(chosen)


def test_best_threshold_without_answerable_questions():
    """Below every difference."""
    answered = BestAnswers(["sea", "old"], np.array([-1.0, 2.0]))
    threshold = best_null_threshold(answered, [[], []], "f1")
    assert answered.at(threshold) == ["", ""]


def asked(threshold):
    return QuestionAnswering(QuestionAnsweringTask(null_score_diff_threshold=threshold))


@pytest.mark.parametrize(("threshold", "answer"), [(None, "sea"), (0.0, ""), (5.0, "sea")])
def test_null_threshold_gives_empty_answers(threshold, answer):
    """As transformers' pipeline does with `handle_impossible_answer`; without one it never does."""
    found = [AnswerSpan("sea", 4, 3.0), AnswerSpan("old", 8, 1.0), AnswerSpan("", 0, 6.0)]
    result = asked(threshold).result(found)
    assert result["answer"] == answer
    assert result["end"] - result["start"] == len(answer)
    assert 0 < result["score"] < 1
    questions = [
        Question("1", "?", "the sea", (Answer("sea", 4),)),
        Question("2", "?", "x", (), True),
    ]
    measures = asked(threshold).metric_samples([found, found], questions)
    given = answer if threshold is not None else ""  # without one, 0
    assert measures["HasAns_exact"].value == (100.0 if given else 0.0)
    assert measures["NoAns_exact"].value == (0.0 if given else 100.0)


def test_answers_and_questions_are_as_many():
    """A question without an answer is a mistake of ours, and not left out."""
    with pytest.raises(ValueError, match=r"zip\(\) argument 2 is longer"):
        samples_with_no_answers(BestAnswers(["sea"], np.zeros(1)), [["sea"], ["house"]], 0.0)
