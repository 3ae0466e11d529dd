"""`stillhouse check`: what a recipe would make, from configurations alone."""

import json
import sys
from pathlib import Path

import pytest
from transformers import BertConfig, GPT2Config, RobertaConfig

from stillhouse.__main__ import _run

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
    config.save_pretrained(tmp_path / "teacher")
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
    GPT2Config().save_pretrained(tmp_path / "teacher")
    page = check(capsys, monkeypatch, "distilgpt2", "--set", f"teacher={tmp_path / 'teacher'}")
    for part in (
        "distilgpt2 is valid",
        "124.4 M",
        "81.9 M",
        "66%",
        "layer map: [0, 2, 4, 7, 9, 11]",
    ):
        assert part in page
    assert "matrix product measured now" in page
    assert "vendor's figures" in page


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
    GPT2Config().save_pretrained(tmp_path / "teacher")
    settings = ["--set", f"teacher={tmp_path / 'teacher'}", "--json"]
    plain = json.loads(check(capsys, monkeypatch, "distilgpt2", *settings))
    settings += ["--set", "distillation.losses.relation={weight: 1}"]
    costs = json.loads(check(capsys, monkeypatch, "distilgpt2", *settings))
    added = 3 * 1024 * 768 * (3 + 1)
    assert costs["multiply_adds_per_token"]["relation"] == added
    for key, value in plain["multiply_adds_per_token"].items():
        assert costs["multiply_adds_per_token"][key] == (added if key == "relation" else value)


def test_a_relation_that_the_models_cannot_have_is_found(tmp_path, capsys, monkeypatch):
    """Before anything runs, from the configurations alone."""
    GPT2Config().save_pretrained(tmp_path / "teacher")
    term = "distillation.losses.relation={weight: 1, teacher_layer: 12}"
    arguments = ["--set", f"teacher={tmp_path / 'teacher'}", "--set", term]
    monkeypatch.setattr(sys, "argv", ["stillhouse", "check", "distilgpt2", *arguments])
    assert _run() == 2
    assert "teacher_layer is 12, but the teacher has layers 0 to 11" in capsys.readouterr().err


def test_a_teacher_cache_takes_the_teacher_out_of_the_step(tmp_path, capsys, monkeypatch):
    """32 tokens of 2 + 2 bytes and one number of 4 a row; no teacher in the step or its memory."""
    GPT2Config().save_pretrained(tmp_path / "teacher")
    settings = ["--set", f"teacher={tmp_path / 'teacher'}", "--json"]
    settings += ["--set", "distillation.losses.hidden_cosine.weight=0"]
    live = json.loads(check(capsys, monkeypatch, "distilgpt2", *settings))
    settings += ["--set", "distillation.teacher_outputs={cache: sampled, size: 32}"]
    cached = json.loads(check(capsys, monkeypatch, "distilgpt2", *settings))
    assert live["teacher_cache"] is None
    assert cached["teacher_cache"]["bytes_per_row"] == 32 * (2 + 2) + 4
    costs = live["multiply_adds_per_token"]
    teacher = costs.pop("teacher_body") + costs.pop("teacher_head")
    assert cached["teacher_cache"]["multiply_adds_per_token"] == teacher
    assert cached["multiply_adds_per_token"] == costs
    assert cached["step"]["teacher_bytes"] == 0 < live["step"]["teacher_bytes"]


def test_check_writes_nothing(tmp_path, capsys, monkeypatch):
    """Asking costs nothing and leaves nothing behind."""
    GPT2Config().save_pretrained(tmp_path / "teacher")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    check(capsys, monkeypatch, "distilgpt2", "--set", f"teacher={tmp_path / 'teacher'}", "--json")
    assert sorted(Path().resolve().rglob("*")) == before


def test_embeddings_that_the_student_does_not_have_cannot_be_frozen(tmp_path, capsys, monkeypatch):
    """A DistilBERT student has no token types; the mistake is found before anything runs."""
    BertConfig().save_pretrained(tmp_path / "teacher")
    settings = (f"teacher={tmp_path / 'teacher'}", "student.freeze=[token_type_embeddings]")
    arguments = [part for key in settings for part in ("--set", key)]
    monkeypatch.setattr(sys, "argv", ["stillhouse", "check", "distilbert-base-uncased", *arguments])
    assert _run() == 2
    assert "token_type_embeddings" in capsys.readouterr().err
