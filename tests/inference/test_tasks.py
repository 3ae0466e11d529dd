"""Models with the head of a task at work: in Python, on files, and against other libraries."""

import json
import sys
from contextlib import nullcontext

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from tests.tiny_models import EVERY_FAMILY, is_causal
from transformers import pipeline

import stillhouse
from stillhouse.__main__ import _run
from stillhouse.errors import ModelError
from stillhouse.models.hub import resolve_folder
from stillhouse.tasks.registry import make_task
from stillhouse.tasks.settings import (
    ClassificationTask,
    QuestionAnsweringTask,
    RegressionTask,
    TokenClassificationTask,
)
from stillhouse.tasks.token_classification import words_in

TEXT = "The distiller of Islay turns the still in the old house by the sea."


@pytest.fixture
def call(capsys, monkeypatch):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["stillhouse", *map(str, arguments)])
        code = _run()
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def folder_for(task_folder):
    """folder_for(recipe, labels, family): a random model with the head of a task."""

    def make(recipe, labels=(), family="bert"):
        task = make_task(recipe, labels)
        return task_folder(family, task.head, **task.model_settings)

    return make


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_a_label_is_that_of_transformers_pipeline(folder_for, family):
    """For one text, and for a pair."""
    folder = folder_for(ClassificationTask(labels=["no", "yes", "maybe"]), family=family)
    ours = stillhouse.load(folder).classify(TEXT)
    theirs = pipeline("text-classification", model=str(folder))(TEXT)[0]
    assert ours["label"] == theirs["label"]
    assert ours["score"] == pytest.approx(theirs["score"], abs=1e-6)
    assert set(ours) == set(theirs)
    if not is_causal(family):  # theirs has nothing between the texts
        pair = {"text": TEXT, "text_pair": "the sea"}
        theirs = pipeline("text-classification", model=str(folder))(pair)
        ours = stillhouse.load(folder).classify(TEXT, "the sea")
        assert ours == pytest.approx(theirs, abs=1e-6)


def test_a_number_is_that_of_transformers_pipeline(folder_for):
    """The model's value as it is."""
    folder = folder_for(RegressionTask())
    ours = stillhouse.load(folder).classify(TEXT)
    theirs = pipeline("text-classification", model=str(folder))(TEXT)[0]
    assert ours == pytest.approx(theirs, abs=1e-6)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_entities_have_the_shape_of_transformers_pipeline(folder_for, family):
    """The same tag for each word's first token."""
    folder = folder_for(TokenClassificationTask(), ["O", "B-LOC", "I-LOC", "B-PER"], family)
    model = stillhouse.load(folder)
    tagger = pipeline("token-classification", model=str(folder), ignore_labels=[])
    first = {each["start"]: each["entity"] for each in tagger(TEXT)}  # pyright: ignore[reportGeneralTypeIssues]
    (found,) = model.predictions([words_in(TEXT)])
    for (start, _), tag in zip(found.words.spans, found.tags, strict=True):
        assert tag == first.get(start, first.get(start - 1))
    for entity in model.tag(TEXT):
        assert set(entity) == {"entity_group", "score", "word", "start", "end"}
        assert TEXT[entity["start"] : entity["end"]] == entity["word"]


def test_an_answer_stands_in_the_context(folder_for):
    """With the keys of transformers' pipeline."""
    folder = folder_for(QuestionAnsweringTask())
    found = stillhouse.load(folder).answer("Who turns the still?", TEXT)
    assert set(found) == {"score", "start", "end", "answer"}
    assert TEXT[found["start"] : found["end"]] == found["answer"] != ""
    assert 0 < found["score"] <= 1


def test_a_question_without_an_answer(call, folder_for, tmp_path):
    """As by transformers' pipeline an answer is empty only where that is asked for; `predict` keeps
    to the model's threshold."""
    folder = folder_for(QuestionAnsweringTask())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"null_score_diff_threshold": -100}))
    model, question = stillhouse.load(folder), "Who turns the still?"
    assert model.answer(question, TEXT)["answer"] in TEXT
    assert model.answer(question, TEXT)["answer"]
    empty = model.answer(question, TEXT, handle_impossible_answer=True)
    assert (empty["answer"], empty["start"], empty["end"]) == ("", 0, 0)
    assert 0 < empty["score"] < 1
    data, output = tmp_path / "questions.jsonl", tmp_path / "answers.jsonl"
    data.write_text(json.dumps({"question": question, "context": TEXT}) + "\n")
    code, _, err = call("predict", folder, "--input", data, "--output", output)
    assert code == 0, err
    assert json.loads(output.read_text())["answer"] == ""


@pytest.mark.filterwarnings("default")  # of libraries that sentence-transformers loads
def test_vectors_of_real_weights_are_those_of_sentence_transformers():
    """all-MiniLM-L6-v2, by the library that its authors use."""
    texts = [TEXT, "Where is the distillery?", "A cold wind " * 60]
    model = stillhouse.load("minilm")
    ours = model.embed(texts)
    assert model.embed([]).shape == (0, ours.shape[1])
    reference = SentenceTransformer(str(resolve_folder("minilm", offline=True)), device="cpu")
    np.testing.assert_allclose(ours, reference.encode(texts), atol=2e-6)
    assert ours[0] @ ours[1] > ours[0] @ ours[2]


def test_a_model_does_what_it_was_made_for_alone(folder_for):
    """And says what that is."""
    model = stillhouse.load(folder_for(RegressionTask()))
    with pytest.raises(ModelError, match=r"\(TextClassifier\); it has no 'tag'"):
        model.tag(TEXT)
    with pytest.raises(ModelError, match=r"\(TextClassifier\); it has no 'generate'"):
        model.generate(TEXT)
    with pytest.raises(ModelError, match=r"text-generation \(CausalLM\); it has no 'classify'"):
        stillhouse.load("sample").classify(TEXT)


def test_features_can_be_had_of_any_model(folder_for):
    """The last hidden states of its body."""
    model = stillhouse.load(folder_for(RegressionTask()))
    states = model.features(TEXT)
    assert states.shape == (len(model.tokenizer(TEXT)["input_ids"]), 16)


def test_predictions_of_a_file_stand_in_its_order(call, folder_for, tmp_path):
    """A line of JSON each, and what they are in Python."""
    folder = folder_for(ClassificationTask(labels=["no", "yes"]))
    source, output = tmp_path / "texts.tsv", tmp_path / "labels.jsonl"
    texts = [f"{TEXT} " * (1 + place % 3) + str(place) for place in range(40)]
    source.write_text("sentence\n" + "".join(text + "\n" for text in texts))
    arguments = ("--task", "sst2", "--set", "max_length=64", "--input", source, "--output", output)
    code, out, err = call("predict", folder, *arguments)
    assert (code, out) == (0, f"{output}: 40 predictions\n")
    assert "13 texts have more than 64 tokens; the rest was not read." in err
    found = [json.loads(line) for line in output.read_text().splitlines()]
    model = stillhouse.load(folder)
    for text, each in zip(texts, found, strict=True):
        cut = text.count(TEXT) == 3
        with pytest.warns(match="1 text has more than 64 tokens") if cut else nullcontext():
            expected = model.classify(text)
        assert each["label"] == str(["no", "yes"].index(expected["label"]))
        assert each["score"] == pytest.approx(expected["score"], abs=1e-5)
    code, _, err = call("predict", folder, *arguments)
    assert code == 2
    assert "exists, and nothing is overwritten" in err


def test_scores_come_with_their_interval(call, folder_for, tmp_path):
    """What each metric is, on how many examples, under which protocol."""
    folder = folder_for(ClassificationTask(labels=["no", "yes"]))
    data = tmp_path / "dev.tsv"
    lines = [f"{TEXT} {place}\t{place % 2}\n" for place in range(30)]
    data.write_text("sentence\tlabel\n" + "".join(lines))
    code, out, _ = call(
        "score", folder, "--task", "sst2", "--data", data, "--set", "max_length=64", "--json"
    )
    result = json.loads(out)
    assert code == 0
    assert (result["num_examples"], result["num_cut"]) == (30, 0)
    assert result["protocol"]["max_length"] == 64
    assert set(result["metrics"]) == {"accuracy", "f1", "accuracy_and_f1", "matthews"}
    assert result["positive_label"] == "1"
    found = result["metrics"]["accuracy"]
    assert found["low"] <= found["value"] <= found["high"]
    code, out, _ = call("score", folder, "--task", "sst2", "--data", data, "--set", "max_length=64")
    assert code == 0
    assert "accuracy" in out
    assert "F1 of class 1" in out
    assert f"{found['value']:.4f}" in out
    code, out, _ = call("score", folder, "--task", "sst2", "--data", data, "--set", "max_length=8")
    assert code == 0
    assert "30 texts were truncated to 8 tokens" in out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "sentence\tlabel\na\t2\n",
            "row 2: the column 'label' must hold one of 0, 1; it holds '2'",
        ),
        ("text\tlabel\na\t1\n", "row 2 has no column 'sentence'; it has 'text', 'label'"),
        ("sentence\tlabel\na\n", "row 2 has 1 fields, but the table has 2 columns"),
        ("", "holds no rows"),
    ],
)
def test_bad_data_is_one_message_with_file_and_row(call, folder_for, tmp_path, content, message):
    """And exit code 3."""
    folder = folder_for(ClassificationTask(labels=["no", "yes"]))
    data = tmp_path / "dev.tsv"
    data.write_text(content)
    code, out, err = call(
        "score", folder, "--task", "sst2", "--data", data, "--set", "max_length=64"
    )
    assert (code, out) == (3, "")
    assert f"{data}" in err
    assert message in " ".join(err.split())


@pytest.mark.e2e
def test_the_real_weights_find_what_means_the_same(call, shared_data, tmp_path):
    """Every fifth pair of STS-B's development part, of which all give 0.867."""
    lines = (shared_data / "glue" / "STS-B" / "sts-dev.tsv").read_text().splitlines(keepends=True)
    data = tmp_path / "sts-dev.tsv"
    data.write_text("".join(lines[::5]))
    code, out, _ = call("score", "minilm", "--task", "sts", "--data", data, "--json")
    assert code == 0
    assert json.loads(out)["metrics"]["spearman"]["value"] > 0.85
