"""`predict`: line n of the output is for row n of the input, whatever the row holds."""

import json
import sys

import pyarrow
import pytest
from pyarrow import parquet
from tests.pipeline.tiny_run import call, refused

from stillhouse.__main__ import _run
from stillhouse.models.load import save_model
from stillhouse.models.task_models import load_task_model
from stillhouse.runs.manifest import Inputs, commit_folder
from stillhouse.section import recipe_part
from stillhouse.tasks.registry import make_task
from stillhouse.tasks.settings import (
    ClassificationTask,
    Columns,
    EmbeddingsTask,
    QuestionAnsweringTask,
    TokenClassificationTask,
)
from stillhouse.tokens.tokenizer import load_tokenizer


@pytest.fixture
def predict(capsys, monkeypatch, tmp_path):
    """predict(model, content, *options): the lines of the output, and what was said."""

    def run(model, name, content, *options):
        source, output = tmp_path / name, tmp_path / "out.jsonl"
        output.unlink(missing_ok=True)
        if isinstance(content, dict):
            parquet.write_table(pyarrow.table(content), source)
        else:
            source.write_text(content)
        arguments = ["--input", source, "--output", output, *options]
        monkeypatch.setattr(sys, "argv", ["stillhouse", "predict", *map(str, [model, *arguments])])
        code = _run()
        captured = capsys.readouterr()
        assert code == 0, captured.err
        return [json.loads(line) for line in output.read_text().splitlines()], captured.err

    return run


@pytest.fixture
def folder_for(task_folder):
    """folder_for(recipe, labels): a random model with the head of a task."""

    def make(recipe, labels=(), family="bert"):
        task = make_task(recipe, labels)
        return task_folder(family, task.head, **task.model_settings)

    return make


ROWS = ["a warm fire", "", "a cold wind", " "]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("in.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in ROWS)),
        ("in.jsonl", '{"text": "a warm fire"}\n\n{"text": "a cold wind"}\n{"text": " "}\n'),
        (
            "in.jsonl",
            '{"text": "a warm fire"}\n{"text": null}\n{"text": "a cold wind"}\n{"text": " "}\n',
        ),
        ("in.json", json.dumps([{"text": text} for text in ROWS], indent=1)),
        ("in.csv", 'text\na warm fire\n""\na cold wind\n" "\n'),
        ("in.csv", "text,id\na warm fire,1\n,2\na cold wind,3\n ,4\n"),
        ("in.tsv", "text\na warm fire\n\na cold wind\n \n"),
        ("in.parquet", {"text": ["a warm fire", None, "a cold wind", " "]}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_a_blank_text_gets_its_line(predict, folder_for, name, content, family):
    """Empty, null, a blank line or white space: each row has a line, with its text."""
    folder = folder_for(ClassificationTask(labels=["no", "yes"]), family=family)
    lines, err = predict(folder, name, content)
    assert [line["text"] for line in lines] == ROWS
    assert all(line["label"] in ("no", "yes") and 0 <= line["score"] <= 1 for line in lines)
    is_blank_line = "\n\n" in content if isinstance(content, str) else False
    assert ("without any field: read as empty text" in err) == is_blank_line


def test_a_blank_line_among_a_thousand(predict, folder_for):
    """Neither stops the file nor shifts what comes after it."""
    texts = [f"text {number}" for number in range(1000)]
    content = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    folder = folder_for(ClassificationTask(labels=["no", "yes"]))
    lines, err = predict(folder, "in.jsonl", content.replace('{"text": "text 500"}\n', "\n"))
    assert [line["text"] for line in lines] == [*texts[:500], "", *texts[501:]]
    assert "in.jsonl: 1 row (501) without any field: read as empty text" in err


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2"])
@pytest.mark.parametrize(
    ("recipe", "labels"),
    [
        (ClassificationTask(labels=["no", "yes"]), ()),
        (TokenClassificationTask(), ["O", "B-X", "I-X"]),
        (EmbeddingsTask(), ()),
    ],
)
def test_a_file_of_blank_texts_alone(predict, folder_for, recipe, labels, family):
    """A causal model has no special tokens around a text: an empty one is its end of text."""
    lines, _ = predict(folder_for(recipe, labels, family), "in.jsonl", '{"text": ""}\n' * 3)
    assert len(lines) == 3
    assert lines[0] == lines[1] == lines[2]


@pytest.mark.parametrize(
    ("recipe", "labels", "row", "keys"),
    [
        (ClassificationTask(labels=["a", "b"], multi_label=True), (), {"text": "x"}, {"labels"}),
        (TokenClassificationTask(), ["O", "B-X", "I-X"], {"text": "x"}, {"entities"}),
        (EmbeddingsTask(), (), {"text": "x"}, {"embedding"}),
        (
            QuestionAnsweringTask(max_length=64, doc_stride=16, max_question_length=16),
            (),
            {"question": "Who?", "context": "The distiller of Islay."},
            {"id", "score", "start", "end", "answer"},
        ),
    ],
)
def test_each_task_gives_objects_with_the_text(predict, folder_for, recipe, labels, row, keys):
    """Lists have a name, so that the text can be beside them."""
    settings = [
        "--set",
        "max_length=64",
        "--set",
        "doc_stride=16",
        "--set",
        "max_question_length=16",
    ]
    options = settings if recipe.kind == "question_answering" else []
    folder = folder_for(recipe, labels)
    lines, _ = predict(folder, "in.jsonl", f"{json.dumps(row)}\n\n", *options)
    assert len(lines) == 2
    assert set(lines[0]) == {*row, *keys}
    assert {key: lines[0][key] for key in row} == row
    assert {lines[1][key] for key in row} == {""}


def test_a_model_of_ours_knows_its_task(predict, folder_for, tmp_path):
    """Without --task: the columns, labels and length are those that it was trained with."""
    columns = Columns(text="question1", pair="question2")
    recipe = ClassificationTask(columns=columns, labels=["0", "1"], max_length=16)
    start = folder_for(recipe)
    task, folder = make_task(recipe), tmp_path / "finetuned" / "it" / "model"
    inputs = Inputs("finetune it model", {"task": recipe_part(recipe)}, {})
    with commit_folder(folder, inputs) as made:
        save_model(load_task_model(start, task.head, {}), load_tokenizer(start), made)
    row = '{"question1": "a warm fire", "question2": ""}\n'
    lines, _ = predict(folder, "in.jsonl", row)
    assert (lines[0]["text"], lines[0]["text_pair"]) == ("a warm fire", "")
    named = ["--task", "qqp", "--set", "max_length=16"]
    assert predict(folder, "in.jsonl", row, *named)[0] == lines
    lines, _ = predict(
        folder, "in.csv", "a,b\nx,y\n", "--set", "columns.text=a", "--set", "columns.pair=b"
    )
    assert (lines[0]["text"], lines[0]["text_pair"]) == ("x", "y")


@pytest.mark.parametrize("recipe", [ClassificationTask(labels=["no", "yes"]), EmbeddingsTask()])
def test_each_line_of_a_plain_text_file_is_a_text(predict, folder_for, recipe):
    """Blank lines too; nothing in a line is taken for markup."""
    lines, err = predict(folder_for(recipe), "in.txt", 'a "warm", fire\n\n{"text": "x"}\n')
    assert [line["text"] for line in lines] == ['a "warm", fire', "", '{"text": "x"}']
    assert "in.txt: 1 row (2) without any field: read as empty text" in err


@pytest.mark.parametrize(
    ("name", "content", "options"),
    [
        ("in.conll", "en:Ada B-X\nen:of O\n\nen:Wind O\n", ()),
        ("in.txt", "en:Ada\nen:of\n\nen:Wind\n", ()),
        ("in.tsv", "1\ten:Ada\tB-Y\n2\ten:of\tO\n\n1\ten:Wind\tO\n", ("--set", "token_column=1")),
    ],
)
def test_tagged_sentences_are_predicted_as_rows_of_tokens(
    predict, folder_for, name, content, options
):
    """In the columns of training data, with tags, even unknown ones, or without."""
    folder = folder_for(TokenClassificationTask(), ["O", "B-X", "I-X"])
    rows = "".join(json.dumps({"tokens": words}) + "\n" for words in (["Ada", "of"], ["Wind"]))
    expected, _ = predict(folder, "in.jsonl", rows)
    task = ("--task", "conll", "--set", "prefix='en:'", "--set", "max_length=64")
    lines, _ = predict(folder, name, content, *task, *options)
    assert [line["text"] for line in lines] == ["Ada of", "Wind"]
    assert lines == expected


def test_a_question_keeps_its_id(predict, folder_for):
    """Of any type; a row without one has its number."""
    row = {"question": "Who?", "context": "The distiller of Islay."}
    rows = [{**row, "id": "q7"}, {**row, "id": 8}, row]
    settings = (
        "--set",
        "max_length=64",
        "--set",
        "doc_stride=16",
        "--set",
        "max_question_length=16",
    )
    content = "".join(json.dumps(each) + "\n" for each in rows)
    lines, _ = predict(
        folder_for(QuestionAnsweringTask(max_length=64)), "in.jsonl", content, *settings
    )
    assert [line["id"] for line in lines] == ["q7", "8", "2"]


def test_a_question_that_is_cut_is_counted(predict, folder_for):
    """Once, however many windows its context has."""
    folder = folder_for(QuestionAnsweringTask(max_length=32, doc_stride=8, max_question_length=8))
    row = {"question": "why " * 40, "context": "the still turns " * 30}
    _, said = predict(folder, "a.jsonl", json.dumps(row) + "\n", "--set", "max_question_length=8")
    assert "1 text has more than 8 tokens; the rest was not read." in said


@pytest.mark.parametrize("command", ["predict", "features"])
def test_an_output_in_a_folder_that_is_not_there(command, tmp_path):
    """Refused before anything is loaded."""
    given = {"predict": ["--input", tmp_path / "a.jsonl"], "features": ["--text", "x"]}[command]
    output = tmp_path / "absent" / "out.npy"
    outcome = call(command, "sample", *given, "--output", output)
    refused(outcome, 2, "--output .*out.npy: there is no folder .*absent. Make it first")


@pytest.mark.parametrize("command", ["features", "generate"])
def test_text_of_bytes_that_are_no_utf_8(command, tmp_path):
    """As a shell gives them in an argument: half characters, which no tokenizer takes."""
    given = {"generate": ["--prompt"], "features": ["--output", tmp_path / "a.npy", "--text"]}
    outcome = call(command, "sample", *given[command], "\udcff x")
    refused(outcome, 3, r"The text holds a lone surrogate, \\udcff")
