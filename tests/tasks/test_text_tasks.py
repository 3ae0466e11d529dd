"""Texts and pairs: what a model reads of them, and what their labels become."""

import json

import numpy as np
import pytest
import sklearn.metrics

from stillhouse.errors import DataError, RecipeError
from stillhouse.tasks.encoded import TextExample
from stillhouse.tasks.labels import Labels
from stillhouse.tasks.registry import make_task
from stillhouse.tasks.settings import ClassificationTask, Columns, RegressionTask
from stillhouse.tasks.text_classification import TextClassification

PAIR = Columns(text="a", pair="b", target="c")


def encoded(tokenizer, *examples, length=64):
    task = make_task(ClassificationTask(labels=["x", "y"], max_length=length))
    return [sequences[0] for sequences in task.encode(list(examples), tokenizer)]


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2"])
def test_pairs_are_separated(tokenizer_of, family):
    """By the tokenizer's own tokens, or by the end-of-text token where it has no separator."""
    tokenizer = tokenizer_of(family)
    (found,) = encoded(tokenizer, TextExample("the sea", "the wind"))
    first, second = (
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("the sea", "the wind")
    )
    ids = found.input_ids.tolist()
    assert any(ids[place : place + len(first)] == first for place in range(len(ids)))
    assert ids[-len(second) :] == second or ids[-len(second) - 1 : -1] == second
    assert len(ids) > len(first) + len(second)
    if family == "bert":
        assert found.token_type_ids.tolist() == [0] * (len(first) + 2) + [1] * (len(second) + 1)


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2"])
def test_special_token_names_in_text_are_text(tokenizer_of, family):
    """Nobody ends a sequence by writing so."""
    tokenizer = tokenizer_of(family)
    name = tokenizer.sep_token or tokenizer.eos_token
    plain, odd = encoded(tokenizer, TextExample("the sea"), TextExample(f"the {name} sea"))
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    assert (
        np.isin(odd.input_ids, list(special)).sum() == np.isin(plain.input_ids, list(special)).sum()
    )


def test_truncated_text_is_marked(tokenizer_of):
    """A text that fits is whole; of a pair the longer text is truncated."""
    tokenizer = tokenizer_of("bert")
    short, long = encoded(
        tokenizer, TextExample("the sea"), TextExample("the sea " * 20), length=16
    )
    assert not short.is_truncated
    assert long.is_truncated
    assert len(long.input_ids) == 16
    (pair,) = encoded(tokenizer, TextExample("the wind", "the sea " * 20), length=16)
    kept = tokenizer.decode(pair.input_ids, skip_special_tokens=True)
    assert kept.startswith("the wind the sea")
    assert pair.is_truncated


def test_multi_label_target_has_a_value_per_label(tmp_path, tokenizer_of):
    """From a list or comma-separated text; no label is valid too."""
    path = tmp_path / "data.jsonl"
    rows = [{"text": "a", "label": ["warm", "cold"]}, {"text": "b", "label": "cold"}]
    rows.append({"text": "c", "label": ""})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = make_task(ClassificationTask(labels=["cold", "mild", "warm"], multi_label=True))
    examples = task.read(path)
    assert [example.target for example in examples] == [(2, 0), (0,), ()]
    sequences = [own[0] for own in task.encode(examples, tokenizer_of("bert"))]
    targets = [np.array(each.target) for each in sequences]
    assert [target.tolist() for target in targets] == [[1, 0, 1], [1, 0, 0], [0, 0, 0]]
    path.write_text('{"text": "a", "label": "cold,hot"}\n')
    with pytest.raises(DataError, match=r"row 1.*'label'.*out of cold, mild, warm.*'cold,hot'"):
        task.read(path)


def test_classification_metric_samples():
    """The most probable class of each example, compared with its label."""
    task = make_task(ClassificationTask(labels=["x", "y"]))
    shares = [np.array([0.9, 0.1]), np.array([0.3, 0.7]), np.array([0.6, 0.4])]
    examples = [TextExample("", target=target) for target in (0, 1, 1)]
    measures = task.metric_samples(shares, examples)
    assert measures["accuracy"].value == pytest.approx(2 / 3)
    assert measures["f1"].value == pytest.approx(2 / 3)
    assert task.result(shares[1]) == {"label": "y", "score": 0.7}
    three = make_task(ClassificationTask(labels=["x", "y", "z"]))
    assert set(three.metric_samples([np.array([1, 0, 0])] * 3, examples)) == {
        "accuracy",
        "matthews",
    }


def test_multi_label_metric_samples():
    """Exact sets, and F1 over all labels: precision 2 of 3, recall 2 of 4."""
    task = make_task(ClassificationTask(labels=["x", "y", "z"], multi_label=True))
    shares = [np.array([0.9, 0.6, 0.1]), np.array([0.2, 0.3, 0.8])]
    examples = [TextExample("", target=(0,)), TextExample("", target=(0, 1, 2))]
    measures = task.metric_samples(shares, examples)
    assert measures["accuracy"].value == 0
    assert measures["f1"].value == pytest.approx(2 * 2 / (3 + 4))
    assert [each["label"] for each in task.result(shares[0])] == ["x", "y"]


def test_a_number_is_read_and_correlated(tmp_path):
    """STS-B's metric is the mean of both correlations."""
    path = tmp_path / "data.tsv"
    path.write_text("a\tb\tc\nx\ty\t1.5\nx\ty\t4\nx\ty\t3\n")
    task = make_task(RegressionTask(columns=PAIR))
    examples = task.read(path)
    assert [example.target for example in examples] == [1.5, 4.0, 3.0]
    measures = task.metric_samples([1.0, 9.0, 2.0], examples)
    assert measures["spearman"].value == pytest.approx(1.0)
    both = (measures["pearson"].value + measures["spearman"].value) / 2
    assert measures["pearson_and_spearman"].value == pytest.approx(both)


def test_a_metric_of_two_classes_is_refused_for_three():
    """Before anything is trained for it."""
    with pytest.raises(RecipeError, match="f1 is of two labels, but there are 3"):
        make_task(ClassificationTask(labels=["x", "y", "z"], metric="f1"))


def scored(task, predicted, right):
    """The measures for labels by name."""
    assert isinstance(task, TextClassification)
    shares = [np.eye(2)[task.labels.index(name)] for name in predicted]
    examples = [TextExample("", target=task.labels.index(name)) for name in right]
    return task.metric_samples(shares, examples)


RIGHT = ["a", "a", "b", "a", "b", "a"]
SAID = ["a", "b", "b", "a", "a", "a"]


@pytest.mark.parametrize("own", [["no", "yes"], ["yes", "no"]])
def test_f1_is_of_the_second_label_of_a_recipe_in_any_order_of_outputs(own):
    """A model with its outputs the other way around has the same F1, that of scikit-learn."""
    names = {"a": "no", "b": "yes"}
    recipe = ClassificationTask(labels=["no", "yes"], metric="f1")
    task = make_task(recipe, Labels.given(["no", "yes"]).in_order_of(own, "the model"))
    assert isinstance(task, TextClassification)
    assert task.labels == own
    assert task.positive_label == "yes"
    said, right = ([names[name] for name in side] for side in (SAID, RIGHT))
    found = scored(task, said, right)
    expected, of_no = (
        sklearn.metrics.f1_score(
            [name == label for name in right], [name == label for name in said]
        )
        for label in ("yes", "no")
    )
    assert found["f1"].value == pytest.approx(expected)
    assert expected != pytest.approx(of_no)
    both = (expected + found["accuracy"].value) / 2
    assert found["accuracy_and_f1"].value == pytest.approx(both)


@pytest.mark.parametrize(
    ("labels", "positive"),
    [
        (["0", "1"], "1"),
        (["1", "0"], "1"),
        (["-1", "1"], "1"),
        (["1", "2"], "1"),
        (["false", "true"], "true"),
        (["LABEL_0", "LABEL_1"], "LABEL_1"),
        (["0", "2"], None),
        (["bad", "good"], None),
    ],
)
def test_without_labels_in_the_recipe_f1_is_of_label_1_or_of_none(labels, positive):
    """As scikit-learn's `pos_label=1`; for labels that are words nothing is assumed."""
    task = make_task(ClassificationTask(), labels)
    assert task.positive_label == positive
    assert ("f1" in scored(task, labels, labels)) == (positive is not None)
    if positive is None:
        message = rf"not known which of {labels[0]} and {labels[1]}.*positive class second"
        for metric in ("f1", "accuracy_and_f1"):
            with pytest.raises(RecipeError, match=message):
                make_task(ClassificationTask(metric=metric), labels)
            assert make_task(ClassificationTask(metric=metric, labels=labels)).positive_label


def test_multi_label_f1_has_no_positive_class():
    """Two labels that each hold or not are counted together."""
    task = make_task(ClassificationTask(labels=["x", "y"], multi_label=True, metric="f1"))
    assert task.positive_label is None
