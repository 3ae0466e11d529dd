"""Models in the formats of other engines: loaded there, they say the same."""

import json
import re
import sys
from typing import Any

import ctranslate2
import gguf
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from tests.export.odd_models import ODD_MODELS, odd_model, parity_of
from tests.export.test_plain import make_loaded
from tests.pipeline.test_full_disk import small_files
from tests.pipeline.tiny_run import call, refused
from tests.task_models import make_task_folder
from transformers import AutoModelForCausalLM

import stillhouse
from stillhouse.__main__ import _run
from stillhouse.errors import ModelError
from stillhouse.export.export import export_model
from stillhouse.models.hub import resolve_folder
from stillhouse.models.load import load_model, save_model
from stillhouse.tokens.tokenizer import load_tokenizer

MASKED: Any = "MaskedLM"  # no head of a task
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]


@pytest.mark.parametrize(
    ("to", "precision", "allowed"),
    [
        ("ctranslate2", "fp32", 1e-4),
        ("ctranslate2", "int8", 0.01),
        ("gguf", "fp32", 1e-4),
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
        assert parity["largest_difference_nats"] < 2e-3
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


@pytest.mark.parametrize(
    "config",
    [
        {"activation_function": "relu"},
        {"activation_function": "gelu"},
        {"activation_function": "quick_gelu"},
        {"activation_function": "gelu_accurate"},
        {"layer_norm_epsilon": 0.05},
        {"scale_attn_weights": False},
        {"scale_attn_by_inverse_layer_idx": True},
    ],
    ids=str,
)
def test_keys_that_change_the_computation_are_carried_to_ctranslate2(tmp_path, config):
    model = odd_model(tmp_path / "model", **config)
    parity, _ = parity_of(model, "ctranslate2", tmp_path / "out")
    assert parity["largest_difference_nats"] < 1e-3
    assert parity["same_first_tokens"] == parity["of_generated_tokens"]


@pytest.mark.parametrize("name", ODD_MODELS)
def test_odd_models_come_out_the_same_in_ctranslate2(tmp_path, name):
    """Untied, padded, with added tokens, with end tokens in one file: as in llama.cpp."""
    model = ODD_MODELS[name](tmp_path / "model")
    parity, notes = parity_of(model, "ctranslate2", tmp_path / "out")
    assert parity["largest_difference_nats"] < 1e-3
    loaded = stillhouse.load(model)
    names = json.loads((tmp_path / "out" / "vocabulary.json").read_text())
    assert names == loaded.tokenizer.convert_ids_to_tokens(list(range(len(loaded.tokenizer))))
    settings = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert set(settings["eos_token_id"]) == loaded.end_ids
    assert ("end_token=" in "".join(notes)) == (len(loaded.end_ids) > 1)


@pytest.mark.parametrize("head", ["Body", "MaskedLM"])
@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta"])
def test_encoders_of_transformers_5_come_out_the_same_in_ctranslate2(tmp_path, family, head):
    """Pairs of texts too; the vocabulary of the second is padded."""
    folder = make_task_folder(tmp_path / "model", family, head)
    if head == "MaskedLM":
        _, model = load_model(folder)
        tokenizer = load_tokenizer(folder)
        model.resize_token_embeddings(len(tokenizer) + 28)
        save_model(model, tokenizer, folder)
    parity, _ = parity_of(folder, "ctranslate2", tmp_path / "out")
    assert parity["largest_row_error"]["last_hidden_state"] < 1e-4


def test_a_pooler_that_a_model_has_not_is_not_written(tmp_path):
    """BERT's masked model has none; random weights were written once."""
    folder = make_task_folder(tmp_path / "model", "bert", MASKED)
    export_model(str(folder), "ctranslate2", tmp_path / "out")
    found = ctranslate2.Encoder(str(tmp_path / "out")).forward_batch([[1, 2, 3]])
    assert found.pooler_output is None


def test_onnx_tells_a_first_text_from_a_second(tmp_path):
    """As BERT does, by token types; what a pair gives depends on them."""
    folder = make_task_folder(tmp_path / "model", "bert", "SequenceClassification", num_labels=3)
    export_model(str(folder), "onnx", tmp_path / "out")
    session: Any = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    loaded = stillhouse.load(folder)
    inputs = loaded.tokenizer("The still turns", "by the sea", return_tensors="np")
    inputs = {name: np.asarray(values, np.int64) for name, values in inputs.items()}
    assert {each.name for each in session.get_inputs()} == set(inputs)
    with torch.no_grad():
        tensors = {name: torch.from_numpy(values) for name, values in inputs.items()}
        right = loaded.model(**tensors).logits.numpy()
    (found,) = session.run(None, inputs)
    np.testing.assert_allclose(found, right, atol=1e-4)
    (without,) = session.run(None, inputs | {"token_type_ids": np.zeros_like(inputs["input_ids"])})
    assert np.abs(without - right).max() > 0.01


def test_onnx_has_no_logits_for_the_padding_of_a_vocabulary(tmp_path):
    folder = make_task_folder(tmp_path / "model", "roberta", MASKED)
    _, model = load_model(folder)
    tokenizer = load_tokenizer(folder)
    model.resize_token_embeddings(len(tokenizer) + 28)
    save_model(model, tokenizer, folder)
    export_model(str(folder), "onnx", tmp_path / "out")
    session: Any = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    assert session.get_outputs()[0].shape[-1] == len(tokenizer)


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
        (("sample", "--to", "onnx"), 4, "cannot be written as onnx: a causal model needs"),
        (("minilm", "--to", "gguf"), 4, "cannot be written as gguf: only decoders"),
        (("sample", "--to", "pt"), 2, "There is no format 'pt'; choose from ctranslate2, gguf"),
        (("sample", "--to", "gguf", "--precision", "int4"), 2, "gguf is not written in int4"),
        (("absent", "--to", "gguf", "--offline"), 7, "'absent' is not on this disk"),
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


@pytest.mark.parametrize(
    ("family", "message"),
    [
        (
            "olmo2",
            "of decoders this export writes gemma2, gemma3_text, gpt2, llama, mistral, phi3, "
            "qwen2, qwen3 as GGUF, and this is olmo2; convert the model with llama.cpp's "
            "convert_hf_to_gguf.py.",
        ),
        (
            "mistral",
            "its attention reads the last 7 of 64 positions, and llama.cpp reads all of them in "
            "this architecture; set max_position_embeddings in its config.json to 7, for texts up "
            "to that length.",
        ),
    ],
)
def test_decoders_that_gguf_does_not_hold_are_refused(tmp_path, family, message):
    loaded = make_loaded(family)
    save_model(loaded.model, loaded.tokenizer, tmp_path / family)
    outcome = call("export", tmp_path / family, tmp_path / "out", "--to", "gguf")
    refused(outcome, 4, re.escape(f"{family} cannot be written as gguf: {message}"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("model", "to"), [("sample", "gguf"), ("sample", "ctranslate2"), ("minilm", "onnx")]
)
def test_a_disk_that_fills_during_an_export(tmp_path, capsys, monkeypatch, model, to):
    """Exit code 6, nothing is kept, and the same command works once there is space."""
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["stillhouse", "export", model, str(out), "--to", to])
    with small_files(1_000_000):
        assert _run() == 6
    assert "The disk is full: writing" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert _run() == 0
    assert (out / "export.json").is_file()


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
    with pytest.raises(ModelError, match=r"the loss of .* changes by \+.* Take --precision fp32"):
        export_model(str(tmp_path / "spiked"), "gguf", tmp_path / "out", precision="int8")
    assert not (tmp_path / "out").exists()


def test_a_file_that_its_engine_has_not_read_says_so(tmp_path, capsys, monkeypatch):
    """Without llama.cpp the file is written, and nothing is claimed of it."""
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    monkeypatch.delitem(sys.modules, "stillhouse.models.llama_cpp", raising=False)
    monkeypatch.setattr(
        sys, "argv", ["stillhouse", "export", "sample", str(tmp_path / "out"), "--to", "gguf"]
    )
    assert _run() == 0
    printed = capsys.readouterr().out
    assert "Not compared with sample: xllamacpp, which reads the file, is not installed" in printed
    assert "Same" not in printed
    assert json.loads((tmp_path / "out" / "export.json").read_text())["parity"] is None


def test_a_library_that_is_missing_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    monkeypatch.delitem(sys.modules, "stillhouse.export.to_ctranslate2", raising=False)
    monkeypatch.setattr(
        sys,
        "argv",
        ["stillhouse", "export", "sample", str(tmp_path / "out"), "--to", "ctranslate2"],
    )
    assert _run() == 2
    assert "Export to ctranslate2 needs ctranslate2. Install the extra" in capsys.readouterr().err


def test_matrices_that_do_not_divide_into_blocks_are_said_to_stay_in_float32(tmp_path):
    """Eight bits come in blocks of 32; the smallest GPT-2 here has rows of 16 and 64."""
    loaded = make_loaded("gpt2")
    save_model(loaded.model, loaded.tokenizer, tmp_path / "model")
    found = export_model(str(tmp_path / "model"), "gguf", tmp_path / "out", precision="int8")
    assert any("stay in float32" in note for note in found["notes"])


def test_a_context_shorter_than_the_prompt_is_no_obstacle(tmp_path):
    source = resolve_folder("sample", offline=True)
    _, model = load_model(source)
    model.config.n_positions = 16
    model.transformer.wpe.weight = torch.nn.Parameter(model.transformer.wpe.weight[:16].clone())  # pyright: ignore
    save_model(model, load_tokenizer(source), tmp_path / "model")
    for to in ("gguf", "ctranslate2"):
        parity, _ = parity_of(tmp_path / "model", to, tmp_path / to)
        assert parity["of_generated_tokens"] == 8


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
