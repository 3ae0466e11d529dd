"""Llama (Touvron et al. 2023) and models of its architecture, such as SmolLM2.

Normalization is RMSNorm, positions are rotary (a document starts at position 0, as everywhere),
the feed-forward layer is SwiGLU, and several heads of queries may share keys and values (Ainslie
et al. 2023). The word embeddings may be the output matrix.

Axes: N tokens, D hidden size.
"""

from collections.abc import Iterable
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LlamaForCausalLM, PretrainedConfig
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from stillhouse.families.base import Attend, Family, RunTokens

LENGTH_DEPENDENT = ("dynamic", "longrope")


def _supports(config: PretrainedConfig) -> str | None:
    """Rotary frequencies must be the same in every sequence."""
    kind = config.rope_parameters["rope_type"]
    if kind not in LENGTH_DEPENDENT:
        return None
    return (
        f"rope_parameters has rope_type {kind}, whose frequencies depend on the length of the "
        "sequence, so packed and batched sequences would differ from single ones. Models with "
        "default, linear, llama3 and yarn are supported."
    )


def _token_runner(model: LlamaForCausalLM) -> RunTokens:
    """The layers' own modules one after the other; keys are cached after their rotation."""
    body: Any = model.model
    size = model.config.head_dim
    layers = []
    for block in cast(Iterable[Any], body.layers):
        attention, mlp = block.self_attn, block.mlp
        modules = (block.input_layernorm, attention.q_proj, attention.k_proj, attention.v_proj)
        modules += (attention.o_proj, block.post_attention_layernorm, mlp)
        layers.append((attention.scaling, *(module.forward for module in modules)))

    def run_tokens(
        ids: Int[Tensor, " N"], positions: Int[Tensor, " N"], attend: Attend
    ) -> Float[Tensor, "N D"]:
        hidden = body.embed_tokens(ids)
        cos, sin = (each[0] for each in body.rotary_emb(hidden, positions[None]))  # N, head size
        for layer, (scale, norm, query, key, value, output, norm_2, mlp) in enumerate(layers):
            normed = norm(hidden)
            queries, keys, values = (
                project(normed).unflatten(1, (-1, size)) for project in (query, key, value)
            )
            queries, keys = apply_rotary_pos_emb(queries, keys, cos, sin)
            found = attend(layer, queries, torch.stack([keys, values], 1), scale)
            hidden = hidden + output(found.flatten(1))
            hidden = hidden + mlp(norm_2(hidden))
        return hidden

    return run_tokens


FAMILY = Family(
    model_type="llama",
    language_modeling="causal",
    model_class="LlamaForCausalLM",
    body="model",
    layers="model.layers",
    attention_projections=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    position_wise=("self_attn.o_proj", "mlp"),
    final_norm="model.norm",
    embeddings={"word_embeddings": "model.embed_tokens.weight"},
    config_from_scratch=lambda size, special: {
        "intermediate_size": size.intermediate_size or 4 * size.hidden_size,
        "attention_dropout": size.dropout,
        "tie_word_embeddings": True,
        "bos_token_id": special["end_of_text"],
        "eos_token_id": special["end_of_text"],
    },
    token_runner=_token_runner,
    supports=_supports,
    tiny={"num_key_value_heads": 1},
    # Buffers that checkpoints written before transformers 4.32 carry along.
    ignored_on_load=(r"\.rotary_emb\.inv_freq$",),
)
