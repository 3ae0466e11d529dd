"""`stillhouse check`: what a recipe would make, from configurations alone."""

import json
import sys
from pathlib import Path

import pytest
from tests.model_shapes import write_shape
from transformers import BertConfig, DistilBertConfig, GPT2Config, RobertaConfig

from stillhouse.__main__ import _run

pytestmark = pytest.mark.e2e  # tokenizers and structures of the published sizes

PUBLISHED = {
    "distilgpt2": (GPT2Config(), 124.4, 81.9),
    "distilbert-base-uncased": (BertConfig(vocab_size=30522), 109.5, 67.0),
    "distilbert-base-cased": (BertConfig(vocab_size=28996), 108.3, 65.8),
    "distilbert-base-german-cased": (BertConfig(vocab_size=31102), None, None),
    "distilbert-base-multilingual-cased": (BertConfig(vocab_size=119547), 178.0, 135.4),
    "distilroberta-base": (
        RobertaConfig(
            vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5
        ),
        124.7,
        82.2,
    ),
}


def check(capsys, monkeypatch, *arguments: object) -> str:
    """What `check` prints, after making sure that it left with 0."""
    monkeypatch.setattr(sys, "argv", ["stillhouse", "check", *map(str, arguments)])
    assert _run() == 0, capsys.readouterr().err
    return capsys.readouterr().out


@pytest.mark.parametrize("recipe", PUBLISHED)
def test_the_published_recipes_give_the_published_sizes(tmp_path, capsys, monkeypatch, recipe):
    """Parameters of teacher and student in millions, from the teacher's config.json alone."""
    config, teacher, student = PUBLISHED[recipe]
    write_shape(tmp_path / "teacher", config)
    override = f"teacher={tmp_path / 'teacher'}"
    result = json.loads(check(capsys, monkeypatch, recipe, "--set", override, "--json"))
    sizes = [round(result[name]["parameters"] / 1e6, 1) for name in ("teacher", "student")]
    if teacher is None:
        # No figure was published for German: it is BERT-base with 31,102 embeddings of 768.
        per_entry = 768 + 1
        assert result["teacher"]["parameters"] == 109_514_298 - (30_522 - 31_102) * per_entry
        assert result["student"]["parameters"] == 66_985_530 - (30_522 - 31_102) * per_entry
    else:
        assert sizes == [teacher, student]
    assert result["student"]["layer_map"] == [0, 2, 4, 7, 9, 11]
    assert result["student"]["num_layers"] == 6


def test_the_page_for_people_says_the_same(tmp_path, capsys, monkeypatch):
    """The table holds the sizes, and each estimate names its machine and its source."""
    write_shape(tmp_path / "teacher", GPT2Config())
    page = check(capsys, monkeypatch, "distilgpt2", "--set", f"teacher={tmp_path / 'teacher'}")
    for part in (
        "distilgpt2 is valid",
        "124.4 M",
        "81.9 M",
        "66%",
        "layer map: [0, 2, 4, 7, 9, 11]",
    ):
        assert part in page
    assert "of the speed of a matrix product" in page
    assert "vendor's figures" in page


def test_other_machines_are_no_news_of_a_run_of_a_second(tmp_path, capsys, monkeypatch):
    """And no micro-batch is larger than the step."""
    write_shape(tmp_path / "teacher", GPT2Config())
    settings = ("distillation.max_tokens=51200", "distillation.tokens_per_step=1024")
    given = [part for setting in settings for part in ("--set", setting)]
    page = check(
        capsys, monkeypatch, "distilgpt2", "--set", f"teacher={tmp_path / 'teacher'}", *given
    )
    assert "vendor's figures" not in page
    assert "on this machine" in page
    assert "a step: 1,024 tokens in micro-batches of 1,024" in page


FAMILIES = {
    "bert": BertConfig(),
    "distilbert": DistilBertConfig(),
    "roberta": RobertaConfig(vocab_size=50265, max_position_embeddings=514, num_hidden_layers=6),
    "gpt2": GPT2Config(n_layer=6),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_glue_is_for_a_model_of_any_family(tmp_path, capsys, monkeypatch, family):
    """All nine tasks, by the name of one model."""
    write_shape(tmp_path / "model", FAMILIES[family])
    output = check(capsys, monkeypatch, "glue", "--set", f"teacher={tmp_path / 'model'}", "--json")
    tasks = json.loads(output)["tasks"]
    names = {"cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"}
    assert set(tasks) == names
    assert {
        facts["model_type"] for task in tasks.values() for facts in task["models"].values()
    } == {family}


@pytest.mark.parametrize(
    ("recipe", "task"),
    [
        ("distilbert-base-cased-distilled-squad", "squad"),
        ("xnli", "xnli"),
        ("germeval-ner", "germeval"),
    ],
)
def test_the_published_task_models_have_their_recipes(tmp_path, capsys, monkeypatch, recipe, task):
    """A BERT-base teacher, and a DistilBERT of six layers alone and under it."""
    write_shape(tmp_path / "teacher", BertConfig())
    write_shape(tmp_path / "student", DistilBertConfig())
    monkeypatch.chdir(tmp_path)
    for split in ("train", "dev", "test"):
        file = tmp_path / "data" / "germeval2014" / f"NER-de-{split}.tsv"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("1\tIn\tO\tO\n2\tBern\tB-LOC\tO\n\n" * 32)
    settings = ["--set", f"teacher={tmp_path / 'teacher'}"]
    for model in ("student", "distilled"):
        start = f"finetuning.{task}.models.{model}.start={tmp_path / 'student'}"
        settings += ["--set", start]
    models = json.loads(check(capsys, monkeypatch, recipe, *settings, "--json"))["tasks"][task][
        "models"
    ]
    assert [(facts["num_layers"], facts["teacher"]) for facts in models.values()] == [
        (12, None), (6, None), (6, "teacher"),
    ]  # fmt: skip
    page = check(capsys, monkeypatch, recipe, *settings)
    assert f"{recipe} is valid" in page
    assert "distilled" in page


def test_a_task_that_cannot_be_is_found(tmp_path, capsys, monkeypatch):
    """A file that is not there, a layer that is not, before anything runs."""
    write_shape(tmp_path / "teacher", BertConfig())
    (tmp_path / "a.tsv").touch()
    data = f"{{train: {tmp_path / 'a.tsv'}, validation: {tmp_path / 'a.tsv'}}}"
    for task, message in (
        ("{task: sst2, data: {train: no.tsv, validation: no.tsv}, models: {a: {start: teacher}}}",
         "there is no file 'no.tsv'"),
        (f"{{task: sst2, data: {data}, models: {{a: {{start: teacher, layer_map: [12]}}}}}}",
         r"finetuning.t.models.a.layer_map names teacher layers [12]"),
        (f"{{task: {{kind: sst2, max_length: 600}}, data: {data}, "
         "models: {a: {start: teacher}}}",
         "length is 600 tokens, but the start of a takes 512"),
    ):  # fmt: skip
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(f"teacher: {tmp_path / 'teacher'}\nfinetuning: {{t: {task}}}\n")
        monkeypatch.setattr(sys, "argv", ["stillhouse", "check", str(recipe)])
        assert _run() in (2, 3)
        assert message in capsys.readouterr().err


def test_a_teacher_trained_here_is_sized_from_its_description(tmp_path, capsys, monkeypatch):
    """No folder is needed; the vocabulary is the one that will be trained."""
    recipe = tmp_path / "here.yaml"
    recipe.write_text(
        "teacher: {family: gpt2, num_layers: 4, hidden_size: 32, num_heads: 2}\n"
        "corpus: {source: sample}\n"
        "tokens: {tokenizer: {train: byte_bpe, vocabulary_size: 400}, sequence_length: 64}\n"
        "distillation: {max_tokens: 1000}\n",
        encoding="utf-8",
    )
    result = json.loads(check(capsys, monkeypatch, recipe, "--json"))
    embeddings = (400 + 64) * 32
    layer = 12 * 32 * 32 + 13 * 32
    assert result["teacher"]["parameters"] == embeddings + 4 * layer + 2 * 32
    assert result["student"]["parameters"] == embeddings + 2 * layer + 2 * 32
    assert result["tokens"] == 1000
    assert all(estimate["seconds"] > 0 for estimate in result["estimates"])


def test_the_relation_term_has_its_cost(tmp_path, capsys, monkeypatch):
    """Three kinds of 768 numbers against 1,024 positions, forward in both and twice back in one."""
    write_shape(tmp_path / "teacher", GPT2Config())
    settings = ["--set", f"teacher={tmp_path / 'teacher'}", "--json"]
    plain = json.loads(check(capsys, monkeypatch, "distilgpt2", *settings))
    settings += ["--set", "distillation.losses.relation={weight: 1}"]
    costs = json.loads(check(capsys, monkeypatch, "distilgpt2", *settings))
    added = 2 * 3 * 1024 * 768 * (3 + 1)
    assert costs["flops_per_token"]["relation"] == added
    for key, value in plain["flops_per_token"].items():
        assert costs["flops_per_token"][key] == (added if key == "relation" else value)


def test_a_relation_that_the_models_cannot_have_is_found(tmp_path, capsys, monkeypatch):
    """Before anything runs, from the configurations alone."""
    write_shape(tmp_path / "teacher", GPT2Config())
    term = "distillation.losses.relation={weight: 1, teacher_layer: 12}"
    arguments = ["--set", f"teacher={tmp_path / 'teacher'}", "--set", term]
    monkeypatch.setattr(sys, "argv", ["stillhouse", "check", "distilgpt2", *arguments])
    assert _run() == 2
    assert "teacher_layer is 12, but the teacher has layers 0 to 11" in capsys.readouterr().err


def test_a_teacher_cache_takes_the_teacher_out_of_the_step(tmp_path, capsys, monkeypatch):
    """32 tokens of 2 + 2 bytes and one number of 4 a row; no teacher in the step or its memory."""
    write_shape(tmp_path / "teacher", GPT2Config())
    settings = ["--set", f"teacher={tmp_path / 'teacher'}", "--json"]
    settings += ["--set", "distillation.losses.hidden_cosine.weight=0"]
    live = json.loads(check(capsys, monkeypatch, "distilgpt2", *settings))
    settings += ["--set", "distillation.teacher_outputs={cache: sampled, size: 32}"]
    cached = json.loads(check(capsys, monkeypatch, "distilgpt2", *settings))
    assert live["teacher_cache"] is None
    assert cached["teacher_cache"]["bytes_per_row"] == 32 * (2 + 2) + 4
    costs = live["flops_per_token"]
    teacher = costs.pop("teacher_body") + costs.pop("teacher_head")
    assert cached["teacher_cache"]["flops_per_token"] == teacher
    assert cached["flops_per_token"] == costs
    assert "teacher cache" in [part["name"] for part in cached["time"]["parts"]]
    assert cached["step"]["teacher_bytes"] == 0 < live["step"]["teacher_bytes"]


def test_losses_temperature_and_a_step_above_max_tokens_are_named(tmp_path, capsys, monkeypatch):
    """The losses of the recipe, and one that --set adds to them."""
    write_shape(tmp_path / "teacher", GPT2Config())
    settings = ["distillation.losses.jsd.weight=2", "distillation.max_tokens=1000"]
    settings.append(f"teacher={tmp_path / 'teacher'}")
    arguments = [part for key in settings for part in ("--set", key)]
    page = check(capsys, monkeypatch, "distilgpt2", *arguments)
    assert "soft_target (weight 5.0, rows all), language_modeling (weight 2.0)" in page
    assert "jsd (weight 2.0, rows all, beta 0.5)" in page
    assert "temperature 2.0" in page
    assert "distillation trains on 1,000 tokens, less than one step of 524,288" in page


def test_errors_of_stages_name_the_recipe(tmp_path, capsys, monkeypatch):
    """As those of its parser do."""
    write_shape(tmp_path / "teacher", GPT2Config())
    arguments = ["--set", f"teacher={tmp_path / 'teacher'}", "--set", "student.layer_map=30"]
    monkeypatch.setattr(sys, "argv", ["stillhouse", "check", "distilgpt2", *arguments])
    assert _run() == 2
    assert "error: distilgpt2: student.layer_map asks for 30" in capsys.readouterr().err


def test_check_writes_nothing(tmp_path, capsys, monkeypatch):
    """Asking costs nothing and leaves nothing behind."""
    write_shape(tmp_path / "teacher", GPT2Config())
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    check(capsys, monkeypatch, "distilgpt2", "--set", f"teacher={tmp_path / 'teacher'}", "--json")
    assert sorted(Path().resolve().rglob("*")) == before


def test_embeddings_that_the_student_does_not_have_cannot_be_frozen(tmp_path, capsys, monkeypatch):
    """A DistilBERT student has no token types; the mistake is found before anything runs."""
    write_shape(tmp_path / "teacher", BertConfig())
    settings = (f"teacher={tmp_path / 'teacher'}", "student.freeze=[token_type_embeddings]")
    arguments = [part for key in settings for part in ("--set", key)]
    monkeypatch.setattr(sys, "argv", ["stillhouse", "check", "distilbert-base-uncased", *arguments])
    assert _run() == 2
    assert "token_type_embeddings" in capsys.readouterr().err


def test_a_projection_of_hidden_states_is_counted(tmp_path, capsys, monkeypatch):
    """Where the student's hidden size is not its teacher's; heads of GPT-2 follow."""
    write_shape(tmp_path / "teacher", GPT2Config())
    settings = (f"teacher={tmp_path / 'teacher'}", "student.hidden_size=384")
    arguments = [part for key in settings for part in ("--set", key)]
    result = json.loads(check(capsys, monkeypatch, "distilgpt2", *arguments, "--json"))
    assert result["student"]["hidden_size"] == 384
    assert result["hidden_projection"] == 384 * 768
    assert result["flops_per_token"]["hidden_projection"] == 3 * 2 * 384 * 768
    page = check(capsys, monkeypatch, "distilgpt2", *arguments)
    assert "a learned projection of 294,912 parameters" in page


def test_all_trainings_have_their_time(tmp_path, capsys, monkeypatch):
    """Teacher, cut, student and controls, of every seed; the length of a step, and what shortens
    it."""
    recipe = tmp_path / "here.yaml"
    recipe.write_text(
        "seed: [0, 1]\n"
        "teacher: {family: gpt2, num_layers: 4, hidden_size: 32, num_heads: 2,\n"
        "  training: {max_tokens: 1000}}\n"
        "corpus: {source: sample}\n"
        "tokens: {tokenizer: {train: byte_bpe, vocabulary_size: 400}, sequence_length: 64}\n"
        "distillation: {max_tokens: 1000, control: both, tokens_per_step: 1_000_000_000}\n",
        encoding="utf-8",
    )
    result = json.loads(check(capsys, monkeypatch, recipe, "--json"))
    seconds = result["training_seconds"]
    assert set(seconds) == {"teacher", "student", "control", "control_same_time"}
    assert seconds["control"] < seconds["student"] == seconds["control_same_time"]
    parts = {part["name"]: part["seconds"] for part in result["time"]["parts"]}
    assert " ".join(parts) == "teacher init student control control_same_time evaluation"
    assert "evaluation" in result["time"]["not_estimated"]  # the vocabulary is still to be trained
    assert parts["init"] > 0
    known = parts["init"] + sum(seconds.values())
    assert result["time"]["seconds"] == pytest.approx(known, rel=1e-9)
    page = check(capsys, monkeypatch, recipe)
    assert "student: 1 step, each about " in page
    assert "lower distillation.tokens_per_step for shorter steps" in page
    assert "power of this machine: unknown" in page
