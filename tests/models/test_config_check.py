"""A configuration that asks for another computation is refused by name; a key that would only
disturb is settled, and changes nothing."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.task_models import make_task_folder
from tests.tiny_models import EVERY_FAMILY

import stillhouse
from stillhouse.errors import ModelError
from stillhouse.families.registry import FAMILIES
from stillhouse.models.load import check_folder, load_model, save_model
from stillhouse.tokens.batches import Batch


@pytest.fixture
def folder_of(tmp_path, tiny_model, tiny_tokenizer):
    """folder_of(family, **config): an intact folder, with these keys in its config.json."""

    def make(family: str, **config) -> Path:
        folder = tmp_path / family
        save_model(tiny_model(family), tiny_tokenizer, folder)
        edit(folder, **config)
        return folder

    return make


def edit(folder: Path, **values) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize("family", EVERY_FAMILY)
@pytest.mark.parametrize(
    "key",
    [
        {"return_dict": False},
        {"chunk_size_feed_forward": 5},
        {"attn_implementation": "eager"},
        {"_attn_implementation": "flash_attention_2"},
        {"output_attentions": True, "output_hidden_states": True},
    ],
    ids=lambda key: next(iter(key)),
)
def test_a_key_of_how_a_model_is_run_changes_nothing(folder_of, family, key):
    """Some of them broke training, others every call."""
    ids = torch.arange(5, 17)[None]
    ones, causal = torch.ones_like(ids), FAMILIES[family].language_modeling == "causal"
    batch = Batch(ids, ids, ones, torch.arange(12)[None], causal=causal, uniform=True)

    def states(**config):
        folder = folder_of(family, **config)
        check_folder(folder)
        known, model = load_model(folder)
        model.save_pretrained(folder)  # transformers refuses some values only here
        with torch.inference_mode():
            return known.run_body(model, batch), model(input_ids=ids).logits

    for found, right in zip(states(**key), states(), strict=True):
        torch.testing.assert_close(found, right)


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [
        ("bert", "position_embedding_type", "relative_key"),
        ("roberta", "position_embedding_type", "relative_key_query"),
        ("bert", "is_decoder", True),
        ("roberta", "is_decoder", True),
        ("gpt2", "add_cross_attention", True),
        ("gemma3_text", "use_bidirectional_attention", True),
        ("bert", "pruned_heads", {"0": [1]}),
        ("gpt2", "quantization_config", {"quant_method": "gptq", "bits": 4}),
        ("gpt2", "activation_function", "gelu_neu"),
        ("bert", "hidden_act", "GELU"),
        ("distilbert", "activation", "GELU"),
    ],
)
def test_another_computation_is_refused_by_name(folder_of, family, key, value):
    """By the look at a folder and by loading alike; transformers computes the usual one, or ends
    with an error of its own."""
    folder = folder_of(family, **{key: value})
    for refuse in (check_folder, stillhouse.load):
        with pytest.raises(ModelError, match=rf"config\.json: .*{key}"):
            refuse(folder)


def test_an_encoder_may_say_that_it_is_one(folder_of):
    """The values that mean the usual computation."""
    check_folder(folder_of("bert", position_embedding_type="absolute", is_decoder=False))
    check_folder(folder_of("gpt2", is_decoder=True, pruned_heads={}))


@pytest.mark.parametrize(("family", "key", "value"), [("gpt2", "n_head", 3)])
def test_numbers_that_make_no_model_are_the_configuration_s_fault(folder_of, family, key, value):
    """Not that of the weights, which need not be fetched again."""
    folder = folder_of(family, **{key: value})
    for refuse in (check_folder, stillhouse.load):
        with pytest.raises(ModelError, match=r"No model can be made by .*config\.json"):
            refuse(folder)


def test_layers_without_a_place_are_refused_for_a_task_too(tmp_path):
    """Of a classifier with two layers whose config.json says one; of relative positions."""
    folder = make_task_folder(tmp_path / "a", "bert", "SequenceClassification", num_labels=3)
    edit(folder, num_hidden_layers=1)
    with pytest.raises(ModelError, match=r"16, such as bert\.encoder\.layer\.1\.attention"):
        stillhouse.load(folder)
    edit(folder, num_hidden_layers=2)
    name = "bert.encoder.layer.0.attention.self.distance_embedding.weight"
    weights = load_file(folder / "model.safetensors") | {name: torch.ones(127, 8)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="distance_embedding"):
        stillhouse.load(folder)


def test_a_shape_is_told_in_numbers(folder_of):
    """As it is in the file, and as config.json has it."""
    folder = folder_of("bert", hidden_size=32)
    with pytest.raises(ModelError, match=r"is \(16,\) in the file and \(32,\) by config\.json"):
        load_model(folder)
