"""The attention tap: what it catches is what the layer itself projects, under every regime."""

import gc
import weakref

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from stillhouse.families.qkv_hook import QKVHook
from stillhouse.families.registry import FAMILIES, family_of
from stillhouse.tokens.batches import Batch

every_family = pytest.mark.parametrize("model", FAMILIES, indirect=True)


@pytest.fixture(params=["bert"])
def model(request, tiny_model) -> PreTrainedModel:
    return tiny_model(request.param, num_layers=3)


@pytest.fixture
def batch(model, batch_of, words) -> Batch:
    rows = [[words(7), words(4, 1)], [words(12, 2)]]
    return batch_of(rows, 12, causal=model.config.model_type == "gpt2")


def catch(tap: QKVHook, model: PreTrainedModel, batch: Batch) -> list[Tensor]:
    with tap.open() as caught:
        family_of(model.config).run_body(model, batch)
    return caught


def projected(model: PreTrainedModel, batch: Batch, layer: int) -> list[Tensor]:
    """Queries, keys and values made again from the layer's input, by the weights' own names."""
    family = family_of(model.config)
    output = model.get_submodule(family.body)(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask(),
        position_ids=batch.position_ids + family.position_offset(model.config),
        output_hidden_states=True,
    )
    hidden, weights = output.hidden_states[layer], dict(model.named_parameters())
    prefix = f"{family.layers}.{layer}"
    if family.model_type == "gpt2":
        scale, shift = (weights[f"{prefix}.ln_1.{kind}"] for kind in ("weight", "bias"))
        hidden = torch.nn.functional.layer_norm(hidden, hidden.shape[-1:], scale, shift)
        weight, bias = (weights[f"{prefix}.attn.c_attn.{kind}"] for kind in ("weight", "bias"))
        size = hidden.shape[-1]
        thirds = [slice(start, start + size) for start in range(0, 3 * size, size)]
        return [hidden @ weight[:, third] + bias[third] for third in thirds]
    distil = family.model_type == "distilbert"
    names = ("q_lin", "k_lin", "v_lin") if distil else ("query", "key", "value")
    parent = f"{prefix}.attention" if distil else f"{prefix}.attention.self"
    return [
        hidden @ weights[f"{parent}.{name}.weight"].T + weights[f"{parent}.{name}.bias"]
        for name in names
    ]


@every_family
@pytest.mark.parametrize("layer", [0, 2])
def test_queries_keys_and_values_of_the_chosen_layer(model, batch, layer):
    """In this order, each of the hidden size, padding and all."""
    tap = QKVHook(family_of(model.config), model, layer)
    found, expected = catch(tap, model, batch), projected(model, batch, layer)
    assert len(found) == 3
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@every_family
def test_gradients_flow_through_what_is_caught(model, batch):
    """Down to the embeddings, as through the projections themselves."""
    tap = QKVHook(family_of(model.config), model, 1)
    embeddings = model.get_input_embeddings().weight
    found, expected = (
        torch.autograd.grad(torch.cat(kinds).square().sum(), embeddings)[0]
        for kinds in (catch(tap, model, batch), projected(model, batch, 1))
    )
    assert found.abs().max() > 0
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@every_family
@pytest.mark.parametrize("regime", [torch.no_grad, torch.inference_mode])
def test_a_frozen_teacher_is_caught_too(model, batch, regime):
    """Without a graph, the same numbers."""
    tap = QKVHook(family_of(model.config), model, 2)
    with regime():
        found = catch(tap, model, batch)
    assert not any(kind.requires_grad for kind in found)
    for ours, theirs in zip(found, projected(model, batch, 2), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_autocast_gives_its_own_precision(model, batch):
    """What attention itself multiplies, with a gradient for the weights."""
    tap = QKVHook(family_of(model.config), model, 2)
    with torch.autocast("cpu", torch.bfloat16):
        found = catch(tap, model, batch)
    assert {kind.dtype for kind in found} == {torch.bfloat16}
    assert all(kind.requires_grad for kind in found)


@every_family
def test_nothing_is_kept_but_by_the_caller(model, batch):
    """Once the caller lets go, the tensors are gone; a run outside catches nothing."""
    tap = QKVHook(family_of(model.config), model, 1)
    with torch.no_grad():
        caught = catch(tap, model, batch)
        traces = [weakref.ref(kind) for kind in caught]
        family_of(model.config).run_body(model, batch)
    assert len(caught) == 3
    caught.clear()
    gc.collect()
    assert not any(trace() is not None for trace in traces)


def test_a_run_that_fails_leaves_nothing_behind(model, batch):
    """An error while it is open closes it: what it caught is gone, and the next run is its own."""
    tap, traces = QKVHook(family_of(model.config), model, 0), []

    def fail() -> None:
        with tap.open() as caught, torch.no_grad():
            family_of(model.config).run_body(model, batch)
            traces.extend(weakref.ref(kind) for kind in caught)
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        fail()
    gc.collect()
    assert [trace() for trace in traces] == [None] * 3
    assert len(catch(tap, model, batch)) == 3


@pytest.mark.e2e
def test_a_compiled_body_is_caught_as_well(model, batch):
    """Also where the first run, whose trace is kept, asked for nothing."""
    family = family_of(model.config)
    tap = QKVHook(family, model, 1)
    expected = catch(tap, model, batch)
    model.base_model.compile(backend="eager")
    family.run_body(model, batch)
    for _ in range(2):
        for ours, theirs in zip(catch(tap, model, batch), expected, strict=True):
            torch.testing.assert_close(ours, theirs)
