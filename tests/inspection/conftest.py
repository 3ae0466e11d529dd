"""Models with known units, on a text of words."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny_models import VOCABULARY
from transformers import PreTrainedModel

from stillhouse.families.registry import family_of
from stillhouse.inference.load import language_model
from stillhouse.inference.loaded import LoadedModel
from stillhouse.models.load import save_model

WORDS = " ".join(f"w{number}" for number in np.random.default_rng(0).integers(5, 60, 600))


@pytest.fixture
def loaded(tiny_model, tiny_tokenizer) -> Callable[..., LoadedModel]:
    """loaded(family or model, **tiny_model's arguments): a tiny model ready for inspection."""

    def make(family: str | PreTrainedModel, **settings: int) -> LoadedModel:
        model = tiny_model(family, **settings) if isinstance(family, str) else family
        if family_of(model.config).language_modeling == "causal":
            tiny_tokenizer.eos_token = "[SEP]"
        model.num_tokens = VOCABULARY  # pyright: ignore[reportArgumentType]
        return language_model(model, tiny_tokenizer)

    return make


@pytest.fixture
def words_file(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text(WORDS)
    return path


@pytest.fixture
def saved(tmp_path, loaded):
    """saved(name, family): the folder of a tiny model."""

    def save(name: str, family: str, **settings: int):
        each = loaded(family, **settings)
        save_model(each.model, each.tokenizer, tmp_path / name)
        return tmp_path / name

    return save


@torch.no_grad()
def plant(model: Any, layer: int, neuron: int, token: int, raised: int) -> None:
    """Make a Llama's neuron fire for one token and raise another: it reads what the layer gets of
    the token less what it gets of others, and writes the raised token's embedding.

    Attention and the other feed-forward parts are silenced, so that hidden states are embeddings.
    """
    for each in model.model.layers:
        each.self_attn.o_proj.weight.zero_()
        each.mlp.down_proj.weight.zero_()
        each.post_attention_layernorm.weight.fill_(1)
    model.model.norm.weight.fill_(1)
    own = model.model.embed_tokens.weight
    own[raised] *= 2  # so that no token gains more
    mlp = model.model.layers[layer].mlp
    mlp.gate_proj.weight[neuron] = 4 * own[token] / own[token].norm()
    mlp.up_proj.weight[neuron] = own[token] / own[token].norm()
    mlp.down_proj.weight[:, neuron] = 0.03 * own[raised]  # it fires at 64 for the token


@torch.no_grad()
def plant_in_gpt2(model: Any, layer: int, neuron: int, token: int, raised: int) -> None:
    """The same in GPT-2, whose feed-forward part has no gate."""
    for each in model.transformer.h:
        for projection in (each.attn.c_proj, each.mlp.c_proj):
            projection.weight.zero_()
            projection.bias.zero_()
        each.ln_2.weight.fill_(1)
        each.ln_2.bias.zero_()
    body = model.transformer
    body.wpe.weight.zero_()
    body.ln_f.weight.fill_(1)
    body.ln_f.bias.zero_()
    own = body.wte.weight
    own -= own.mean(1, keepdim=True)
    own[raised] *= 2
    mlp = body.h[layer].mlp
    mlp.c_fc.weight[:, neuron] = 4 * own[token] / own[token].norm()
    mlp.c_fc.bias[neuron] = 0
    mlp.c_proj.weight[neuron] = 0.1 * own[raised]  # it fires at 16
