"""`check` and `run` reject the same recipes, with the same message, before anything is written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.model_shapes import write_shape, write_words
from tests.pipeline.tiny_run import call, refused, write_text
from transformers import BertConfig, GPT2Config

pytestmark = pytest.mark.e2e

GPT2 = GPT2Config(vocab_size=320, n_positions=32, n_embd=16, n_layer=3, n_head=2)
BERT = BertConfig(
    vocab_size=320, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
    intermediate_size=32, max_position_embeddings=32,
)  # fmt: skip
RECIPE = """
teacher: teacher
corpus: {source: text.txt, documents: per_line, validation_fraction: 0.1}
tokens: {language_modeling: causal, sequence_length: 32}
student: {layer_map: 2}
distillation: {tokens_per_step: 256, max_tokens: 1024}
"""
TASKS = """
teacher: bert
finetuning:
  t:
    task: {kind: classification, labels: [a, b], max_length: 16}
    data: {train: a.jsonl, validation: a.jsonl}
    models: {one: {start: teacher}, two: {start: teacher, teacher: one}}
    training: {examples_per_step: 2}
"""


def only_a_pickle() -> None:
    Path("teacher/model.safetensors").rename("teacher/pytorch_model.bin")


def no_masked_head() -> None:
    shutil.rmtree("bert")
    write_shape(Path("bert"), BERT, "BertModel")


def cut_weights() -> None:
    content = Path("teacher/model.safetensors").read_bytes()
    Path("teacher/model.safetensors").write_bytes(content[:-10])


def other_shape() -> None:
    config = json.loads(Path("teacher/config.json").read_text())
    Path("teacher/config.json").write_text(json.dumps(config | {"n_embd": 32}))


def no_tokenizer() -> None:
    for path in Path("teacher").glob("tokenizer*"):
        path.unlink()


def no_end_of_text() -> None:
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = Path("teacher", name)
        if path.exists():
            settings = json.loads(path.read_text())
            kept = {k: v for k, v in settings.items() if k not in ("bos_token", "eos_token")}
            path.write_text(json.dumps(kept))


def other_words() -> None:
    write_words(Path("teacher"), 400)


def empty_folder() -> None:
    Path("nothing").mkdir()


def nothing() -> None: ...


def latin_text() -> None:
    Path("score.txt").write_bytes(b"caf\xe9")


MASKED = "tokens.language_modeling=masked"
BAD: list[tuple[Callable[[], object], list[str], int, str]] = [
    # what `check` let pass once
    (nothing, ["distillation.control=same_time"], 2, "same_time, which needs .*Set it to both"),
    (nothing, ["corpus.source=absent"], 3, "No file matches corpus.source 'absent'"),
    (empty_folder, ["corpus.source=nothing"], 3, "The folder nothing holds no file"),
    (nothing, ["corpus.source=[text.txt, absent.txt]"], 3, "No file matches .*absent.txt"),
    (no_masked_head, ["teacher=bert", MASKED], 4, "bert is a BertModel: it has no masked language"),
    (only_a_pickle, [], 4, "has only pytorch_model.bin"),
    (lambda: Path("teacher/model.safetensors").unlink(), [], 4, "has no weights"),
    (cut_weights, [], 4, "weights in teacher cannot be loaded"),
    (other_shape, [], 4, "not a complete GPT2LMHeadModel: .*of another shape"),
    (no_tokenizer, [], 3, "okenizer"),
    (no_end_of_text, [], 3, "The tokenizer has no end_of_text token"),
    (other_words, [], 4, "has token ids up to 399, but its model's embeddings end at 319"),
    (nothing, ["student.weights=absent"], 4, "student.weights is absent, which is neither"),
    (nothing, ["student.weights=teacher2"], 4, "is not the student this recipe describes"),
    (nothing, ["evaluation.perplexity=[validation, no.txt]"], 3, "There is no text file no.txt"),
    (latin_text, ["evaluation.perplexity=[score.txt]"], 3, "score.txt is not UTF-8"),
    (nothing, ["teacher=bert", MASKED, "evaluation.perplexity=[text.txt]"], 2, "of causal models"),
    (nothing, ["evaluation.perplexity=[]"], 2, "evaluation.perplexity: .*at least 1"),
    # what both refused, each in its own words or at its own time
    (nothing, ["tokens.tokenizer=absent"], 3, "There is no tokenizer at absent"),
    (nothing, ["tokens.tokenizer={train: byte_bpe}"], 2, "the teacher already has one"),
    (nothing, ["student.freeze=[token_type_embeddings]"], 2, "token_type_embeddings, which a gpt2"),
    (nothing, ["tokens.sequence_length=64"], 2, "the teacher has 32 positions"),
    (nothing, ["teacher=bert"], 2, "the teacher is a bert model, which does masked"),
    (nothing, ["teacher=absent/a/b"], 4, "no such folder"),
    (nothing, ["teacher={start: absent/a/b}"], 4, "no such folder"),
    (only_a_pickle, ["teacher={start: teacher}"], 4, "has only pytorch_model.bin"),
    (nothing, ["student.layer_map=9"], 2, "the teacher has 3"),
    (nothing, ["distillation.losses.relation={weight: 1, heads: 3}"], 2, "relation.heads is 3"),
    (nothing, [f"corpus.source={'x' * 5000}"], 3, "corpus.source 'xxx.*File name too long"),
    (nothing, [f"teacher={'x' * 5000}"], 4, "is not a model folder|no model of that name"),
    (nothing, ['corpus.source="a\\0b"'], 2, "corpus.source contains a NUL character"),
]
BAD_TASKS: list[tuple[Callable[[], object], list[str], int, str]] = [
    (nothing, ["finetuning.t.data.train=no.tsv"], 3, "t.data.train: there is no file 'no.tsv'"),
    (nothing, [f"finetuning.t.data.train={'x' * 5000}"], 3, "t.data.train: there is no file"),
    (nothing, ["finetuning.t.models.two.start=absent/a/b"], 4, "no such folder"),
    (nothing, ["finetuning.t.models.two.teacher=bert"], 2, "which was not made for class"),
    (
        nothing,
        ["finetuning.t.task.max_length=64"],
        2,
        "max_length is 64 tokens, but the start of one",
    ),
    (nothing, ["finetuning.t.models.one.layer_map=[5]"], 2, "names teacher layers .5."),
    (nothing, ["finetuning.t.models.two.start=gpt2"], 2, "another tokenizer than the student"),
    (
        lambda: Path("bert/model.safetensors").rename("bert/pytorch_model.bin"),
        [],
        4,
        "has only pytorch_model.bin",
    ),
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: complete teachers, a text, data of a task."""
    monkeypatch.chdir(tmp_path)
    write_shape(tmp_path / "teacher", GPT2)
    write_shape(tmp_path / "teacher2", GPT2)
    write_shape(tmp_path / "bert", BERT)
    write_shape(tmp_path / "gpt2", GPT2Config(**{**GPT2.to_dict(), "vocab_size": 350}))
    write_text(tmp_path / "text.txt")
    rows = [{"text": f"{label} text", "label": label} for label in "abab"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def both_refuse(folder: Path, recipe: str, settings: list[str], code: int, message: str) -> None:
    path = folder / "own.yaml"
    path.write_text(recipe)
    overrides = [part for setting in settings for part in ("--set", setting)]
    offline = ["--offline"] if any("teacher=xxx" in setting for setting in settings) else []
    found = [call(command, path, *overrides, *offline) for command in ("check", "run")]
    for outcome in found:
        refused(outcome, code, message)
    assert found[0].err == found[1].err
    assert not (folder / "runs").exists()


@pytest.mark.parametrize(
    ("spoil", "settings", "code", "message"), BAD, ids=[case[3][:50] for case in BAD]
)
def test_check_and_run_reject_the_same_recipes(folder, spoil, settings, code, message):
    """One message, one exit code, and no run folder."""
    spoil()
    both_refuse(folder, RECIPE, settings, code, message)


@pytest.mark.parametrize(
    ("spoil", "settings", "code", "message"), BAD_TASKS, ids=[case[3][:50] for case in BAD_TASKS]
)
def test_check_and_run_reject_the_same_task_recipes(folder, spoil, settings, code, message):
    """The same for a recipe whose models are fine-tuned on a task."""
    spoil()
    both_refuse(folder, TASKS, settings, code, message)


def test_complete_inputs_pass(folder):
    """The recipes that the cases above damage are valid."""
    for recipe in (RECIPE, TASKS):
        path = folder / "own.yaml"
        path.write_text(recipe)
        outcome = call("check", path)
        assert outcome.code == 0, outcome.err
