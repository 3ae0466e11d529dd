"""Llama (Touvron et al. 2023) and models of its architecture, such as SmolLM2.

Normalization is RMSNorm, positions are rotary (a document starts at position 0, as everywhere),
the feed-forward layer is SwiGLU, and several heads of queries may share keys and values (Ainslie
et al. 2023). The word embeddings may be the output matrix.

Axes: N tokens, D hidden size.
"""

from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from stillhouse.families.attention import Scores
from stillhouse.families.base import Attend, Family, RunTokens


def token_runner(model: Any, window: int | None = None) -> RunTokens:
    """The layers' own modules one after the other; keys are cached after their rotation.

    Also of models that norm queries and keys head by head, or attend within a window.

    Args:
        window: Of every layer; layers that differ have their own attribute.
    """
    body, size = model.model, model.model.layers[0].self_attn.head_dim
    layers = []
    for block in body.layers:
        attention = block.self_attn
        norms = [getattr(attention, name, nn.Identity()) for name in ("q_norm", "k_norm")]
        modules = (block.input_layernorm, attention.q_proj, attention.k_proj, attention.v_proj)
        modules += (*norms, attention.o_proj, block.post_attention_layernorm, block.mlp)
        scores = Scores(attention.scaling, getattr(attention, "sliding_window", window))
        layers.append((scores, *(module.forward for module in modules)))

    def run_tokens(
        ids: Int[Tensor, " N"], positions: Int[Tensor, " N"], attend: Attend
    ) -> Float[Tensor, "N D"]:
        hidden = body.embed_tokens(ids)
        cos, sin = (each[0] for each in body.rotary_emb(hidden, positions[None]))  # N, head size
        for layer, modules in enumerate(layers):
            scores, norm, query, key, value, q_norm, k_norm, output, norm_2, mlp = modules
            normed = norm(hidden)
            queries, keys, values = (
                project(normed).unflatten(1, (-1, size)) for project in (query, key, value)
            )
            queries, keys = apply_rotary_pos_emb(q_norm(queries), k_norm(keys), cos, sin)
            found = attend(layer, queries, torch.stack([keys, values], 1), scores)
            hidden = hidden + output(found.flatten(1))
            hidden = hidden + mlp(norm_2(hidden))
        return body.norm(hidden)

    return run_tokens


FAMILY = partial(
    Family,
    token_runner=token_runner,
    tiny={"num_key_value_heads": 1},
    # Buffers that checkpoints written before transformers 4.32 carry along.
    ignored_on_load=(r"\.rotary_emb\.inv_freq$",),
)
