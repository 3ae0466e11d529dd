"""`stillhouse compare`: models side by side on one text, without a run."""

import json
import math
import re
import sys

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

from stillhouse.__main__ import _run
from stillhouse.evaluation.compare import SAMPLE_FRACTION, print_comparison
from stillhouse.models.load import save_model
from stillhouse.recipe_file import load_recipe
from stillhouse.tokens.tokenizer_training import train_tokenizer

pytestmark = pytest.mark.e2e  # peak memory is measured in processes of their own

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


def compare(capsys, monkeypatch, *arguments, columns=200):
    monkeypatch.setenv("COLUMNS", str(columns))
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


def test_progress_goes_to_stderr_and_json_stays_alone(tmp_path, text, capsys, monkeypatch):
    """What is being measured is said while it is, and stdout parses."""
    model = make_causal(tmp_path / "model", 1)
    code, out, err = compare(capsys, monkeypatch, model, "--text", text, "--json")
    assert code == 0
    json.loads(out)
    for said in ("quality of", "0 s left", "speed, forward passes", "speed, generation", "memory"):
        assert said in err


def test_the_table_is_readable_on_80_columns(tmp_path, text, capsys, monkeypatch):
    """Of three models with long names, each number is on one line, and the text is named."""
    models = [make_causal(tmp_path / f"model-number-{n}", n) for n in (1, 2, 3)]
    code, out, _ = compare(capsys, monkeypatch, *models, "--text", text, columns=80)
    assert code == 0
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80
    rows = [line for line in lines if "Perplexity per token " in line]
    assert len(rows) == 2  # two tables, the first model in both
    numbers = [re.findall(r"\d+\.\d+(?=\N{MULTIPLICATION SIGN}\)|\s)", row) for row in rows]
    assert [len(found) for found in numbers] == [3, 3]
    said = " ".join("".join(lines[:6]).split())
    assert "1 document," in said
    assert "in blocks of 32 tokens" in said


def test_the_difference_to_the_first_model_has_an_interval(tmp_path, text, capsys, monkeypatch):
    """Models that read the same tokens are compared block by block."""
    text.write_text(TEXT * 5)
    models = [make_causal(tmp_path / str(seed), 1, seed=seed) for seed in (0, 1)]
    code, out, _ = compare(capsys, monkeypatch, *models, "--text", text, "--json")
    assert code == 0
    first, second = json.loads(out)["models"].values()
    found = second["loss_minus_first"]
    assert found["value"] == pytest.approx(second["validation_loss"] - first["validation_loss"])
    assert found["low"] < found["value"] < found["high"]
    assert first["loss_minus_first"] is None


def test_diverged_model_is_reported_and_the_others_are_measured(
    tmp_path, text, capsys, monkeypatch
):
    """Weights of NaN, or of 1e5: no crash, no number that hides it."""
    models = [make_causal(tmp_path / name, 1) for name in ("good", "nan", "huge")]
    for folder, factor in zip(models[1:], (math.nan, 1e5), strict=True):
        model = GPT2LMHeadModel.from_pretrained(folder)
        with torch.no_grad():
            model.transformer.wte.weight.mul_(factor)
        model.save_pretrained(folder)
    code, out, err = compare(capsys, monkeypatch, *models, "--text", text, "--json")
    assert code == 0, err
    found = json.loads(out)["models"]
    assert [model["diverged"] for model in found.values()] == [False, True, True]
    assert [model["perplexity"]["token"] is None for model in found.values()] == [False, True, True]
    code, out, _ = compare(capsys, monkeypatch, *models, "--text", text)
    assert code == 0
    assert "training diverged, or its weights are damaged" in " ".join(out.split())


def test_the_sample_text_is_what_quickstart_holds_out():
    """A student of quickstart is not scored on what it was trained on."""
    assert load_recipe("quickstart")[1].text.validation_fraction == SAMPLE_FRACTION


def test_masked_models_are_compared_by_their_loss(tmp_path, text, capsys, monkeypatch):
    """The table for people: one row, a masked loss near that of a guess, no perplexity."""
    code, out, err = compare(capsys, monkeypatch, make_masked(tmp_path / "m"), "--text", text)
    assert code == 0, err
    assert "Masked loss" in " ".join(out.split())


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


@pytest.mark.parametrize("tokens", [90, 100])
def test_losses_per_token_of_other_tokens_are_not_compared_unsaid(capsys, tokens):
    models = {
        name: {"perplexity": {"tokens_scored": number}, "diverged": False, "loss_minus_first": None}
        for name, number in (("whole", 90), ("trimmed", tokens))
    }
    print_comparison({"text": "a text", "protocol": {"perplexity_block": 8}, "models": models})
    assert ("per word and per byte" in capsys.readouterr().out) == (tokens == 100)
