"""The task of a model folder: its kind, its labels in the model's order, its embeddings."""

import json

import pytest
import torch
from tests.tiny_models import EVERY_FAMILY

from stillhouse.errors import ModelError, RecipeError
from stillhouse.families.registry import family_of
from stillhouse.models.folder_check import load_config
from stillhouse.models.load import save_model
from stillhouse.models.task_models import load_task_model, task_model_with_num_layers
from stillhouse.recipe_file import parse_task
from stillhouse.tasks.embeddings import write_modules
from stillhouse.tasks.labels import labels_of
from stillhouse.tasks.metrics import GLUE
from stillhouse.tasks.registry import TASKS, make_task, task_of_model
from stillhouse.tasks.settings import (
    NAMED_TASKS,
    TASK_KINDS,
    ClassificationTask,
    EmbeddingsTask,
    TokenClassificationTask,
)


def folder_of(task_folder, task):
    return task_folder("bert", task.head, **task.model_settings)


@pytest.mark.parametrize(
    ("kind", "labels"),
    [
        ("classification", ["no", "yes"]),
        ("regression", []),
        ("question_answering", []),
        ("token_classification", ["O", "B-PER", "I-PER"]),
        ("embeddings", []),
    ],
)
def test_task_of_model_is_inferred_from_its_head(task_folder, kind, labels):
    """From its folder alone."""
    task = make_task(parse_task(kind, ["max_length=64"]), labels)
    folder = folder_of(task_folder, task)
    found = task_of_model(folder)
    assert found.recipe.kind == kind
    if labels:
        assert found.model_settings["id2label"] == dict(enumerate(labels))
    other = "regression" if kind != "regression" else "question_answering"
    with pytest.raises(RecipeError, match=f"The task is {other}, but .* made for {kind}"):
        task_of_model(folder, parse_task(other, ["max_length=64"]))


@pytest.mark.parametrize(
    ("own", "wanted", "order"),
    [
        (["contradiction", "neutral", "entailment"], None, [0, 1, 2]),
        (["contradiction", "neutral", "entailment"], ["entailment", "neutral", "contradiction"],
         ["contradiction", "neutral", "entailment"]),
        (["NO", "YES"], ["yes", "no"], ["no", "yes"]),
        (["NO", "YES"], ["0", "1"], ["0", "1"]),
        (["LABEL_0", "LABEL_1"], ["yes", "no"], ["yes", "no"]),
    ],
)  # fmt: skip
def test_labels_are_in_the_order_of_the_models_outputs(task_folder, own, wanted, order):
    """Whatever order the recipe has: models of one task differ in it."""
    folder = folder_of(task_folder, make_task(ClassificationTask(labels=own)))
    found = task_of_model(folder, ClassificationTask(labels=wanted, max_length=64))
    assert found.labels == (own if wanted is None else order)  # pyright: ignore[reportAttributeAccessIssue]


def test_other_labels_than_the_models_are_refused(task_folder):
    """With both, and what to do."""
    folder = folder_of(task_folder, make_task(ClassificationTask(labels=["no", "yes"])))
    with pytest.raises(RecipeError, match=r"labels are good, bad, but .* are no, yes"):
        task_of_model(folder, ClassificationTask(labels=["good", "bad"], max_length=64))
    with pytest.raises(RecipeError, match=r"max_length is 128 tokens, but .* takes 64"):
        task_of_model(folder, ClassificationTask(labels=["no", "yes"]))


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_embedding_settings_come_from_the_folder(task_folder, pooling):
    """In the files that sentence-transformers writes and reads."""
    recipe = EmbeddingsTask(pooling=pooling, max_length=64)
    folder = folder_of(task_folder, make_task(recipe))
    write_modules(folder, recipe, 16)
    assert task_of_model(folder).recipe == recipe
    modules = json.loads((folder / "modules.json").read_text())
    modules.insert(2, {"type": "sentence_transformers.models.Dense"})
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ModelError, match="Transformer, Pooling, Dense, Normalize; Stillhouse"):
        task_of_model(folder)
    (folder / "modules.json").write_text("[")
    with pytest.raises(ModelError, match="cannot be read"):
        task_of_model(folder)


def test_a_language_model_has_no_task_until_it_is_fine_tuned(tmp_path, tiny_model, tiny_tokenizer):
    """It is refused; with a seed the body gets a new head."""
    save_model(tiny_model("bert"), tiny_tokenizer, tmp_path / "lm")
    with pytest.raises(ModelError, match="no head for a task: it is a BertForMaskedLM"):
        task_of_model(tmp_path / "lm")
    task = make_task(ClassificationTask(labels=["no", "yes"]))
    with pytest.raises(ModelError, match=r"with a head for this task: .* missing \(.*classifier"):
        load_task_model(tmp_path / "lm", task.head, task.model_settings)
    models = [
        load_task_model(tmp_path / "lm", task.head, task.model_settings, new_head_seed=seed)
        for seed in (1, 1, 2)
    ]
    body = tiny_model("bert").get_submodule("bert").state_dict()
    for model in models:
        own = model.get_submodule("bert").state_dict()
        assert all(torch.equal(own[name], value) for name, value in body.items())
    heads = [model.get_parameter("classifier.weight") for model in models]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_incomplete_body_is_refused(tmp_path, task_folder):
    """A layer is never drawn at random."""
    from safetensors.torch import load_file, save_file

    task = make_task(ClassificationTask(labels=["no", "yes"]))
    folder = folder_of(task_folder, task)
    weights = load_file(folder / "model.safetensors")
    del weights["bert.encoder.layer.1.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 parameters are missing \(bert.encoder.layer.1"):
        load_task_model(folder, task.head, task.model_settings, new_head_seed=0)


def test_new_head_seed_restores_global_generators(task_folder):
    """A new head does not change what is drawn next."""
    folder = task_folder("bert", "Body")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_task_model(folder, "QuestionAnswering", {"num_labels": 2}, new_head_seed=3)
    assert torch.equal(torch.rand(3), expected)


def test_every_kind_of_task_is_in_the_table():
    """The recipe and the table of tasks have the same kinds."""
    assert set(TASKS) == set(TASK_KINDS)


@pytest.mark.parametrize("name", NAMED_TASKS)
def test_every_named_task_can_be_made(name):
    """And is measured as GLUE measures it."""
    recipe = parse_task(name)
    task = make_task(recipe, ["O", "B-PER", "I-PER"])
    assert task.recipe.kind == recipe.kind
    if name in GLUE:
        assert recipe.metric == GLUE[name]


def test_parse_task_by_name_and_settings():
    """What is wrong is named, with what is near."""
    recipe = parse_task("rte", ["columns.text=premise", "columns.pair=hypothesis", "max_length=64"])
    assert isinstance(recipe, ClassificationTask)
    assert recipe.columns.model_dump() == {
        "text": "premise", "pair": "hypothesis", "target": "label",
    }  # fmt: skip
    assert recipe.labels == ["entailment", "not_entailment"]
    with pytest.raises(RecipeError, match=r"no task 'sst'. Did you mean 'sst2'"):
        parse_task("sst")
    with pytest.raises(RecipeError, match=r"columns.txt is not a key .* Did you mean 'text'"):
        parse_task("sst2", ["columns.txt=a"])
    with pytest.raises(RecipeError, match=r"max_length: .* got 3"):
        parse_task("squad", ["max_length=3"])


@pytest.mark.parametrize("family", EVERY_FAMILY)
@pytest.mark.parametrize("head", ["Body", "SequenceClassification"])
def test_layer_map_selects_the_layers(task_folder, family, head):
    """And everything else as it was."""
    model = load_task_model(task_folder(family, head), head, {})
    kept = 0 if family_of(model.config).first_layer_differs else 1
    student = task_model_with_num_layers(model, [kept])
    assert student.config.num_hidden_layers == 1
    ours, theirs = student.state_dict(), model.state_dict()
    assert 0 < len(ours) < len(theirs)
    for name, value in ours.items():
        origin = name.replace(".0.", f".{kept}.") if name not in theirs or ".0." in name else name
        assert torch.equal(value, theirs[origin]), name
    ids = torch.arange(5, 12)[None]
    with torch.no_grad():
        assert student(input_ids=ids)[0].isfinite().all()


def test_labels_default_to_those_of_the_training_data(tmp_path):
    """Sorted; of several labels each; of tags both of each kind."""
    table = tmp_path / "train.tsv"
    table.write_text("text\tlabel\na\twarm\nb\tcold\nc\twarm\n")
    assert make_task(ClassificationTask()).labels_in(table) == ["cold", "warm"]
    assert make_task(ClassificationTask(labels=["a", "b"])).labels_in(table) == []
    several = tmp_path / "train.jsonl"
    several.write_text('{"text": "a", "label": ["x", "y"]}\n{"text": "b", "label": "z,x"}\n')
    assert make_task(ClassificationTask(multi_label=True)).labels_in(several) == ["x", "y", "z"]
    tagged = tmp_path / "train.conll"
    tagged.write_text("a O\nb I-PER\n")
    assert make_task(TokenClassificationTask()).labels_in(tagged) == ["O", "B-PER", "I-PER"]
    assert make_task(EmbeddingsTask()).labels_in(table) == []


def test_misnumbered_id2label_is_refused(task_folder):
    """Numbered from 1: which output is which would be a guess."""
    folder = task_folder("bert", "SequenceClassification", num_labels=3)
    edit_config(folder, id2label={"1": "a", "2": "b", "3": "c"}, label2id={"a": 1, "b": 2, "c": 3})
    with pytest.raises(ModelError, match=r"labels for the outputs \[1, 2, 3\]"):
        task_of_model(folder)
    edit_config(folder, id2label={"2": 7, "0": 5, "1": 6}, label2id={"5": 0, "6": 1, "7": 2})
    assert labels_of(load_config(folder)) == ["5", "6", "7"]


def test_regression_of_several_numbers_is_refused(task_folder):
    """Its numbers were shown as the shares of labels."""
    folder = task_folder("bert", "SequenceClassification", num_labels=3)
    edit_config(folder, problem_type="regression")
    with pytest.raises(ModelError, match="3 numbers for a text"):
        task_of_model(folder)


def edit_config(folder, **values):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
