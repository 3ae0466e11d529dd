"""Decoders of the Llama type as GGUF files: in llama.cpp the same tokens and probabilities, and the
same tokenizer, chat template and end tokens."""

import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tests.byte_fallback import trained_sentencepiece
from tests.models.gguf_files import (
    metadata_of,
    sample_tokenizer,
    sentencepiece_metadata,
    tensors_of,
    tiny,
    write,
)

import stillhouse
from stillhouse.errors import ModelError
from stillhouse.export.export import export_model
from stillhouse.inference.causal_lm import CausalLM
from stillhouse.models.from_gguf import read, tokenizer
from stillhouse.models.llama_cpp import LlamaCpp
from stillhouse.models.load import load_model, save_model
from stillhouse.models.vocabulary import keep_tokens
from stillhouse.student.initialize import student_from_teacher
from stillhouse.student.plan import plan_student
from stillhouse.student.settings import StudentRecipe
from stillhouse.tokens.encoders import ODD_TEXTS
from stillhouse.tokens.tokenizer import load_tokenizer
from stillhouse.tokens.vocabulary import choose_tokens, trim_tokenizer

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]
LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
}  # fmt: skip
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}
DECODERS = {
    "llama": ("llama", {}),
    "llama with biases, tied": (
        "llama",
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "llama 3.1's rotary positions": ("llama", {"rope_parameters": LLAMA3_ROPE}),
    "linear rotary positions": ("llama", {"rope_parameters": LINEAR_ROPE}),
    "mistral": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {}),
    "phi3": ("phi3", {}),
    "gemma2": ("gemma2", {}),
    "gemma3": ("gemma3_text", {}),
}


def save(folder: Path, model_type: str, **settings) -> Path:
    """A tiny decoder of random weights with the sample's tokenizer and its chat template."""
    own = sample_tokenizer()
    own.chat_template = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
    ends = {"bos_token_id": None, "eos_token_id": own.convert_tokens_to_ids("<|im_end|>")}
    save_model(tiny(model_type, **settings, **ends), own, folder)
    return folder


def test_a_trimmed_vocabulary_is_the_same_in_llama_cpp(tmp_path):
    """The file has the tokens that stay, and the merges between them; llama.cpp's tokenizer gives
    the same ids on real text."""
    source = save(tmp_path / "whole", "llama", tie_word_embeddings=True)
    (_, whole), own = load_model(source), load_tokenizer(source)
    kept = choose_tokens(own, np.arange(len(own))[::-1], 2_000)
    save_model(keep_tokens(whole, kept), trim_tokenizer(own, kept), tmp_path / "model")
    export_model(str(tmp_path / "model"), "gguf", tmp_path / "out", precision="fp32")
    fields = gguf.GGUFReader(tmp_path / "out" / "model.gguf").fields
    assert len(fields["tokenizer.ggml.tokens"].contents()) == 2_000
    end = fields["tokenizer.ggml.eos_token_id"].contents()
    assert load_tokenizer(tmp_path / "model").convert_ids_to_tokens(end) == "<|im_end|>"


PRECISIONS = ("fp32", "fp16", "int8")
# Random models with sharp attention lose more than the bound in eight bits.
SHARP = ("llama 3.1's rotary positions", "linear rotary positions")


@pytest.mark.parametrize(
    ("name", "precision"),
    [(n, p) for n in DECODERS for p in PRECISIONS if not (n in SHARP and p == "int8")],
)
def test_a_decoder_is_the_same_in_llama_cpp(tmp_path, name, precision):
    """In float32 by every token of a greedy text and to 0.001 nats; else to the stated bounds."""
    model_type, settings = DECODERS[name]
    source = save(tmp_path / "model", model_type, **settings)
    found = export_model(str(source), "gguf", tmp_path / "out", precision=precision)
    assert found["parity"]["tokens_compared"] > 200
    assert found["end_tokens"][0] == "<|im_end|>"
    if precision == "fp32":
        assert found["parity"]["largest_difference_beside_activation_nats"] < 1e-3
        assert found["parity"]["same_first_tokens"] == found["parity"]["of_generated_tokens"]


WINDOWS = ["full_attention", "sliding_attention"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer_types": WINDOWS}, "windows? are not in the order that llama.cpp assumes"),
        ({"query_pre_attn_scalar": 64}, "query_pre_attn_scalar is 64, and llama.cpp takes 16"),
        ({"attn_logit_softcapping": None}, "attn_logit_softcapping is None, and llama.cpp caps"),
        ({"final_logit_softcapping": None}, "final_logit_softcapping is None"),
        ({"rope_parameters": LINEAR_ROPE}, r"rotary positions are scaled \(linear\)"),
    ],
)
def test_a_gemma_that_llama_cpp_would_compute_differently_is_refused(tmp_path, settings, message):
    """A student may have lost every second layer, for example."""
    source = save(tmp_path / "model", "gemma2", **settings)
    with pytest.raises(ModelError, match=message):
        export_model(str(source), "gguf", tmp_path / "out", precision="fp32")


def test_the_attention_of_the_largest_gemma_has_another_scale(tmp_path):
    """llama.cpp knows it by its 46 layers."""
    settings = {"num_hidden_layers": 46, "head_dim": 8, "query_pre_attn_scalar": 64 // 4}
    source = save(tmp_path / "model", "gemma2", **settings)
    found = export_model(str(source), "gguf", tmp_path / "out", precision="fp32")
    assert found["parity"]["largest_difference_beside_activation_nats"] < 0.05
    with pytest.raises(ModelError, match=r"query_pre_attn_scalar is 8, and llama\.cpp takes 16"):
        export_model(
            str(save(tmp_path / "other", "gemma2", **(settings | {"query_pre_attn_scalar": 8}))),
            "gguf",
            tmp_path / "out2",
        )


def test_heads_of_which_a_part_is_turned_are_refused(tmp_path):
    rotary = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5}
    source = save(tmp_path / "model", "phi3", rope_parameters=rotary)
    with pytest.raises(ModelError, match=r"turn a part of each head \(0.5\)"):
        export_model(str(source), "gguf", tmp_path / "out")


@pytest.fixture
def sentencepiece_folder(tmp_path, monkeypatch):
    """sentencepiece_folder(prefix, changes): a llama with that tokenizer, and the trained model."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    lines = Path(stillhouse.__file__).with_name("check.py").read_text().splitlines()
    trained = trained_sentencepiece(lines, 700)
    model = tiny("llama", vocab_size=trained.get_piece_size())

    def folder(*, prefix=True, **changes):
        metadata = metadata_of("llama", model, sample_tokenizer())
        metadata |= sentencepiece_metadata(trained, prefix=prefix) | changes
        path = write(tmp_path / "a.gguf", "llama", metadata, tensors_of("llama", model))
        return read.folder_of_gguf(path), trained

    return folder


def test_spaces_that_phi_3_strips_are_stripped_in_llama_cpp(sentencepiece_folder, tmp_path):
    """After the tokens that have `rstrip`; other sets of tokens have no place in the file."""
    source, _ = sentencepiece_folder(**{"general.name": "Phi-3"})
    export_model(str(source), "gguf", tmp_path / "out", precision="fp32")
    own, engine = stillhouse.load(source), LlamaCpp(tmp_path / "out" / "model.gguf", 64)
    for text in ("a <|im_start|>  b", "<s> b", "</s> c", "x <tool>  y"):
        assert engine.tokens_of(text) == own.encode(text)
    state = source / "tokenizer.json"
    changed = json.loads(state.read_text())
    changed["added_tokens"][-1]["rstrip"] ^= True
    state.write_text(json.dumps(changed))
    with pytest.raises(ModelError, match="has rstrip set, which has no place in the file"):
        export_model(str(source), "gguf", tmp_path / "out2")


def test_tokens_of_spaces_are_text_in_llama_cpp(sentencepiece_folder, tmp_path):
    """Gemma's tokenizer.json lists runs of spaces among its added tokens."""
    source, _ = sentencepiece_folder(prefix=False)
    folder = tmp_path / "added"
    shutil.copytree(source, folder)
    state = json.loads((folder / "tokenizer.json").read_text())
    spaces = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    number = state["model"]["vocab"]["\u2581\u2581"]
    spaces |= {"id": number, "content": "\u2581\u2581", "special": False}
    state["added_tokens"] = sorted([*state["added_tokens"], spaces], key=lambda own: own["id"])
    (folder / "tokenizer.json").write_text(json.dumps(state))
    found = export_model(str(folder), "gguf", tmp_path / "out", precision="fp32")
    assert "U+2581" in found["notes"][0]
    engine, own = LlamaCpp(tmp_path / "out" / "model.gguf", 64), stillhouse.load(folder)
    for text in ("def f():\n  return", "a  b    c"):
        assert engine.tokens_of(text) == own.encode(text)
        assert engine.text_of(own.encode(text)) == text


@pytest.mark.parametrize(
    ("order", "message"),
    [("missing", "does not merge '.+' and '.+' to the token"), ("late", "not next to each other")],
)
def test_merges_that_llama_cpp_would_do_otherwise_are_refused(sentencepiece_folder, order, message):
    """It knows tokens and their scores alone: every union of neighbours, each at one place."""
    source, _ = sentencepiece_folder()
    file = source / "tokenizer.json"
    state = json.loads(file.read_text())
    merges = state["model"]["merges"]
    twice = next(n for n in range(1, len(merges)) if "".join(merges[n]) == "".join(merges[n - 1]))
    pair = merges.pop(twice)
    if order == "late":
        merges.append(pair)
    file.write_text(json.dumps(state))
    with pytest.raises(ModelError, match=message):
        export_model(str(source), "gguf", source.parent / "out")


@pytest.mark.parametrize("prefix", [True, False])
def test_a_tokenizer_of_sentencepiece_is_the_same_in_llama_cpp(
    sentencepiece_folder, tmp_path, prefix
):
    """And the file is read back as the same tokenizer."""
    source, trained = sentencepiece_folder(prefix=prefix)
    export_model(str(source), "gguf", tmp_path / "out", precision="fp32")
    original, found = stillhouse.load(source), stillhouse.load(tmp_path / "out")
    engine = LlamaCpp(tmp_path / "out" / "model.gguf", 64)
    for text in (*filter(None, ODD_TEXTS), "def f(x):\n    return x", "a<tool>b <|im_start|> c"):
        assert engine.tokens_of(text) == original.encode(text) == found.encode(text), text
        assert not prefix or "<" in text or original.encode(text) == trained.encode(text)
    assert found.end_ids == original.end_ids


@pytest.mark.parametrize("name", ["llama", "llama with biases, tied", "qwen2", "qwen3", "phi3"])
def test_an_exported_decoder_is_read_back(tmp_path, monkeypatch, name):
    """Every weight to the bit; tokens, ends, context and chat template."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model_type, settings = DECODERS[name]
    source = save(tmp_path / "model", model_type, **settings)
    export_model(str(source), "gguf", tmp_path / "out", precision="fp32")
    original, found = stillhouse.load(source), stillhouse.load(tmp_path / "out")
    expected = dict(original.model.named_parameters())
    parameters = dict(found.model.named_parameters())
    assert parameters.keys() == expected.keys()
    for parameter in parameters:
        assert torch.equal(parameters[parameter], expected[parameter]), parameter
    assert [found.encode(text) for text in ODD_TEXTS] == [original.encode(t) for t in ODD_TEXTS]
    assert found.end_ids >= original.end_ids  # llama.cpp knows more, by name
    assert found.context == original.context
    assert found.tokenizer.chat_template == original.tokenizer.chat_template


@pytest.mark.parametrize("rules", tokenizer.SPLITS)
def test_the_file_names_the_rules_that_split_text(tmp_path, monkeypatch, rules):
    """Those of each tokenizer, or others that are the same; llama.cpp has its tokens of numbers,
    contractions and line ends."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model, own = tiny("llama"), sample_tokenizer()
    metadata = metadata_of("llama", model, own) | {"tokenizer.ggml.pre": rules}
    path = write(tmp_path / "a.gguf", "llama", metadata, tensors_of("llama", model))
    source = read.folder_of_gguf(path)
    export_model(str(source), "gguf", tmp_path / "out", precision="fp16")
    fields = gguf.GGUFReader(tmp_path / "out" / "model.gguf").fields
    named = fields["tokenizer.ggml.pre"].contents()
    assert tokenizer.SPLITS[named] == tokenizer.SPLITS[rules]
    engine, loaded = LlamaCpp(tmp_path / "out" / "model.gguf", 64), stillhouse.load(source)
    for text in (
        *filter(None, ODD_TEXTS),
        "It's 12345.67, they'LL see\r\n\r\n  1\n x",
        "a\n\n\nb 9",
    ):
        assert engine.tokens_of(text) == loaded.encode(text), text


def test_a_student_of_smollm2_is_the_same_in_llama_cpp(smollm2_folder, tmp_path):
    """24 of its 30 layers: the same 64 greedy tokens as ours, its chat template and its ends."""
    _, teacher = load_model(smollm2_folder)
    kept = [layer for layer in range(30) if layer not in (12, 13, 14, 17, 25, 26)]
    plan = plan_student(teacher.config, StudentRecipe(layer_map=kept))
    student = student_from_teacher(teacher, plan)
    save_model(student, stillhouse.load(smollm2_folder).tokenizer, tmp_path / "student")
    found = export_model(str(tmp_path / "student"), "gguf", tmp_path / "out", precision="fp32")
    assert found["parity"]["largest_difference_nats"] < 1e-3
    assert found["parity"]["same_first_tokens"] == found["parity"]["of_generated_tokens"] == 64
    own = stillhouse.load(tmp_path / "student")
    assert isinstance(own, CausalLM)
    fields = gguf.GGUFReader(tmp_path / "out" / "model.gguf").fields
    assert fields["tokenizer.ggml.pre"].contents() == "smollm"
    engine = LlamaCpp(tmp_path / "out" / "model.gguf", 256)
    assert engine.end_ids == own.end_ids
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = own.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert engine.post("/apply-template", {"messages": chat})["prompt"] == prompt
    ids = own.encode(str(prompt))
    assert engine.tokens_of(str(prompt)) == ids
    (text,) = own.generate(str(prompt), greedy=True, max_new_tokens=40)
    answer = engine.text_of(engine.generate(ids, 40))
    assert answer.startswith(text.removeprefix(str(prompt)))
