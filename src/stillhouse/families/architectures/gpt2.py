"""GPT-2 (Radford et al. 2019), and its shallower students such as DistilGPT2.

Axes: N tokens, D hidden size.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any, cast

from jaxtyping import Float, Int
from torch import Tensor
from transformers import GPT2LMHeadModel

from stillhouse.families.attention import Scores
from stillhouse.families.base import Attend, Family, RunTokens


def _token_runner(model: GPT2LMHeadModel) -> RunTokens:
    """The layers' own modules one after the other, without what transformers does around them, nor
    the way to them: with one token at a time, a quarter of a small model's time."""
    body, heads = model.transformer, model.config.n_head
    layers = []
    for block in cast(Iterable[Any], body.h):
        attention, mlp = block.attn, block.mlp
        modules = (block.ln_1, attention.c_attn, attention.c_proj)
        modules += (block.ln_2, mlp.c_fc, mlp.act, mlp.c_proj)
        layers.append((Scores(attention.scaling), *(module.forward for module in modules)))

    def run_tokens(
        ids: Int[Tensor, " N"], positions: Int[Tensor, " N"], attend: Attend
    ) -> Float[Tensor, "N D"]:
        hidden = body.wte(ids) + body.wpe(positions)
        for layer, (scores, norm, project, output, norm_2, widen, act, narrow) in enumerate(layers):
            projected = project(norm(hidden)).view(len(ids), 3, heads, -1)
            found = attend(layer, projected[:, 0], projected[:, 1:], scores)
            hidden = hidden + output(found.flatten(1))
            hidden = hidden + narrow(act(widen(norm_2(hidden))))
        return body.ln_f(hidden)

    return run_tokens


FAMILY = partial(
    Family,
    config_from_scratch=lambda size, special: {
        "n_inner": size.intermediate_size,
        "activation_function": "gelu_pytorch_tanh",  # GPT-2's own function, in one fused operation
        "resid_pdrop": size.dropout,
        "embd_pdrop": size.dropout,
        "attn_pdrop": size.dropout,
        "bos_token_id": special["end_of_text"],
        "eos_token_id": special["end_of_text"],
    },
    token_runner=_token_runner,
    # The causal buffers that checkpoints written before transformers 4.31 carry along.
    ignored_on_load=(r"\.attn\.(bias|masked_bias)$",),
)
