"""Errors in weight files are reported by file, before anything is loaded."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import stillhouse
from stillhouse.errors import ModelError
from stillhouse.models.folder_check import load_config, weight_dtype
from stillhouse.models.load import check_folder, load_model, save_model

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path, tiny_model, tiny_tokenizer) -> Path:
    save_model(tiny_model("gpt2"), tiny_tokenizer, tmp_path / "model")
    return tmp_path / "model"


def refused(folder: Path, message: str) -> None:
    for refuse in (check_folder, stillhouse.load):
        with pytest.raises(ModelError, match=message):
            refuse(folder)


def test_shards_are_read(folder):
    """Several files and their index."""
    model = load_model(folder)[1]
    (folder / WEIGHTS).unlink()
    model.save_pretrained(folder, max_shard_size="10KB")
    check_folder(folder)
    for name, tensor in load_model(folder)[1].state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])
    shard = sorted(folder.glob("model-*.safetensors"))[-1]
    shard.write_bytes(shard.read_bytes()[:100])
    refused(folder, rf"{shard.name}: .*Fetch them")


@pytest.mark.parametrize("index", [{}, [], {"weight_map": ["a"]}, {"weight_map": {"a": 1}}])
def test_an_index_that_is_none_is_named(folder, index):
    (folder / WEIGHTS).rename(folder / "model-00001-of-00001.safetensors")
    (folder / INDEX).write_text(json.dumps(index))
    refused(folder, rf"{INDEX} (has no weight_map|is not a JSON object)")


def test_a_file_of_another_name_is_named(folder):
    """It passed the check, and stopped the run."""
    (folder / WEIGHTS).rename(folder / "model-00001-of-00001.safetensors")
    refused(folder, rf"has model-00001-of-00001.safetensors, but neither {WEIGHTS}")


def test_a_pointer_of_git_lfs_is_no_damage(folder):
    (folder / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\nsize 5\n")
    refused(folder, "Git LFS pointer, not the weights.*git lfs pull")


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_quantized_weights_are_not_read_as_numbers(folder, kind):
    """transformers casts them to float32 in silence, without their scales."""
    weights = load_file(folder / WEIGHTS)
    weights["transformer.h.0.mlp.c_fc.weight"] = weights["transformer.h.0.mlp.c_fc.weight"].to(kind)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    refused(folder, r"quantized weights \(transformer\.h\.0\.mlp\.c_fc\.weight")


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_every_full_precision_are_read(folder, kind):
    """With the masks of whole numbers that old checkpoints have."""
    before = {name: tensor.to(kind) for name, tensor in load_file(folder / WEIGHTS).items()}
    mask = {"transformer.h.0.attn.bias": torch.ones(1, 1, 24, 24, dtype=torch.uint8).tril()}
    save_file(before | mask, folder / WEIGHTS, metadata={"format": "pt"})
    check_folder(folder)
    model = load_model(folder)[1].state_dict()
    for name, tensor in before.items():
        assert torch.equal(model[name], tensor.float())


def test_an_adapter_is_never_left_out_in_silence(folder):
    """Beside the weights, or in a folder of its own; transformers adds it where peft is there."""
    (folder / "adapter_config.json").write_text("{}")
    refused(folder, "merge_and_unload")
    (folder / "config.json").unlink()
    refused(folder, "PEFT adapter. Merge it")


def test_a_folder_of_an_older_sentence_model_names_the_one_to_give(tmp_path):
    (tmp_path / "0_Transformer").mkdir()
    (tmp_path / "0_Transformer" / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"its model is in .*0_Transformer, give that folder"):
        load_config(tmp_path)


def test_tied_embeddings_that_are_said_to_be_none_are_explained(folder):
    """The output matrix is not missing: config.json says that there is another."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    refused(folder, "set tie_word_embeddings to true")


def test_the_precision_of_weights_is_that_of_the_files(folder):
    """Not of the configuration; of several the one that holds all."""
    file, config = folder / WEIGHTS, load_config(folder)
    weights = {name: weight.half() for name, weight in load_file(file).items()}
    save_file(weights, file)
    assert weight_dtype(folder, config) == torch.float16 != config.dtype
    weights["transformer.h.0.attn.bias"] = torch.zeros(1)  # the model has no use for this one
    save_file(weights, file)
    assert weight_dtype(folder, config) == torch.float16
    weights[max(weights)] = weights[max(weights)].bfloat16()
    save_file(weights, file)
    assert weight_dtype(folder, config) == torch.float32
    save_file({name: weight.double() for name, weight in weights.items()}, file)
    assert weight_dtype(folder, config) == torch.float32
