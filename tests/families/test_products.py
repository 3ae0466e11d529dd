"""Float32 products by oneDNN: those of PyTorch, and of nothing else."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from stillhouse.families.products import MIN_ROWS, OneDNNProducts, fast_products

ROWS = 3 * MIN_ROWS


def layers(size=48):
    torch.manual_seed(0)
    found = [nn.Linear(size, 40), nn.Linear(size, 40, bias=False), Conv1D(40, size)]
    nn.init.normal_(found[2].bias)
    return found


@pytest.mark.parametrize("shape", [(ROWS,), (3, MIN_ROWS), (2,), ()], ids=str)
def test_products_equal_those_in_float64(shape):
    """Of any number of rows, in layers of either layout, with and without a bias."""
    inputs = torch.randn(*shape, 48)
    for layer in layers():
        with torch.inference_mode():
            with OneDNNProducts():
                found = layer(inputs)
            with fast_products(inputs.device):
                torch.testing.assert_close(found, layer(inputs))
            expected = layer.double()(inputs.double())
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_only_inference_in_float32_is_computed_by_onednn():
    """Gradients flow, and a lower precision keeps its own product to the bit, as in autocast."""
    for layer in layers():
        inputs = torch.randn(ROWS, 48, requires_grad=True)
        with OneDNNProducts():
            layer(inputs).sum().backward()
        assert inputs.grad is not None
        with torch.inference_mode(), torch.autocast("cpu"), OneDNNProducts():
            assert layer(inputs).dtype == torch.bfloat16
        low, rows = layer.bfloat16(), torch.randn(ROWS, 48).bfloat16()
        with torch.inference_mode():
            expected = low(rows)
            with OneDNNProducts():
                assert torch.equal(low(rows), expected)


def test_many_rows_are_computed_by_onednn():
    """Few rows are not."""
    layer, inputs = layers()[0], torch.randn(ROWS, 48)
    with torch.inference_mode(), torch.profiler.profile() as profile, OneDNNProducts():
        layer(inputs)
        layer(inputs[: MIN_ROWS - 1])
    (own,) = [event for event in profile.key_averages() if "_linear_pointwise" in event.key]
    assert own.count == 1


def test_a_layout_is_left_alone_where_its_product_is_slower():
    """Each of the two by itself."""
    inputs = torch.randn(ROWS, 48)
    linear, _, conv = layers()
    for rows, columns in ((True, False), (False, True)):
        for layer, is_fast in ((linear, rows), (conv, columns)):
            with (
                torch.inference_mode(),
                torch.profiler.profile() as profile,
                OneDNNProducts(rows=rows, columns=columns),
            ):
                layer(inputs)
            found = any("_linear_pointwise" in event.key for event in profile.key_averages())
            assert found == is_fast


def test_calls_by_keyword_and_sums_of_matrices_are_as_ever():
    inputs, weight, added = torch.randn(ROWS, 48), torch.randn(40, 48), torch.randn(ROWS, 40)
    with torch.inference_mode(), OneDNNProducts():
        product = nn.functional.linear(input=inputs, weight=weight)
        total = torch.addmm(added, inputs, weight.t())
    torch.testing.assert_close(product, inputs @ weight.t(), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(total, added + product, rtol=1e-5, atol=1e-4)
