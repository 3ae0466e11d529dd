"""Pairs small enough for tests, of the architectures that the benchmarks measure."""

import functools

import pytest
from benchmarks.ours import Pair
from transformers import BertConfig, GPT2Config

TINY_BERT = functools.partial(
    BertConfig,
    vocab_size=97,
    hidden_size=32,
    num_hidden_layers=4,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=24,
    initializer_range=0.1,
)
TINY_GPT2 = functools.partial(
    GPT2Config,
    vocab_size=97,
    n_embd=32,
    n_layer=4,
    n_head=4,
    n_positions=24,
    initializer_range=0.1,
    bos_token_id=0,
    eos_token_id=0,
)


@pytest.fixture
def pairs() -> dict[str, Pair]:
    """One pair of each kind, with the dropout of its configuration."""
    return {
        "bert": Pair(TINY_BERT, sequences=5, length=24, mask_id=3),
        "gpt2": Pair(TINY_GPT2, sequences=5, length=24),
    }
