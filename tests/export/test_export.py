"""Models in the formats of other engines: loaded there, they say the same."""

import json
import sys
from typing import Any

import gguf
import numpy as np
import onnx
import pytest
import torch
from tests.task_models import make_task_folder
from transformers import AutoModelForCausalLM

import stillhouse
from stillhouse.__main__ import _run
from stillhouse.errors import ModelError
from stillhouse.export.export import export_model
from stillhouse.families import load_model, resolve_folder, save_model
from stillhouse.tokens.tokenizer import load_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.mark.parametrize(
    ("to", "precision", "allowed"),
    [
        ("ctranslate2", "fp32", 1e-4),
        ("ctranslate2", "int8", 0.01),
        ("gguf", "fp32", 1e-5),
        ("gguf", "fp16", 1e-3),
        ("gguf", "int8", 0.01),
    ],
)
def test_a_causal_model_comes_out_the_same(tmp_path, to, precision, allowed):
    """By its perplexity on the sample text; in float32 also by every token of a greedy text."""
    found = export_model("sample", to, tmp_path / "out", precision=precision)
    parity = found["parity"]
    assert abs(parity["perplexity_change"]) < allowed
    assert parity["tokens_compared"] > 500
    if precision == "fp32":
        assert parity["largest_difference_nats"] < 1e-3
        assert parity["same_first_tokens"] == parity["of_generated_tokens"]
    assert json.loads((tmp_path / "out" / "export.json").read_text())["format"] == to
    if to == "ctranslate2":
        assert found["speed"]["tokens_per_second"] > 0


def test_a_gguf_file_holds_the_weights_and_the_tokenizer(tmp_path):
    """Read back by its own package: every number, every token, every merge."""
    export_model("sample", "gguf", tmp_path / "out", precision="fp32")
    reader = gguf.GGUFReader(tmp_path / "out" / "model.gguf")
    tensors = {each.name: np.array(each.data) for each in reader.tensors}
    loaded = stillhouse.load("sample")
    model: Any = loaded.model.base_model
    assert np.array_equal(tensors["token_embd.weight"], model.wte.weight.detach().numpy())
    weight = model.h[2].attn.c_attn.weight.detach().numpy()
    assert np.array_equal(tensors["blk.2.attn_qkv.weight"], weight.T)
    assert np.array_equal(tensors["output_norm.bias"], model.ln_f.bias.detach().numpy())
    assert len(tensors) == 2 + 12 * len(model.h) + 2
    tokens = reader.fields["tokenizer.ggml.tokens"]
    assert tokens.contents() == loaded.tokenizer.convert_ids_to_tokens(
        list(range(len(loaded.tokenizer)))
    )
    state = json.loads(loaded.tokenizer.backend_tokenizer.to_str())["model"]
    assert len(reader.fields["tokenizer.ggml.merges"].contents()) == len(state["merges"])


def test_an_encoder_with_real_weights_comes_out_the_same_in_onnx(tmp_path):
    found = export_model("minilm", "onnx", tmp_path / "out")
    (error,) = found["parity"]["relative_error"].values()
    assert error < 1e-5
    onnx.checker.check_model(str(tmp_path / "out" / "model.onnx"))
    assert found["speed"]["tokens_per_second"] > 0


def test_an_encoder_with_real_weights_comes_out_the_same_in_ctranslate2(tmp_path):
    found = export_model("minilm", "ctranslate2", tmp_path / "out", precision="fp32")
    assert found["parity"]["relative_error"]["last_hidden_state"] < 1e-4


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta"])
@pytest.mark.parametrize(
    ("head", "settings", "outputs"),
    [
        ("SequenceClassification", {"num_labels": 3}, {"logits"}),
        ("QuestionAnswering", {}, {"start_logits", "end_logits"}),
    ],
)
def test_heads_of_tasks_are_written_as_onnx(tmp_path, family, head, settings, outputs):
    folder = make_task_folder(tmp_path / "model", family, head, **settings)
    found = export_model(str(folder), "onnx", tmp_path / "out")
    assert set(found["parity"]["relative_error"]) == outputs


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("sample", "--to", "onnx"), 4, "cannot be written as onnx: a model that continues text"),
        (("minilm", "--to", "gguf"), 4, "cannot be written as gguf: only GPT-2"),
        (("sample", "--to", "pt"), 2, "There is no format 'pt'; choose from ctranslate2, gguf"),
        (("sample", "--to", "gguf", "--precision", "int4"), 2, "gguf is not written in int4"),
    ],
)
def test_what_cannot_be_written_is_said_and_leaves_nothing(
    tmp_path, capsys, monkeypatch, arguments, code, message
):
    model, *rest = arguments
    target = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["stillhouse", "export", model, str(target), *rest])
    assert _run() == code
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_is_not_touched(tmp_path, capsys, monkeypatch):
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(
        sys, "argv", ["stillhouse", "export", "sample", str(tmp_path / "out"), "--to", "gguf"]
    )
    assert _run() == 2
    assert "is there already" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())


def test_a_model_that_does_not_come_out_the_same_is_not_kept(tmp_path):
    """Weights that eight bits do not hold: a few are a thousand times the others."""
    source = resolve_folder("sample", offline=True)
    _, model = load_model(source)
    with torch.no_grad():
        for block in model.transformer.h:  # pyright: ignore
            block.attn.c_attn.weight[:, 0] *= 3_000
            block.mlp.c_fc.weight[0] *= 300
    save_model(model, load_tokenizer(source), tmp_path / "spiked")
    with pytest.raises(ModelError, match=r"the perplexity of .* rises by"):
        export_model(str(tmp_path / "spiked"), "gguf", tmp_path / "out", precision="int8")
    assert not (tmp_path / "out").exists()


def test_a_gguf_file_is_a_checkpoint_of_transformers(tmp_path):
    export_model("sample", "gguf", tmp_path / "out", precision="fp32")
    own = stillhouse.load("sample").model
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", gguf_file="model.gguf", config=own.config
    )
    ids = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(
            model(input_ids=ids).logits, own(input_ids=ids).logits, atol=1e-4, rtol=1e-4
        )
