"""SQuAD: files are read whole or refused with their place, and scored by the official rules."""

import gzip
import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from stillhouse.errors import DataError
from stillhouse.tasks.squad import normalized, read_squad, samples_of_answers, score_each

CONTEXT = "The Rhine rises in the Alps. It flows north, past Basel, to the sea."


def write(folder: Path, *answers: tuple[str, int], **changes: object) -> Path:
    entry = {
        "id": "q1",
        "question": "Where does it rise?",
        "answers": [{"text": text, "answer_start": start} for text, start in answers],
    }
    paragraph = {"context": CONTEXT, "qas": [entry | changes]}
    path = folder / "squad.json"
    path.write_text(json.dumps({"data": [{"title": "Rhine", "paragraphs": [paragraph]}]}))
    return path


def test_questions_are_read_with_context_and_answers(tmp_path):
    """Also from a compressed file."""
    path = write(tmp_path, ("the Alps", 19), ("Alps", 23))
    packed = tmp_path / "squad.json.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    for each in (path, packed):
        (question,) = read_squad(each)
        assert (question.id, question.context) == ("q1", CONTEXT)
        assert [(a.text, a.start) for a in question.answers] == [("the Alps", 19), ("Alps", 23)]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (("the Alps", 18), "is not at character 18 of the context; it is at 19"),
        (("Cologne", 3), "'Cologne' is not at character 3 of the context; it does not occur"),
        (("sea.", -4), "is not at character -4"),
        (("", 3), "an answer is '', which is blank. Leave the answer out"),
        ((" ", 3), "an answer is ' ', which is blank"),
        (("h", True), "'answer_start' is true or false; it must be a whole number"),
    ],
)
def test_misplaced_answer_is_refused(tmp_path, answer, message):
    """With file, article, paragraph and question."""
    path = write(tmp_path, answer)
    with pytest.raises(DataError, match=message) as error:
        read_squad(path)
    assert str(error.value).startswith(f"{path}, Rhine, paragraph 1, question q1:")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"\xff", "row 1 is not UTF-8"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "'data' is missing; it must be a list"),
        (b'{"data": []}', "holds no question"),
        (
            b'{"data": [{"title": "T", "paragraphs": {}}]}',
            "'paragraphs' is an object; it must be a list",
        ),
        (b'{"data": [{"title": "T", "paragraphs": [{}]}]}', "T, paragraph 1: 'context' is missing"),
    ],
)
def test_invalid_squad_format_is_refused(tmp_path, content, message):
    """The message has the file, the place and the mistake."""
    path = tmp_path / "other.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        read_squad(path)
    assert str(path) in str(error.value)


def test_questions_without_an_answer_are_read(tmp_path):
    """By `is_impossible`, as SQuAD 2.0 has it, or by an empty list, as the hub does."""
    for path in (write(tmp_path, is_impossible=True), write(tmp_path)):
        (question,) = read_squad(path)
        assert question.is_impossible
        assert question.is_labeled
        assert question.answers == ()
    rows = tmp_path / "rows.jsonl"
    empty = {"text": [], "answer_start": []}
    rows.write_text(json.dumps({"id": "q", "question": "?", "context": CONTEXT, "answers": empty}))
    assert read_squad(rows)[0].is_impossible
    (question,) = read_squad(write(tmp_path, ("Alps", 23), is_impossible=False))
    assert not question.is_impossible


def test_answers_that_contradict_is_impossible_are_refused(tmp_path):
    """Either may be the mistake."""
    with pytest.raises(DataError, match="question q1: is_impossible is true, but it has 1 answers"):
        read_squad(write(tmp_path, ("Alps", 23), is_impossible=True))
    with pytest.raises(DataError, match="is_impossible is false, but it has 0 answers"):
        read_squad(write(tmp_path, is_impossible=False))


def test_duplicate_question_ids_are_refused(tmp_path):
    """They could not be scored."""
    path = write(tmp_path, ("Alps", 23))
    content = json.loads(path.read_text())
    content["data"] *= 2
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="the question id 'q1' comes twice"):
        read_squad(path)


@pytest.mark.parametrize(
    ("prediction", "references", "exact", "f1"),
    [
        ("The Alps!", ["alps"], 1, 1),
        ("in the Alps", ["the Alps", "Basel"], 0, 2 / 3),
        ("Basel", ["Alps", "past Basel", "Basel, Basel"], 0, 2 / 3),
        ("a a theatre", ["theatre"], 1, 1),
        ("the", ["a"], 1, 0),  # nothing is left of either: equal, but they share no word
        ("north north", ["north"], 0, 2 / 3),
        ("", ["north"], 0, 0),
    ],
)
def test_answer_is_scored_by_its_best_reference(prediction, references, exact, f1):
    """In lower case, without punctuation and articles, words counted."""
    found = score_each({"q": prediction}, {"q": references})["q"]
    assert (found.exact_match, found.f1) == (exact, pytest.approx(f1))


def score(predictions, references):
    samples = samples_of_answers(predictions, references)
    return {name: each.value for name, each in samples.items()}


def test_missing_predictions_count_as_wrong_and_others_are_ignored():
    """A missing prediction is wrong, one for another question is nothing."""
    found = score({"q1": "Alps", "other": "x"}, {"q1": ["alps"], "q2": ["sea"]})
    assert found == {"exact_match": 50.0, "f1": 50.0}
    with pytest.raises(DataError, match="nothing to score"):
        score({"q1": "Alps"}, {})
    with pytest.raises(DataError, match="'q1' has no reference"):
        score({"q1": "Alps"}, {"q1": []})


def test_punctuation_is_removed_before_articles():
    """So that "a-b" is one word, and "(the)" none."""
    assert normalized("A-b (the)  U.S. an") == "ab us"


def independent(prediction: str, references: Sequence[str]) -> tuple[float, float]:
    """The same rules, written from their description by other means."""

    def words(text: str) -> list[str]:
        kept = "".join(
            c
            for c in text.lower()
            if not (c.isascii() and c.isprintable()) or c == " " or c.isalnum()
        )
        return [word for word in re.split(r"\s+", re.sub(r"\b(?:a|an|the)\b", " ", kept)) if word]

    def overlap(said: list[str], right: list[str]) -> float:
        left, shared = list(right), 0
        for word in said:
            if word in left:
                left.remove(word)
                shared += 1
        if not shared:
            return 0.0
        precision, recall = shared / len(said), shared / len(right)
        return 2 * precision * recall / (precision + recall)

    said = words(prediction)
    exact = any(said == words(text) for text in references)
    return float(exact), max(overlap(said, words(text)) for text in references)


@pytest.mark.e2e
@pytest.mark.parametrize("system", ["bert_ensemble", "logreg_baseline"])
def test_published_predictions_get_their_published_scores(shared_data, system):
    """Two systems' answers to the 4,958 questions of 24 articles, question by question."""
    folder = shared_data / "squad"
    questions = read_squad(folder / "dev-v1.1.json.gz")
    references = {q.id: [answer.text for answer in q.answers] for q in questions}
    with gzip.open(folder / f"dev-predictions-{system}.json.gz") as file:
        predictions = json.load(file)
    assert len(references) == 4_958
    for name, found in score_each(predictions, references).items():
        expected = (
            independent(predictions[name], references[name]) if name in predictions else (0, 0)
        )
        assert (found.exact_match, found.f1) == pytest.approx(expected, abs=1e-12), name
    published = {"bert_ensemble": (85.821, 92.056), "logreg_baseline": (40.077, 51.339)}
    found = score(predictions, references)
    assert (found["exact_match"], found["f1"]) == pytest.approx(published[system], abs=1e-3)
