"""Labels: one spelling in data, recipes and models, and an order that is never guessed."""

import re

import pytest

from stillhouse.errors import DataError, RecipeError
from stillhouse.models.folder_check import load_config
from stillhouse.recipe_file import parse_task
from stillhouse.tasks.labels import Labels, label_name, label_names, labels_of_data, sorted_labels
from stillhouse.tasks.registry import make_task, task_for_training, task_of_model
from stillhouse.tasks.settings import ClassificationTask

TWELVE = [str(number) for number in range(12)]
GENERIC = [f"LABEL_{number}" for number in range(12)]


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("neg ", "neg"),
        (3, "3"),
        (3.0, "3"),
        ("3.0", "3"),
        (-1, "-1"),
        ("-1.0", "-1"),
        ("1.5", "1.5"),
        ("007", "007"),
        (True, "true"),
        ("FALSE", "false"),
        ("Business, Finance", "Business, Finance"),
        ("", None),
        ("  ", None),
        (None, None),
        (float("nan"), None),
        (1.5, None),
        ("x\u00a0", "x"),
        ("x\u200b", "x"),
        ("cafe\u0301", "caf\u00e9"),
        (["a"], None),
    ],
)
def test_label_spelling_is_normalized(value, name):
    """Whatever wrote the file: pandas makes 1.0 of 1, JSON has true, a table True."""
    assert label_name(value) == name


def test_numbers_are_sorted_as_numbers():
    """10 after 2, -1 before 0, texts after them."""
    assert sorted_labels(["10", "2", "-1", "b", "0", "a", "1.5", "10"]) == [
        "-1", "0", "1.5", "2", "10", "a", "b",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("a, b ,c", ["a", "b", "c"]),
        (["a, b", "c "], ["a, b", "c"]),
        ([1, 2.0], ["1", "2"]),
        (7, ["7"]),
        ("", []),
        ([], []),
        (None, None),
        ([["a"]], None),
        ("['a', 'b']", None),
        ([0, 0, 1], None),
        ([1.0, 0.0, 0.0], None),
        (["a", "a"], ["a", "a"]),
    ],
)
def test_multiple_labels_are_a_list_or_comma_separated_text(value, names):
    """Entries of a list are never split; a list written as text and one-hot values are refused."""
    assert label_names(value) == names


def test_label_containing_a_comma_is_one_label(tmp_path):
    """Of a single-label task always; of several labels where it is known, or in a list."""
    table = tmp_path / "train.jsonl"
    table.write_text(
        '{"text": "a", "label": "Business, Finance"}\n{"text": "b", "label": "Arts "}\n'
    )
    assert make_task(ClassificationTask()).labels_in(table) == ["Arts", "Business, Finance"]
    task = task_for_training(ClassificationTask(), table, {})
    assert [example.target for example in task.read(table)] == [1, 0]
    several = Labels.given(["Arts", "Business, Finance", "Business"])
    assert several.find_all("Business, Finance") == (1,)
    assert several.find_all("Business, Arts") == (2, 0)
    assert several.find_all(["Business, Finance", "Arts"]) == (1, 0)
    assert several.find_all("Business, Sports") is None


def config_of(task_folder, names, head="SequenceClassification"):
    settings = make_task(ClassificationTask(labels=names)).model_settings
    folder = task_folder("bert", head, **settings)
    return load_config(folder), folder


def rows_of(tmp_path, values, name="train.jsonl"):
    import json

    path = tmp_path / name
    rows = [{"text": "a", "label": value} for value in values]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_numeric_labels_match_generic_names_by_position(task_folder, tmp_path):
    """In training, in scores and under a teacher: 10 is LABEL_10, not the third."""
    config, folder = config_of(task_folder, GENERIC)
    train = rows_of(tmp_path, [10, 2, 0, 11])
    task = task_for_training(ClassificationTask(max_length=64), train, {"x": config})
    assert task.model_settings["id2label"] == dict(enumerate(TWELVE))
    assert [each.target for each in task.read(train)] == [10, 2, 0, 11]
    scored = task_of_model(folder, ClassificationTask(max_length=64))
    assert [each.target for each in scored.read(train)] == [10, 2, 0, 11]
    assert make_task(ClassificationTask()).labels_in(rows_of(tmp_path, range(11, -1, -1))) == TWELVE


def test_label_names_of_a_model_override_positions(task_folder, tmp_path):
    """Whatever order the recipe, the data or the task's name has."""
    own = ["CONTRADICTION", "ENTAILMENT", "NEUTRAL"]
    config, folder = config_of(task_folder, own)
    task = task_of_model(folder, parse_task("mnli", ["max_length=64"]))
    assert task.model_settings["id2label"] == {0: "contradiction", 1: "entailment", 2: "neutral"}
    train = rows_of(tmp_path, ["entailment", "neutral", "contradiction"])
    task = task_for_training(ClassificationTask(max_length=64), train, {"x": config})
    assert [each.target for each in task.read(train)] == [1, 2, 0]
    config, folder = config_of(task_folder, ["POSITIVE", "NEGATIVE"])
    task = task_of_model(folder, parse_task("sst2", ["max_length=64"]))
    assert task.model_settings["id2label"] == {0: "1", 1: "0"}


def test_numbers_in_data_are_positions_among_the_names_of_the_recipe(task_folder, tmp_path):
    """As the hub numbers classes; the model's order stays its own."""
    _, folder = config_of(task_folder, ["contradiction", "entailment", "neutral"])
    task = task_of_model(folder, parse_task("mnli", ["max_length=64", "columns.text=text",
                                                     "columns.pair=text"]))  # fmt: skip
    path = tmp_path / "dev.jsonl"
    path.write_text('{"text": "a", "gold_label": 0}\n{"text": "a", "gold_label": 2}\n')
    assert [each.target for each in task.read(path)] == [1, 0]


def test_labels_that_match_neither_names_nor_positions_are_refused(task_folder, tmp_path):
    """With both lists, in training and in scores."""
    config, folder = config_of(task_folder, ["contradiction", "entailment", "neutral"])
    train = rows_of(tmp_path, [0, 1, 2])
    both = r"labels are 0, 1, 2, but those of the teacher in x are contradiction, entailment, neu"
    with pytest.raises(RecipeError, match=both):
        task_for_training(ClassificationTask(), train, {"x": config})
    message = r"row 1: .* one of contradiction, entailment, neutral; it holds 0.* they are 0, 1, 2"
    with pytest.raises(DataError, match=message):
        task_of_model(folder, ClassificationTask(max_length=64)).read(train)
    with pytest.raises(RecipeError, match=r"labels are no, yes, but .* are LABEL_0, LABEL_1"):
        labels_of_data(["no", "yes"], ["LABEL_0", "LABEL_1"], "the model")


def test_label_mapping_gives_the_model_s_names(task_folder, tmp_path):
    """Where nothing in their names would."""
    config, _ = config_of(task_folder, ["yes", "no"])
    recipe = ClassificationTask.model_validate({"labels": {"bad": "no", "good": "yes"}})
    train = rows_of(tmp_path, ["bad", "good"])
    task = task_for_training(recipe, train, {"x": config})
    assert [each.target for each in task.read(train)] == [1, 0]
    assert task.model_settings["id2label"] == {0: "good", 1: "bad"}


@pytest.mark.parametrize("values", [[True, False], ["True", "False"], [1.0, 0.0], ["1.0", "0.0"]])
def test_booleans_and_floats_are_labels(tmp_path, values):
    """Also of a task whose labels are 0 and 1; and in a recipe, unquoted."""
    train = rows_of(tmp_path, values)
    for recipe in (
        ClassificationTask(),
        ClassificationTask(labels=["0", "1"]),
        ClassificationTask.model_validate({"labels": [0, 1]}),
        ClassificationTask.model_validate({"labels": [False, True]}),
    ):
        task = task_for_training(recipe, train, {})
        assert [each.target for each in task.read(train)] == [1, 0]


def test_negative_numbers_are_labels(tmp_path):
    """In numeric order: -1, 0, 1."""
    train = rows_of(tmp_path, ["1", "-1", "0", "-1"])
    task = task_for_training(ClassificationTask(), train, {})
    assert [each.target for each in task.read(train)] == [2, 0, 1, 0]


def test_duplicate_labels_are_refused():
    """Two outputs cannot have the same label."""
    with pytest.raises(RecipeError, match=r"1, 1.0 are not 2 different ones"):
        Labels.given(["1", "1.0"])
    with pytest.raises(RecipeError, match=r"' ' is blank or comes twice"):
        Labels.given(["a", " "])


def test_label_case_is_ignored_where_unambiguous():
    """`us` and `US` stay two."""
    labels = Labels.given(["us", "US", "Other"])
    assert [labels.find(name) for name in ("us", "US", "other", "Us")] == [0, 1, 2, None]


@pytest.mark.parametrize(
    ("values", "settings", "message"),
    [
        (["Good", "good", "bad"], {}, "differ only in case: Good, good. Spell"),
        (
            ["x;y", "x", "y"],
            {"multi_label": True},
            "holds 'x;y', whose parts between ';' are labels too. Put commas between labels",
        ),
        (["x | y", "y"], {"multi_label": True}, "holds 'x | y', whose parts between '|'"),
    ],
)
def test_similar_labels_are_refused(tmp_path, values, settings, message):
    """Two spellings are not two classes, and two labels not a third one, unless the recipe says
    so."""
    path = rows_of(tmp_path, values)
    with pytest.raises(DataError, match=re.escape(message)):
        make_task(ClassificationTask(**settings)).labels_in(path)
    named = ClassificationTask(labels=values, **settings)
    assert len(make_task(named).read(path)) == len(values)


def test_spellings_of_a_model_label_are_merged(tmp_path, task_folder):
    """Where a teacher names the labels, case is ignored."""
    config, _ = config_of(task_folder, ["bad", "good"])
    path = rows_of(tmp_path, ["Good", "good", "BAD"])
    task = task_for_training(ClassificationTask(), path, {"teacher": config})
    assert [example.target for example in task.read(path)] == [1, 1, 0]
