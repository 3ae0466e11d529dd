"""`stillhouse compare`: models side by side on one text, without a run."""

import json
import math
import sys

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

from stillhouse.__main__ import _run
from stillhouse.families import save_model
from stillhouse.tokens.tokenizer_training import train_tokenizer

TEXT = "The still turns what is thin into what is strong, drop by drop, and then once more.\n" * 9


def make_causal(folder, num_layers, *, seed=0):
    tokenizer = train_tokenizer("byte_bpe", 300, iter([TEXT]), "causal")
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=300, n_positions=32, n_embd=16, n_layer=num_layers, n_head=2,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    save_model(GPT2LMHeadModel(config), tokenizer, folder)
    return folder


def make_masked(folder):
    tokenizer = train_tokenizer("wordpiece", 60, iter([TEXT]), "masked")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=32, pad_token_id=0,
    )  # fmt: skip
    save_model(BertForMaskedLM(config), tokenizer, folder)
    return folder


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def compare(capsys, monkeypatch, *arguments):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", ["stillhouse", "compare", *map(str, arguments)])
    code = _run()
    return code, *capsys.readouterr()


def test_models_are_measured_on_the_same_text(tmp_path, text, capsys, monkeypatch):
    """Size, speed, memory and perplexity of each, as JSON that parses."""
    models = [make_causal(tmp_path / "teacher", 2), make_causal(tmp_path / "student", 1)]
    code, out, err = compare(capsys, monkeypatch, *models, "--text", text, "--json")
    assert code == 0, err
    result = json.loads(out)
    assert result["text"] == str(text)
    assert list(result["models"]) == list(map(str, models))
    teacher, student = result["models"].values()
    layer = 12 * 16 * 16 + 13 * 16
    assert teacher["parameters"] - student["parameters"] == layer
    for model in (teacher, student):
        quality = model["perplexity"]
        assert quality["bytes"] == len(TEXT.encode())
        assert quality["words"] == len(TEXT.split())
        total = math.log(quality["token"]) * quality["tokens_scored"]
        assert quality["bits_per_byte"] == pytest.approx(total / math.log(2) / quality["bytes"])
        assert model["speed"]["forward_tokens_per_second"] > 0
        assert 50e6 < model["peak_memory_bytes"] < 5e9
        assert model["masked_loss"] is None


def test_masked_models_are_compared_by_their_loss(tmp_path, text, capsys, monkeypatch):
    """The table for people: one row, a masked loss near that of a guess, no perplexity."""
    code, out, err = compare(capsys, monkeypatch, make_masked(tmp_path / "m"), "--text", text)
    assert code == 0, err
    assert "masked loss" in " ".join(out.split())


def test_causal_and_masked_models_are_not_compared(tmp_path, text, capsys, monkeypatch):
    """They have no common measure: exit code 4."""
    models = [make_causal(tmp_path / "causal", 1), make_masked(tmp_path / "masked")]
    code, _, err = compare(capsys, monkeypatch, *models, "--text", text)
    assert code == 4
    assert "no common measure of quality" in err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "There is no text file"),
        (b"", "holds no words to score"),
        (b"\xe9t\xe9 na\xefve", "is not UTF-8"),
    ],
)
def test_a_text_that_cannot_be_scored(tmp_path, text, capsys, monkeypatch, content, message):
    """Exit code 3 and the file's name."""
    text.unlink() if content is None else text.write_bytes(content)
    model = make_causal(tmp_path / "model", 1)
    code, _, err = compare(capsys, monkeypatch, model, "--text", text)
    assert code == 3
    assert message in err
    assert "text.txt" in err
