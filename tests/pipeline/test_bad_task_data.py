"""Error messages for task examples that cannot be used: the file, the row, what to do.

Each case runs through the real command line, as in `test_bad_input`.
"""

import json
from pathlib import Path

import pytest
import yaml
from tests.pipeline.tiny_run import call, refused

TEXTS = [("the still turns", "thin"), ("a cold wind", "strong"), ("a warm fire", "thin")]
TABLE = "text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in TEXTS)
TAGGED = "Ada B-PER\nof O\nLondon B-LOC\n\nthe O\nstill O\n"
CONTEXT = "The distiller of Islay turns the still."
ANSWERS = [{"text": "Islay", "answer_start": 17}]


def squad(answer: str = "Islay", start: int = 17) -> str:
    question = {
        "id": "q1",
        "question": "Where?",
        "answers": [{"text": answer, "answer_start": start}],
    }
    paragraph = {"context": CONTEXT, "qas": [question]}
    return json.dumps({"data": [{"title": "Stills", "paragraphs": [paragraph]}]})


# For each kind: the name and content of a file of examples, and of one that cannot be used.
CASES = {
    "missing column": (
        "classification", "train.tsv", TABLE.replace("label", "class"),
        r"train.tsv row 2 has no column 'label'; it has 'text', 'class'. .* `columns`",
    ),
    "empty file": ("classification", "train.tsv", "", r"train.tsv holds no rows. Give a file"),
    "no such file": ("classification", "train.tsv", None, r"train.tsv"),
    "broken row": (
        "classification", "train.tsv", TABLE + "one field\n",
        "train.tsv row 5 has 1 fields, but the table has 2 columns: text, label",
    ),
    "commas in a TSV": (
        "classification", "train.tsv", TABLE.replace("\t", ","),
        r"train.tsv row 1 names one column, 'text,label': the file looks like comma-separated "
        r"values, not TSV; rename it to end in .csv",
    ),
    "a column twice": (
        "classification", "train.tsv", TABLE.replace("label", "text"),
        "train.tsv row 1 names a column twice: text, text. Rename one of them",
    ),
    "UTF-16": (
        "classification", "train.tsv", TABLE.encode("utf-16"),
        "train.tsv row 1 is not UTF-8: byte 0 .*iconv -f UTF-16 -t UTF-8",
    ),
    "wrong label": (
        "classification", "dev.tsv", TABLE.replace("strong", "weak"),
        r"dev.tsv row 3: .* one of strong, thin; it holds 'weak'",
    ),
    "not a number": (
        "regression", "dev.tsv", TABLE.replace("thin", "1").replace("strong", "much"),
        "dev.tsv row 3: .* it holds 'much'",
    ),
    "answer not in context": (
        "question_answering", "train.json", squad(start=16),
        r"train.json.*q1.*'Islay' is not at character 16 of the context; it is at 17",
    ),
    "answer nowhere": (
        "question_answering", "train.json", squad("Skye"),
        r"q1.*'Skye' is not at .* it does not occur there. Correct answer_start",
    ),
    "no SQuAD": (
        "question_answering", "train.json", '{"data": [{"title": "x"}]}',
        "'paragraphs' is missing; it must be a list. Give a file in SQuAD's format",
    ),
    "cut-off JSON": ("question_answering", "train.json", squad()[:-9], "train.json is not JSON"),
    "broken CoNLL": (
        "token_classification", "train.txt", TAGGED.replace("of O", "of"),
        r"train.txt row 2: 'of' is no token with a tag \(O, or one of "
        r"B-, I-, E-, S-, L-, U- before a kind, such as B-PER\). Correct the line",
    ),
    "wrong tag": (
        "token_classification", "train.txt", TAGGED.replace("B-LOC", "LOC"),
        r"train.txt row 3: 'London LOC' is no token with a tag \(O, or one of B-",
    ),
    "unknown kind": (
        "token_classification", "dev.txt", TAGGED.replace("B-LOC", "B-SEA"),
        r"dev.txt row 1: the tag 'B-SEA' is not one of the model's",
    ),
    "no sentence": ("token_classification", "train.txt", "\n\n", "train.txt holds no sentence"),
    "one label": (
        "classification", "train.tsv", TABLE.replace("strong", "thin"),
        r"train.tsv: all 3 examples have the same label, thin, so there is nothing to learn",
    ),
    "labels of another task": (
        "classification", "dev.tsv", TABLE.replace("strong", "good").replace("thin", "bad"),
        r"dev.tsv row 2: .* one of strong, thin; it holds 'bad'. .* they are bad, good",
    ),
    "one value": (
        "regression", "train.tsv", TABLE.replace("thin", "1").replace("strong", "1.0"),
        r"train.tsv: all 3 examples have the same value, 1.0, so there is nothing to learn",
    ),
    "no entity": (
        "token_classification", "train.txt", TAGGED.replace("B-PER", "O").replace("B-LOC", "O"),
        r"train.txt: all 2 examples have no entity \(every tag is O\), so there is nothing",
    ),
    "tags without names": (
        "token_classification", "train.txt", TAGGED.replace("B-PER", "1").replace("B-LOC", "2"),
        r"train.txt row 1: the tags are numbers, such as 1, .* Name them in `labels`",
    ),
    "no question has an answer": (
        "question_answering", "train.json", squad().replace(json.dumps(ANSWERS), "[]"),
        r"train.json: all 1 examples are questions without an answer, so there is nothing",
    ),
    "impossible, and an answer": (
        "question_answering", "train.json",
        squad().replace('"id": "q1"', '"id": "q1", "is_impossible": true'),
        r"question q1: is_impossible is true, but it has 1 answers",
    ),
    "not UTF-8": (
        "classification", "train.tsv", TABLE.encode() + b"caf\xe9\tthin\n",
        r"train.tsv row 5 is not UTF-8",
    ),
}  # fmt: skip


@pytest.fixture
def recipe(tmp_path, task_folder, monkeypatch):
    """recipe(kind): a recipe of one task with the given body and data."""
    monkeypatch.chdir(tmp_path)

    def write(kind: str) -> Path:
        numbers = TABLE.replace("thin", "1").replace("strong", "2")
        suffix, content = {
            "classification": ("tsv", TABLE),
            "regression": ("tsv", numbers),
            "question_answering": ("json", squad()),
            "token_classification": ("txt", TAGGED),
        }[kind]
        for split in ("train", "dev"):
            (tmp_path / f"{split}.{suffix}").write_text(content)
        task = {
            "task": {"kind": kind, "max_length": 32},
            "data": {"train": f"train.{suffix}", "validation": f"dev.{suffix}"},
            "models": {"model": {"start": "teacher"}},
            "training": {"examples_per_step": 1, "precision": "fp32"},
        }
        if kind == "question_answering":
            task["task"] |= {"doc_stride": 8, "max_question_length": 8}
        path = tmp_path / "recipe.yaml"
        teacher = str(task_folder("bert", "Body"))
        path.write_text(yaml.safe_dump({"teacher": teacher, "finetuning": {"it": task}}))
        return path

    return write


@pytest.mark.parametrize("case", CASES)
def test_unusable_examples_are_rejected_with_file_and_row(recipe, tmp_path, case):
    """Exit code 3 before training; with the good file the same recipe runs."""
    kind, name, content, message = CASES[case]
    path = recipe(kind)
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(call("check", str(path)), 3, message)
    refused(call("run", str(path), "--run-dir", str(tmp_path / "run")), 3, message)
    assert not (tmp_path / "run" / "finetuned").exists()


def test_semicolons_in_a_csv_file_are_rejected(recipe, tmp_path):
    """The separators that were found, and what to do about them."""
    path = recipe("classification")
    (tmp_path / "train.csv").write_text(TABLE.replace("\t", ";"))
    message = (
        r"train.csv row 1 names one column, 'text;label': the file looks like semicolon-separated "
        r"values, not CSV; save it with commas"
    )
    refused(call("check", path, "--set", "finetuning.it.data.train=train.csv"), 3, message)


def test_blank_lines_are_excluded_and_reported(recipe, tmp_path):
    """By row number; the other rows are used for training."""
    path = recipe("classification")
    rows = [json.dumps({"text": text, "label": label}) for text, label in TEXTS]
    (tmp_path / "train.jsonl").write_text("\n".join([*rows, "", *rows, "  ", ""]))
    settings = ("--set", "finetuning.it.data.train=train.jsonl")
    outcome = call("run", path, "--run-dir", tmp_path / "run", *settings)
    assert outcome.code == 0, outcome
    assert "train.jsonl: 2 rows (4, 8) without any field: skipped" in outcome.err
    report = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "train.jsonl: 2 rows (4, 8) without any field" in report
    model = tmp_path / "run/finetuned/it/model"
    scored = call("score", model, "--data", tmp_path / "dev.tsv", "--json")
    assert scored.code == 0, scored
    assert json.loads(scored.out)["protocol"]["kind"] == "classification"  # known by the model


@pytest.mark.e2e
@pytest.mark.parametrize("kind", sorted({kind for kind, *_ in CASES.values()}))
def test_the_same_recipes_run_on_good_examples(recipe, tmp_path, kind):
    """The rejections above are due to the examples."""
    outcome = call("run", str(recipe(kind)), "--run-dir", str(tmp_path / "run"))
    assert outcome.code == 0, outcome


SHARED = "dev.tsv: 1 of 2 examples are also in train.tsv; scores on training examples"


def test_validation_examples_in_the_training_data_are_reported(recipe, tmp_path):
    """Before training: their scores do not generalize."""
    path = recipe("classification")
    (tmp_path / "dev.tsv").write_text("text\tlabel\na cold wind\tthin\nanother\tstrong\n")
    outcome = call("check", path)
    assert outcome.code == 0, outcome
    assert f"note: {SHARED}" in outcome.out


@pytest.mark.e2e
def test_run_reports_validation_examples_in_the_training_data(recipe, tmp_path):
    """In the same words as `check`."""
    path = recipe("classification")
    (tmp_path / "dev.tsv").write_text("text\tlabel\na cold wind\tthin\nanother\tstrong\n")
    outcome = call("run", path, "--run-dir", tmp_path / "run")
    assert outcome.code == 0, outcome
    assert SHARED in outcome.err


def test_a_distinct_label_for_every_example_is_rejected(recipe, tmp_path):
    """As when the column of scores or identifiers is named."""
    path = recipe("classification")
    rows = "".join(f"the still {number}\tid-{number}\n" for number in range(30))
    (tmp_path / "train.tsv").write_text("text\tlabel\n" + rows)
    message = (
        r"train.tsv: each of the 30 examples has a label of its own \(id-0, id-1, .* and 18 more"
    )
    refused(call("check", path), 3, message)


@pytest.mark.parametrize("source", [".", "*.tsv"])
def test_several_files_as_training_data_are_rejected(recipe, source):
    """The files exist, so the message asks for a single one."""
    path = recipe("classification")
    message = "data.train: '.*' is not a single file. A task has one file for training"
    refused(call("check", path, "--set", f"finetuning.it.data.train={source}"), 3, message)


def test_tilde_is_expanded_in_paths(recipe, tmp_path, monkeypatch):
    """`~` is the home folder in a recipe, as in a shell."""
    path = recipe("classification")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert call("check", path, "--set", "finetuning.it.data.train=~/train.tsv").code == 0
    refused(call("check", path, "--set", "finetuning.it.data.train=~/absent.tsv"), 3, "absent.tsv")


def test_answers_outside_every_window_are_reported(recipe, tmp_path):
    """They would be trained as unanswerable questions."""
    path = recipe("question_answering")
    (tmp_path / "train.json").write_text(squad(CONTEXT, 0))
    settings = [
        "--set",
        "finetuning.it.task.max_length=16",
        "--set",
        "finetuning.it.task.doc_stride=4",
    ]
    outcome = call("run", path, "--run-dir", tmp_path / "run", *settings)
    assert outcome.code == 0, outcome
    assert "no window contains the whole answer to 1 question" in outcome.err
