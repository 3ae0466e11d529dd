"""Attention in plain products: the values and gradients of the definition, in every layer."""

import math
from typing import Any

import pytest
import torch
import transformers
from tests.tiny_models import EVERY_FAMILY, is_causal
from torch import Tensor

from stillhouse.errors import ModelError
from stillhouse.families import attention
from stillhouse.families.attention import plain_attention
from stillhouse.families.registry import family_of

BATCH, HEADS, LENGTH, SIZE = 2, 3, 7, 4
SHAPE = (BATCH, HEADS, LENGTH, SIZE)


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value."""
    drawn = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0)).to(dtype)
    query, key, value = (each.clone().requires_grad_() for each in drawn)
    return query, key, value


def masks() -> dict[str, Tensor | None]:
    """Two documents in a sequence, of another size in each; the last two positions are padding."""
    segments = torch.tensor([[1, 1, 1, 2, 2, 0, 0], [1, 2, 2, 2, 2, 0, 0]])
    packed = (segments[:, :, None] == segments[:, None, :])[:, None]
    causal = torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool).tril()
    return {
        "none": None, "causal": causal, "packed": packed, "packed causal": packed & causal,
        "padded": (segments > 0)[:, None, None],
    }  # fmt: skip


def by_definition(
    query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None, scale: float
) -> Tensor:
    """In float64, position by position (Vaswani et al. 2017, equation 1)."""
    query, key, value = (each.double() for each in (query, key, value))
    if visible is not None:
        visible = visible.expand(-1, HEADS, LENGTH, -1)
    rows = []
    for place in range(LENGTH):
        scores = scale * torch.einsum("bhd,bhtd->bht", query[:, :, place], key)
        if visible is not None:
            scores = scores.masked_fill(~visible[:, :, place], -math.inf)
        rows.append(torch.einsum("bht,bhtd->bhd", scores.softmax(-1), value))
    return torch.stack(rows, dim=2)


@pytest.mark.parametrize("mask", masks())
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 3e-2)])
def test_values_and_gradients_are_those_of_the_definition(mask, dtype, tolerance):
    """Whatever is visible; bfloat16 to its precision."""
    visible, given = masks()[mask], torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    leaves = inputs(dtype)
    found = plain_attention(*leaves, visible, scale=0.7)
    assert found.dtype == dtype
    exact = by_definition(*leaves, visible, 0.7)
    torch.testing.assert_close(found.double(), exact, rtol=tolerance, atol=tolerance)
    for one, other in zip(
        torch.autograd.grad(found, leaves, given.to(dtype)),
        torch.autograd.grad(exact, leaves, given.double()),
        strict=True,
    ):
        torch.testing.assert_close(one.double(), other.double(), rtol=tolerance, atol=3 * tolerance)


def test_large_scores_stay_finite():
    """A score that is far below zero, where the mask already hides."""
    query, key, value = inputs(torch.bfloat16)
    found = plain_attention(1e18 * query, -1e18 * key, value, masks()["causal"], scale=1.0)
    assert torch.isfinite(found).all()


def test_dropped_weights_are_made_up_for():
    """Half of the weights fall, the others count twice: the mean stays."""
    query, key, _ = inputs()
    torch.manual_seed(0)
    ones = torch.ones(SHAPE)
    drawn = [plain_attention(query, key, ones, None, scale=0.5, dropout=0.5) for _ in range(400)]
    mean = torch.stack(drawn).mean(0)
    torch.testing.assert_close(mean, ones, rtol=0, atol=0.15)
    assert not torch.allclose(drawn[0], ones)


@pytest.mark.parametrize("chance", [0.1, 0.5, 0.999])
def test_factors_fall_at_their_chance_and_independently(chance):
    """Every fourth place has a share of one random word: each falls as often as all do."""
    torch.manual_seed(0)
    drawn = attention.dropout_factors(torch.empty(400_001), chance)
    noise = 5 * math.sqrt(chance * (1 - chance) / 100_000)
    dropped = (drawn[:400_000] == 0).double().view(-1, 4)
    torch.testing.assert_close(
        dropped.mean(0), torch.full((4,), chance).double(), rtol=0, atol=noise
    )
    correlations = torch.corrcoef(dropped.T).fill_diagonal_(0)
    assert correlations.abs().max() < 5 / math.sqrt(100_000)
    assert drawn.unique().tolist() == pytest.approx([0, 1 / (1 - chance)], rel=1e-2)
    torch.manual_seed(0)
    assert torch.equal(drawn, attention.dropout_factors(torch.empty(400_001), chance))


@pytest.mark.parametrize("family", EVERY_FAMILY)
@pytest.mark.parametrize("uniform", [True, False])
def test_a_body_computes_the_same_by_either_attention(
    family, uniform, tiny_model, batch_of, words, monkeypatch
):
    """Last hidden states and all gradients, with packed documents and without."""
    model = tiny_model(family)
    rows = [[words(7), words(4, 1)], [words(12, 2)]]
    if uniform:
        rows = [[words(12, 1)], [words(12, 2)]]
    batch = batch_of(rows, 12, causal=is_causal(family))
    found = []
    for longest in (0, 256):
        monkeypatch.setattr(attention, "MAX_LENGTH", longest)
        hidden = family_of(model.config).run_body(model, batch)[batch.rows("all")]
        hidden.square().sum().backward()
        found.append([hidden, *(p.grad for p in model.parameters() if p.grad is not None)])
        model.zero_grad()
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", EVERY_FAMILY)
@pytest.mark.parametrize("longest", [0, 256], ids=["sdpa", "products"])
def test_autocast_stays_close_to_float32(family, longest, tiny_model, batch_of, words, monkeypatch):
    """Queries, keys and values may arrive in different precisions."""
    monkeypatch.setattr(attention, "MAX_LENGTH", longest)
    model = tiny_model(family)
    own = family_of(model.config)
    batch = batch_of([[words(7), words(4, 1)], [words(12, 2)]], 12, causal=is_causal(family))
    exact = own.run_body(model, batch)[batch.rows("all")]
    with torch.autocast("cpu", torch.bfloat16):
        found = own.run_body(model, batch)[batch.rows("all")]
    assert (found.float() - exact).norm() < 0.05 * exact.norm()


def test_long_sequences_go_to_the_fused_kernel(tiny_model, batch_of, words, monkeypatch):
    """Plain products are for squares that are small."""
    called = []
    monkeypatch.setattr(attention, "MAX_LENGTH", 11)
    monkeypatch.setattr(attention, "plain_attention", lambda *_, **__: called.append(1))
    model = tiny_model("bert")
    batch = batch_of([[words(12, 1)]], 12, causal=False)
    family_of(model.config).run_body(model, batch)
    assert not called


def sliding_models() -> dict[str, transformers.PreTrainedModel]:
    """Tiny models whose attention sees a window of 4 positions: in each layer, or in every other
    one; to the left, or to both sides; with fewer heads of keys than of queries."""
    shape: dict[str, Any] = {
        "vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    heads: dict[str, Any] = {"num_key_value_heads": 1, "head_dim": 8}
    kinds = ["sliding_attention", "full_attention"]
    configs = [
        transformers.MistralConfig(**shape, **heads, sliding_window=4),
        transformers.Qwen2Config(
            **shape, num_key_value_heads=2, use_sliding_window=True, sliding_window=4,
            layer_types=kinds,
        ),
        transformers.Gemma3TextConfig(**shape, **heads, sliding_window=4, layer_types=kinds),
        transformers.ModernBertConfig(
            **shape, cls_token_id=1, sep_token_id=2, local_attention=6, layer_types=kinds
        ),
    ]  # fmt: skip
    torch.manual_seed(0)
    return {config.model_type: transformers.AutoModel.from_config(config) for config in configs}


@pytest.mark.parametrize("longest", [attention.MAX_LENGTH, 0], ids=["products", "sdpa"])
@pytest.mark.parametrize("given", ["none", "all", "floats"])
@pytest.mark.parametrize("name", ["mistral", "qwen2", "gemma3_text", "modernbert"])
def test_a_sliding_window_is_kept(name, given, longest, monkeypatch):
    """Past the window, with a caller's mask or none: the hidden states of plain transformers."""
    monkeypatch.setattr(attention, "MAX_LENGTH", longest)
    model = sliding_models()[name].eval()
    ids = torch.randint(3, 50, (2, 13), generator=torch.Generator().manual_seed(1))
    seen = torch.ones(2, 1, 13, 13, dtype=torch.bool)
    if name != "modernbert":
        seen = seen.tril()
    mask = {
        "none": None, "all": seen,
        "floats": torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min),
    }[given]  # fmt: skip
    with torch.no_grad():
        expected = model(input_ids=ids).last_hidden_state
        with attention.explicit_attention_mask(model.config):
            found = model(input_ids=ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("causal", [True, False])
def test_a_window_is_a_band(causal):
    """Which keys a query sees, one by one; the queries may be the last of the positions alone."""
    found = attention.within_window(3, 6, 2, causal=causal)[0, 0]
    for row, query in enumerate(range(3, 6)):
        for key in range(6):
            near = abs(query - key) < 2 and (key <= query or not causal)
            assert bool(found[row, key]) == near


def test_attention_that_cannot_take_a_mask_is_refused():
    """Chunked layers would lose their chunks, and attention sinks their share, in silence."""
    config: Any = transformers.GPT2Config()
    config.layer_types = ["chunked_attention"] * 12
    config._attn_implementation = "sdpa"
    with (
        pytest.raises(ModelError, match="chunked attention cannot take"),
        attention.explicit_attention_mask(config),
    ):
        pass
    query = torch.zeros(1, 1, 2, 4)
    function = transformers.AttentionInterface()[attention.NAME]
    with pytest.raises(ModelError, match="sinks"):
        function(torch.nn.Identity(), query, query, query, None, s_aux=query)
