"""Model folders: ordinary checkpoints for everyone, and every kind of damage named."""

import json
import re
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tests.tiny_models import EVERY_FAMILY
from transformers import GenerationConfig

from stillhouse.errors import ModelError, NetworkError
from stillhouse.families.registry import FAMILIES, family_named, family_of
from stillhouse.models.folder_check import load_config
from stillhouse.models.hub import resolve_folder
from stillhouse.models.load import load_model, save_model

WEIGHTS = "model.safetensors"
every_family = pytest.mark.parametrize("name", EVERY_FAMILY)


@pytest.fixture
def folder(tmp_path, tiny_model, tiny_tokenizer) -> Path:
    """An intact folder of a tiny GPT-2."""
    save_model(tiny_model("gpt2"), tiny_tokenizer, tmp_path / "model")
    return tmp_path / "model"


def change_config(folder: Path, **changes) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def change_weights(
    folder: Path, added: dict[str, torch.Tensor] | None = None, *, without: str = ""
) -> None:
    tensors = {
        name: value for name, value in load_file(folder / WEIGHTS).items() if name != without
    }
    save_file({**tensors, **(added or {})}, folder / WEIGHTS, metadata={"format": "pt"})


def refusal(folder: Path) -> str:
    """The message with which a folder is refused."""
    with pytest.raises(ModelError) as caught:
        load_model(folder)
    assert caught.value.exit_code == 4
    assert str(folder) in str(caught.value)
    return str(caught.value)


def test_weights_keep_their_published_names(tmp_path, tiny_model, tiny_tokenizer):
    """Other programs find GPT-NeoX's output matrix by the name it was published with."""
    folder, model = tmp_path / "published", tiny_model("gpt_neox")
    save_model(model, tiny_tokenizer, folder)
    change_config(folder, tie_word_embeddings=False)
    output = model.get_input_embeddings().weight.detach().clone()
    change_weights(folder, {"embed_out.weight": output})
    save_model(load_model(folder)[1], tiny_tokenizer, tmp_path / "saved")
    assert load_file(tmp_path / "saved" / WEIGHTS).keys() == load_file(folder / WEIGHTS).keys()


@every_family
def test_a_saved_folder_is_an_ordinary_checkpoint(
    name, tmp_path, tiny_model, tiny_tokenizer, words
):
    """Plain transformers loads it: no key missing, unexpected or of another shape; same logits."""
    model = tiny_model(name)
    save_model(model, tiny_tokenizer, tmp_path)
    kind = "CausalLM" if family_named(name).language_modeling == "causal" else "MaskedLM"
    auto = getattr(transformers, f"AutoModelFor{kind}")
    loaded, report = auto.from_pretrained(tmp_path, output_loading_info=True)
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not report[problem], (problem, report[problem])
    ids = torch.tensor([words(10)])
    with torch.no_grad():
        torch.testing.assert_close(
            loaded.eval()(input_ids=ids).logits, model(input_ids=ids).logits, atol=1e-5, rtol=1e-5
        )


def test_a_saved_folder_holds_json_and_safetensors_only(folder):
    """Nothing that could run code; the tokenizer and the generation settings travel along."""
    names = {path.name for path in folder.iterdir()}
    assert {path.suffix for path in folder.iterdir()} <= {".json", ".safetensors", ".txt"}
    assert {"config.json", WEIGHTS, "tokenizer.json", "generation_config.json"} <= names
    assert GenerationConfig.from_pretrained(folder).eos_token_id == 0


@every_family
@pytest.mark.law("reload")
def test_a_saved_model_is_loaded_as_it_was(name, tmp_path, tiny_model, tiny_tokenizer):
    """Every parameter, bit for bit, in evaluation mode, with its family."""
    model = tiny_model(name)
    save_model(model, tiny_tokenizer, tmp_path)
    family, loaded = load_model(tmp_path)
    assert family is family_named(name)
    assert not loaded.training
    for key, parameter in model.named_parameters():
        assert torch.equal(parameter, loaded.get_parameter(key)), key


def test_weights_are_float32_in_memory(folder):
    """Whatever the precision on disk."""
    half = {name: value.half() for name, value in load_file(folder / WEIGHTS).items()}
    save_file(half, folder / WEIGHTS, metadata={"format": "pt"})
    change_config(folder, dtype="float16")
    _, model = load_model(folder)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_what_published_checkpoints_carry_along_is_let_go(tmp_path, tiny_model, tiny_tokenizer):
    """BERT's pooler and next-sentence head, GPT-2's old causal buffers: known, and unused."""
    extra = {
        "bert": ("bert.pooler.dense.weight", "cls.seq_relationship.bias"),
        "gpt2": ("transformer.h.0.attn.bias", "transformer.h.1.attn.masked_bias"),
        "roberta": ("roberta.pooler.dense.bias",),
    }
    for name, tensors in extra.items():
        save_model(tiny_model(name), tiny_tokenizer, tmp_path / name)
        change_weights(tmp_path / name, {tensor: torch.ones(16) for tensor in tensors})
        load_model(tmp_path / name)


def test_a_parameter_that_is_missing_is_named(folder):
    """It would be drawn at random, and nobody would know."""
    change_weights(folder, without="transformer.h.1.mlp.c_fc.weight")
    said = refusal(folder)
    assert "not a complete GPT2LMHeadModel" in said
    assert "1 parameters missing (transformer.h.1.mlp.c_fc.weight)" in said


def test_a_parameter_that_is_unknown_is_named(folder):
    """A checkpoint with more in it is another model; dropping it silently would be a lie."""
    change_weights(folder, {"transformer.h.2.ln_1.weight": torch.ones(16)})
    assert "unknown to the model (transformer.h.2.ln_1.weight)" in refusal(folder)


def test_a_parameter_of_another_shape_is_refused(folder):
    """The configuration and the weights do not belong together."""
    change_config(folder, n_positions=30)
    assert "shape" in refusal(folder) or "size" in refusal(folder)


def test_a_folder_without_config_is_no_model_folder(folder):
    """Said before anything is read."""
    (folder / "config.json").unlink()
    assert "it has no config.json" in refusal(folder)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '"gpt2"', "{}", '{"model_type": null}', "[" * 5000, "\udcff"]
)
def test_a_config_that_makes_no_sense_is_named(content, folder):
    """Garbage, another JSON value, or no model_type."""
    (folder / "config.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    assert "config.json" in refusal(folder)


@pytest.mark.parametrize("changes", [{"n_layer": "two"}, {"n_head": 3}, {"n_embd": -16}])
def test_a_config_whose_values_make_no_sense_is_refused(changes, folder):
    """Types and sizes that no model can have."""
    change_config(folder, **changes)
    refusal(folder)


@pytest.mark.parametrize("model_type", ["t5", "my-own-model"])
def test_an_unknown_architecture_is_refused(model_type, folder):
    """Whether transformers knows it or not; and no code from the folder is run."""
    code = folder / "modeling_own.py"
    code.write_text(f"open({str(folder / 'code-was-run')!r}, 'w')")
    change_config(folder, model_type=model_type, auto_map={"AutoConfig": "modeling_own.Own"})
    assert model_type in refusal(folder)
    assert not (folder / "code-was-run").exists()


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("t5", "it has an encoder and a decoder"),
        ("mixtral", "its layers are mixtures of experts"),
        ("qwen3_moe", "its layers are mixtures of experts"),
        ("albert", "its layers share their parameters"),
        ("gemma3", "it reads more than text; save its language model alone"),
    ],
)
def test_an_architecture_is_refused_with_the_reason(model_type, reason):
    """Beside those that would do."""
    expected = f"'{model_type}' is not supported ({reason}); supported are {', '.join(FAMILIES)}."
    with pytest.raises(ModelError, match=re.escape(expected)):
        family_named(model_type)
    assert family_of(transformers.GPT2Config()) is family_named("gpt2")


def test_weights_that_could_run_code_are_not_read(folder):
    """A pickled checkpoint is refused, with the way out."""
    (folder / WEIGHTS).unlink()
    assert "has no weights" in refusal(folder)
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    said = refusal(folder)
    assert "only pytorch_model.bin, which can run code" in said
    assert "If you trust the file, convert it" in said


@pytest.mark.parametrize("kept", [0, 4, 100, 0.5, -1])
def test_a_truncated_file_of_weights_is_refused(kept, folder):
    """Cut in its length, its header, its middle, or one byte before the end."""
    content = (folder / WEIGHTS).read_bytes()
    size = int(len(content) * kept) if isinstance(kept, float) else kept
    (folder / WEIGHTS).write_bytes(content[:size])
    assert "cannot be loaded" in refusal(folder)


def test_a_header_that_lies_is_refused(folder):
    """A header length beyond the file is damage, not a reason to allocate."""
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[:8] = (2**62).to_bytes(8, "little")
    (folder / WEIGHTS).write_bytes(content)
    assert "cannot be loaded" in refusal(folder)


def test_a_folder_is_itself(folder, monkeypatch):
    """A path, absolute or from here, is taken before any hub name."""
    assert resolve_folder(str(folder), offline=True) == folder
    monkeypatch.chdir(folder.parent)
    assert resolve_folder("model", offline=False) == Path("model")
    assert load_config(resolve_folder("model", offline=False)).model_type == "gpt2"


def test_a_hub_name_needs_the_network():
    """Offline and not on this disk: exit code 7, and what to do instead."""
    message = "no-such-owner/no-such-model.*--offline.*give a folder"
    with pytest.raises(NetworkError, match=message) as caught:
        resolve_folder("no-such-owner/no-such-model", offline=True)
    assert caught.value.exit_code == 7


def test_a_missing_folder_below_an_existing_one_is_not_a_matter_of_the_network(
    tmp_path, monkeypatch
):
    """It has the form of a hub name."""
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"There is no folder 'runs/nothere' \(seen from /"):
        resolve_folder("runs/nothere", offline=True)


@pytest.mark.parametrize(
    "name",
    [
        *("", "a/b/c", "./missing", "/nowhere/at/all", "my model", "~nobody-here/x", "m" * 300),
        *("my--model", "a..b", "-model", "model.git"),
    ],
)
def test_a_name_that_is_neither_a_folder_nor_a_hub_name_is_refused(name):
    """Any string is answered with one of our errors, without asking the network."""
    with pytest.raises(ModelError, match=r"is not a model folder|no folder"):
        resolve_folder(name, offline=True)


def test_a_file_is_not_a_folder(folder):
    """The path of the weights is not the model."""
    with pytest.raises(ModelError, match="is not a model folder"):
        resolve_folder(str(folder / WEIGHTS), offline=True)
