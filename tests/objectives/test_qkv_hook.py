"""The QKV hook captures what the layer itself projects, with autograd, autocast and compilation."""

import gc
import weakref
from typing import Any

import pytest
import torch
from tests.tiny_models import EVERY_FAMILY_WITH_RELATIONS
from torch import Tensor
from transformers import PreTrainedModel

from stillhouse.families.registry import family_of
from stillhouse.objectives.relation import QKVHook
from stillhouse.tokens.batches import Batch

every_family = pytest.mark.parametrize("model", EVERY_FAMILY_WITH_RELATIONS, indirect=True)
OF_BLOCKS = ("mpnet", "modernbert", "deberta-v2")


@pytest.fixture(params=["bert"])
def model(request, tiny_model) -> PreTrainedModel:
    return tiny_model(request.param, num_layers=3)


@pytest.fixture
def batch(model, batch_of, words) -> Batch:
    rows = [[words(7), words(4, 1)], [words(12, 2)]]
    return batch_of(rows, 12, causal=family_of(model.config).language_modeling == "causal")


def projected_by_hand(block: Any, hidden: Tensor) -> list[Tensor]:
    """Queries, keys and values of a decoder's layer, as most of transformers name its parts, and
    of the encoders `OF_BLOCKS`."""
    if hasattr(block, "attn_norm"):  # ModernBERT
        return [*block.attn.Wqkv(block.attn_norm(hidden)).chunk(3, -1)]
    if hasattr(block, "attention"):
        own = getattr(block.attention, "attn", None) or block.attention.self
        names = "qkv" if hasattr(own, "q") else ("query_proj", "key_proj", "value_proj")
        return [getattr(own, name)(hidden) for name in names]
    for norm in ("input_layernorm", "self_attn_layer_norm"):
        hidden = getattr(block, norm)(hidden) if hasattr(block, norm) else hidden
    attention = block.self_attn
    if hasattr(attention, "qkv_proj"):  # of two heads of queries, one of keys and one of values
        return [*attention.qkv_proj(hidden).split([16, 8, 8], -1)]
    return [each(hidden) for each in (attention.q_proj, attention.k_proj, attention.v_proj)]


def capture(hook: QKVHook, model: PreTrainedModel, batch: Batch) -> list[Tensor]:
    with hook.open() as captured:
        family_of(model.config).run_body(model, batch)
    return captured


def projected(model: PreTrainedModel, batch: Batch, layer: int) -> list[Tensor]:
    """Queries, keys and values recomputed from the layer's input, by the weights' own names."""
    family, seen = family_of(model.config), []
    hook = family.layers_of(model)[layer].register_forward_pre_hook(
        lambda _, args, named: seen.append(args[0] if args else named["hidden_states"]),
        with_kwargs=True,
    )
    family.run_body(model, batch)
    hook.remove()
    (hidden,), weights = seen, dict(model.named_parameters())
    prefix = f"{family.layers}.{layer}"
    if family.model_type == "gpt2":
        scale, shift = (weights[f"{prefix}.ln_1.{kind}"] for kind in ("weight", "bias"))
        hidden = torch.nn.functional.layer_norm(hidden, hidden.shape[-1:], scale, shift)
        weight, bias = (weights[f"{prefix}.attn.c_attn.{kind}"] for kind in ("weight", "bias"))
        size = hidden.shape[-1]
        thirds = [slice(start, start + size) for start in range(0, 3 * size, size)]
        return [hidden @ weight[:, third] + bias[third] for third in thirds]
    block: Any = model.get_submodule(prefix)
    if family.model_type in OF_BLOCKS or hasattr(block, "self_attn"):
        return projected_by_hand(block, hidden)
    distil = family.model_type == "distilbert"
    names = ("q_lin", "k_lin", "v_lin") if distil else ("query", "key", "value")
    parent = f"{prefix}.attention" if distil else f"{prefix}.attention.self"
    return [
        hidden @ weights[f"{parent}.{name}.weight"].T + weights[f"{parent}.{name}.bias"]
        for name in names
    ]


@pytest.mark.e2e
@every_family
@pytest.mark.parametrize("layer", [0, 2])
def test_queries_keys_and_values_of_the_chosen_layer(model, batch, layer):
    """In this order, including padding."""
    hook = QKVHook(family_of(model.config), model, layer)
    found, expected = capture(hook, model, batch), projected(model, batch, layer)
    assert len(found) == 3
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.e2e
@every_family
def test_gradients_flow_through_captured_tensors(model, batch):
    """Gradients of the embeddings equal those through the projections."""
    hook = QKVHook(family_of(model.config), model, 1)
    embeddings = model.get_input_embeddings().weight
    found, expected = (
        torch.autograd.grad(torch.cat(kinds, dim=-1).square().sum(), embeddings)[0]
        for kinds in (capture(hook, model, batch), projected(model, batch, 1))
    )
    assert found.abs().max() > 0
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@every_family
@pytest.mark.parametrize("regime", [torch.no_grad, torch.inference_mode])
def test_frozen_teacher_is_captured(model, batch, regime):
    """The same values without a graph."""
    hook = QKVHook(family_of(model.config), model, 2)
    with regime():
        found = capture(hook, model, batch)
    assert not any(kind.requires_grad for kind in found)
    for ours, theirs in zip(found, projected(model, batch, 2), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.e2e
def test_captured_tensors_have_the_precision_of_autocast(model, batch):
    """Captured tensors are in the precision of autocast and differentiable."""
    hook = QKVHook(family_of(model.config), model, 2)
    with torch.autocast("cpu", torch.bfloat16):
        found = capture(hook, model, batch)
    assert {kind.dtype for kind in found} == {torch.bfloat16}
    assert all(kind.requires_grad for kind in found)


@every_family
def test_hook_keeps_no_reference_to_captured_tensors(model, batch):
    """Tensors are freed with the caller's references; a run outside captures nothing."""
    hook = QKVHook(family_of(model.config), model, 1)
    with torch.no_grad():
        captured = capture(hook, model, batch)
        traces = [weakref.ref(kind) for kind in captured]
        family_of(model.config).run_body(model, batch)
    assert len(captured) == 3
    captured.clear()
    gc.collect()
    assert not any(trace() is not None for trace in traces)


@pytest.mark.e2e
def test_failed_run_leaves_no_captured_tensors(model, batch):
    """An error closes the hook; its tensors are freed and the next run captures its own."""
    hook, traces = QKVHook(family_of(model.config), model, 0), []

    def fail() -> None:
        with hook.open() as captured, torch.no_grad():
            family_of(model.config).run_body(model, batch)
            traces.extend(weakref.ref(kind) for kind in captured)
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        fail()
    gc.collect()
    assert [trace() for trace in traces] == [None] * 3
    assert len(capture(hook, model, batch)) == 3


@pytest.mark.e2e
@pytest.mark.e2e
def test_compiled_body_is_captured(model, batch):
    """Even if the hook was closed in the first run, whose trace is reused."""
    family = family_of(model.config)
    hook = QKVHook(family, model, 1)
    expected = capture(hook, model, batch)
    model.base_model.compile(backend="eager")
    family.run_body(model, batch)
    for _ in range(2):
        for ours, theirs in zip(capture(hook, model, batch), expected, strict=True):
            torch.testing.assert_close(ours, theirs)
