"""GPT-2 (Radford et al. 2019), and its shallower students such as DistilGPT2.

Axes: N tokens, D hidden size.
"""

from collections.abc import Iterable, Mapping
from typing import Any, cast

from jaxtyping import Float, Int
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PretrainedConfig

from stillhouse.families.base import (
    Attend,
    Family,
    Head,
    StudentKind,
    projection,
    renumber_layers,
    shallower,
)
from stillhouse.recipe import TeacherRecipe


def _head(model: GPT2LMHeadModel) -> Head:
    weight, bias = projection(model.lm_head)
    return Head(lambda hidden: hidden, weight, bias)


def _scratch_config(
    teacher: TeacherRecipe, vocabulary_size: int, sequence_length: int, special: Mapping[str, int]
) -> PretrainedConfig:
    return GPT2Config(
        vocab_size=vocabulary_size,
        n_positions=sequence_length,
        n_embd=teacher.hidden_size,
        n_layer=teacher.num_layers,
        n_head=teacher.num_heads,
        n_inner=teacher.intermediate_size,
        activation_function="gelu_pytorch_tanh",  # GPT-2's own function, in one fused operation
        resid_pdrop=teacher.dropout,
        embd_pdrop=teacher.dropout,
        attn_pdrop=teacher.dropout,
        bos_token_id=special["end_of_text"],
        eos_token_id=special["end_of_text"],
    )


def _run_tokens(
    model: GPT2LMHeadModel, ids: Int[Tensor, " N"], positions: Int[Tensor, " N"], attend: Attend
) -> Float[Tensor, "N D"]:
    """The layers' own modules one after the other, without what transformers does around them:
    with one token at a time, a quarter of a small model's time."""
    body, heads = model.transformer, model.config.n_head
    blocks = cast(Iterable[Any], body.h)
    hidden = body.wte(ids) + body.wpe(positions)
    for layer, block in enumerate(blocks):
        attention = block.attn
        projected = attention.c_attn(block.ln_1(hidden)).unflatten(-1, (3, heads, -1))
        found = attend(layer, *projected.unbind(1), scale=attention.scaling)
        hidden = hidden + attention.c_proj(found.flatten(1))
        hidden = hidden + block.mlp(block.ln_2(hidden))
    return hidden


LAYERS = "transformer.h"

FAMILY = Family(
    model_type="gpt2",
    language_modeling="causal",
    model_class="GPT2LMHeadModel",
    body="transformer",
    layers=LAYERS,
    attention_projections=("attn.c_attn",),
    row_wise=("attn.c_proj", "mlp"),
    final_norm="transformer.ln_f",
    embeddings={
        "word_embeddings": "transformer.wte.weight",
        "position_embeddings": "transformer.wpe.weight",
    },
    head=_head,
    students={"gpt2": StudentKind(shallower("n_layer"), renumber_layers(LAYERS))},
    scratch_config=_scratch_config,
    run_tokens=_run_tokens,
    # The causal buffers that checkpoints written before transformers 4.31 carry along.
    ignored_on_load=(r"\.attn\.(bias|masked_bias)$",),
)
