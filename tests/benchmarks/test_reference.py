"""Our step computes what the plain statement of 2019's step computes: losses, terms, gradients."""

import dataclasses
import functools

import pytest
from benchmarks.ours import Models, Pair, build_batch, build_models, compare
from transformers import BertConfig, GPT2Config

from stillhouse.recipe import Rows
from stillhouse.tokens.batches import Batch

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
PAIRS = {
    "bert": Pair(TINY_BERT, sequences=5, length=24, mask_id=3),
    "gpt2": Pair(TINY_GPT2, sequences=5, length=24),
}


@pytest.fixture(params=PAIRS)
def models_and_batch(request: pytest.FixtureRequest) -> tuple[Models, Batch]:
    pair = PAIRS[request.param]
    return build_models(pair, seed=1), build_batch(pair, seed=1)


@pytest.mark.parametrize("rows", ["all", "predicted"])
def test_losses_terms_and_gradients_equal_those_of_2019(
    models_and_batch: tuple[Models, Batch], rows: Rows
):
    """In float32, for every parameter of the student."""
    equality = compare(*models_and_batch, rows)
    assert max(equality.losses.values()) < 1e-5, equality.losses
    assert max(equality.gradients.values()) < 1e-5, equality.gradients


def test_the_comparison_covers_every_parameter_and_term(models_and_batch: tuple[Models, Batch]):
    """An equality that leaves something out proves nothing of it."""
    models, batch = models_and_batch
    equality = compare(models, batch, "all")
    assert set(equality.gradients) == {name for name, _ in models.student.named_parameters()}
    assert set(equality.losses) == {"loss", "soft_target", "language_modeling", "hidden_cosine"}


def test_the_comparison_fails_where_the_two_differ(models_and_batch: tuple[Models, Batch]):
    """Shown other labels than the reference, our term and our gradients must tell."""
    models, batch = models_and_batch
    moved = batch.labels.where(batch.labels < 0, (batch.labels + 1) % 97)
    equality = compare(
        models, dataclasses.replace(batch, labels=moved), "all", reference_batch=batch
    )
    assert not equality.holds()
    assert equality.losses["language_modeling"] > 1e-4
    assert max(equality.gradients.values()) > 1e-3
