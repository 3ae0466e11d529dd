"""`score`: errors for examples on which a metric is undefined."""

import json

import pytest
from tests.pipeline.tiny_run import call, refused

PAIR = "m\tf\t2012\t1\t{}\tthe still\ta fire\n"


@pytest.mark.parametrize(
    ("head", "task", "name", "content", "message"),
    [
        ("Body", "sts", "a.tsv", PAIR.format(3), "a.tsv: all 1 examples have the same value, 3.0"),
        ("Body", "sts", "a.tsv", PAIR.format(3) * 4, "spearman cannot be measured on them"),
        ("TokenClassification", "conll", "a.txt", "the O\n", "all 1 examples have no entity"),
        (
            "SequenceClassification",
            "cola",
            "a.tsv",
            "gj\t1\t\tthe still\n" * 3,
            "all 3 examples have the same label, 1, so matthews cannot be measured",
        ),
    ],
)
def test_undefined_metric_is_an_error(task_folder, tmp_path, head, task, name, content, message):
    """A correlation of 0.0000 would look like a model's."""
    tags = ["O", "B-LOC"] if head == "TokenClassification" else ["unacceptable", "acceptable"]
    names = {"id2label": dict(enumerate(tags)), "label2id": {}} if head != "Body" else {}
    path = tmp_path / name
    path.write_text(content)
    model = task_folder("bert", head, **names)
    outcome = call("score", model, "--task", task, "--data", path, "--set", "max_length=32")
    refused(outcome, 3, message)
    varied = content + content.replace("\t3\t", "\t2\t").replace("\t1\t\t", "\t0\t\t")
    path.write_text(varied.replace("the O\n", "Rhine B-LOC\n", 1) if task == "conll" else varied)
    assert call("score", model, "--task", task, "--data", path, "--set", "max_length=32").code == 0


@pytest.mark.e2e
def test_a_model_is_scored_in_a_lower_precision(tmp_path):
    """The result names it; the scores move little."""
    path = tmp_path / "words.jsonl"
    path.write_text('{"text": "He said that nobody knew where the road went"}\n')
    arguments = ("score", "sample", "--task", "lambada", "--data", path, "--offline", "--json")
    plain, low = (
        json.loads(call(*arguments, "--precision", precision).out) for precision in ("fp32", "bf16")
    )
    assert plain["precision"] == "fp32"
    assert low["precision"].startswith("bf16 (")
    ours, theirs = (each["metrics"]["perplexity"]["value"] for each in (plain, low))
    assert ours != theirs == pytest.approx(ours, rel=0.1)
