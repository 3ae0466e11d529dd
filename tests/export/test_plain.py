"""What becomes of each key of a configuration: carried, folded into the weights, or refused."""

import re
from typing import Any

import pytest
import torch
import transformers
from tests.task_models import make_tokenizer
from tests.tiny_models import make_config

from stillhouse.export.exported import CONFIG_KEYS, Exported, plain, vocabulary_of
from stillhouse.export.to_ctranslate2 import CTRANSLATE2
from stillhouse.export.to_gguf import GGUF
from stillhouse.families.registry import family_named
from stillhouse.inference.load import language_model
from stillhouse.inference.loaded import LoadedModel

CONFIGS = (
    "GPT2Config", "LlamaConfig", "MistralConfig", "Qwen2Config", "Qwen3Config", "Phi3Config",
    "Gemma2Config", "Gemma3TextConfig",
    "BertConfig", "RobertaConfig", "DistilBertConfig",
)  # fmt: skip
LINEAR = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}
YARN = {**LINEAR, "rope_type": "yarn", "original_max_position_embeddings": 16}
FULL = {"layer_types": ["full_attention"] * 2}


def make_loaded(family: str, extra_embeddings: int = 0, **config) -> LoadedModel:
    """A tiny random model whose attention is far from even, with a tokenizer of its kind."""
    tokenizer = make_tokenizer(family)
    settings = make_config(family, vocabulary=len(tokenizer) + extra_embeddings, positions=64)
    for key, value in config.items():
        setattr(settings, key, value)
    torch.manual_seed(0)
    model = getattr(transformers, family_named(family).model_class)(settings).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return language_model(model, tokenizer)


def exported(family: str, **config) -> Exported:
    loaded = make_loaded(family, **config)
    return plain(loaded, vocabulary_of("model", loaded))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_key_of_a_configuration_has_its_place_in_the_table(name):
    """A key that a new transformers brings fails here, until someone has looked at what it does."""
    config = getattr(transformers, name)()
    keys = CONFIG_KEYS[config.model_type]
    assert set(config.to_dict()) <= {keys.activation, *keys.fixed, *keys.others}


@pytest.mark.parametrize("by_layer", [False, True])
@pytest.mark.parametrize("by_size", [False, True])
def test_attention_scales_are_folded_into_the_queries(by_size, by_layer):
    """The copy has the scales that every engine has, and the original's logits."""
    found = exported("gpt2", scale_attn_weights=by_size, scale_attn_by_inverse_layer_idx=by_layer)
    ids = torch.randint(290, (2, 20))
    with torch.no_grad():
        right, logits = found.loaded.model(input_ids=ids).logits, found.model(input_ids=ids).logits
    torch.testing.assert_close(logits, right, atol=2e-5, rtol=1e-5)
    assert found.model.config.scale_attn_weights
    assert not found.model.config.scale_attn_by_inverse_layer_idx
    body: Any = found.model.base_model
    assert {block.attn.scaling for block in body.h} == {8**-0.5}
    assert found.loaded.model.config.scale_attn_weights == by_size  # the original is left alone


@pytest.mark.parametrize("family", ["gpt2", "bert", "roberta", "distilbert"])
def test_the_padding_of_a_vocabulary_is_cut(family):
    """The logits of what remains are the same."""
    found = exported(family, extra_embeddings=7)
    size = len(found.loaded.tokenizer)
    ids = torch.randint(size, (2, 20))
    with torch.no_grad():
        right, logits = found.loaded.model(input_ids=ids).logits, found.model(input_ids=ids).logits
    assert right.shape[-1] == size + 7
    torch.testing.assert_close(logits, right[..., :size])
    assert found.model.config.vocab_size == size == len(found.vocabulary)


@pytest.mark.parametrize(
    ("form", "family", "config", "reason"),
    [
        (GGUF, "gpt2", {"activation_function": "relu"}, "activation_function is relu"),
        (GGUF, "gpt2", {"activation_function": "gelu"}, "activation_function is gelu"),
        (GGUF, "gpt2", {"add_cross_attention": True}, "add_cross_attention is True"),
        (GGUF, "bert", {}, "only decoders are written as GGUF; take onnx"),
        (
            GGUF,
            "olmo2",
            {},
            "gpt2, llama, mistral, phi3, qwen2, qwen3 as GGUF, and this is olmo2",
        ),
        (GGUF, "llama", {"hidden_act": "gelu"}, "hidden_act is gelu"),
        (GGUF, "qwen3", {"attention_bias": True}, "attention_bias is True"),
        (GGUF, "gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50"),
        (GGUF, "gemma2", {"hidden_activation": "gelu"}, "hidden_activation is gelu"),
        (
            GGUF,
            "mistral",
            {},
            "the last 7 of 64 positions.* set max_position_embeddings .* 7",
        ),
        (GGUF, "qwen2", {}, "reads the last 7 of 64 positions"),
        (GGUF, "qwen3", {"rope_parameters": LINEAR}, r"scaled \(linear\), which .* llama alone"),
        (GGUF, "llama", {"rope_parameters": YARN}, r"\(yarn\) scale attention too"),
        (CTRANSLATE2, "llama", {}, "for CTranslate2, and this is llama; take gguf"),
        (CTRANSLATE2, "electra", {}, "for CTranslate2, and this is electra; take onnx"),
        (CTRANSLATE2, "gpt2", {"activation_function": "mish"}, "activation_function is mish"),
        (CTRANSLATE2, "gpt2", {"add_cross_attention": True}, "add_cross_attention is True"),
        (CTRANSLATE2, "bert", {"hidden_act": "tanh"}, "hidden_act is tanh"),
        (CTRANSLATE2, "bert", {"is_decoder": True}, "is_decoder is True"),
        (CTRANSLATE2, "roberta", {"hidden_act": "relu2"}, "hidden_act is relu2"),
        (CTRANSLATE2, "distilbert", {"activation": "gelu_10"}, "activation is gelu_10"),
    ],
)
def test_what_a_format_does_not_compute_is_refused_by_name(form, family, config, reason):
    assert re.search(reason, form.refusal(exported(family, **config)) or "none")


@pytest.mark.parametrize(
    ("form", "family", "config"),
    [
        (GGUF, "gpt2", {"activation_function": "gelu_accurate", "n_inner": 24}),
        (GGUF, "llama", {"rope_parameters": LINEAR, "attention_bias": True}),
        (GGUF, "mistral", {"sliding_window": 64}),
        (GGUF, "mistral", {"sliding_window": None}),
        (GGUF, "qwen2", FULL),
        (GGUF, "qwen3", {}),
        (CTRANSLATE2, "gpt2", {"activation_function": "relu"}),
        (CTRANSLATE2, "bert", {"hidden_act": "gelu_python_tanh"}),
    ],
)
def test_what_a_format_computes_is_not_refused(form, family, config):
    assert form.refusal(exported(family, **config)) is None
