"""A model in a lower precision: near the original, and the same for a row whatever is beside it."""

import copy

import pytest
import torch
from tests.tiny_models import EVERY_CAUSAL_FAMILY
from transformers.pytorch_utils import Conv1D

from stillhouse.families.registry import family_of
from stillhouse.inference.engine.kv_cache import Chunk, SlottedModel
from stillhouse.inference.quantization import Int8Linear, has_int8, to_precision

needs_int8 = pytest.mark.skipif(not has_int8(), reason="int8 is not exact on this machine")


@needs_int8
def test_an_int8_product_is_what_its_formula_says():
    """In float64, from the rounded weights and rows: equal but for the last bits of float32."""
    torch.manual_seed(0)
    weight, bias, rows = torch.randn(40, 96), torch.randn(40), 10 * torch.randn(5, 3, 96)
    rows[1, 1] = 0
    found = Int8Linear(weight, bias)(rows)
    scale = weight.double().abs().amax(1, keepdim=True) / 127
    row_scale = rows.double().abs().amax(-1, keepdim=True).clamp(min=1e-30) / 127
    rounded = (rows.double() / row_scale).round() * row_scale
    expected = rounded @ ((weight.double() / scale).round() * scale).T + bias.double()
    torch.testing.assert_close(found, expected.float(), atol=1e-3, rtol=1e-4)
    plain = rows @ weight.T + bias
    assert ((found - plain).norm() / plain.norm()).item() < 0.02
    assert torch.equal(found[1, 1], bias)


@needs_int8
@pytest.mark.parametrize(("num_outputs", "num_inputs"), [(40, 96), (7, 13), (320, 768), (64, 3072)])
def test_a_row_does_not_depend_on_the_rows_beside_it(num_outputs, num_inputs):
    """To the bit, alone, among few and among many: requests must not change each other. Among
    millions of numbers some lie so near the middle of two integers that another way of rounding
    would show."""
    torch.manual_seed(0)
    linear = Int8Linear(torch.randn(num_outputs, num_inputs), torch.randn(num_outputs))
    rows = torch.randn(1500, num_inputs)
    everything = linear(rows)
    for size in (1, 4, 5, 77):
        parts = [linear(part) for part in rows.split(size)]
        assert torch.equal(torch.cat(parts), everything)


@needs_int8
@pytest.mark.parametrize(("num_outputs", "num_inputs"), [(40, 96), (7, 13), (64, 256)])
def test_onednn_gives_the_bits_of_fbgemm(num_outputs, num_inputs):
    """From the number of rows on that it was told, whether its kernel is fast here or not."""
    torch.manual_seed(0)
    weight, bias = torch.randn(num_outputs, num_inputs), torch.randn(num_outputs)
    fbgemm, both = Int8Linear(weight, bias), Int8Linear(weight, bias, onednn_rows=5)
    for num_rows in (1, 4, 5, 9):
        rows = torch.randn(num_rows, num_inputs)
        assert torch.equal(both(rows), fbgemm(rows))


@pytest.mark.parametrize("family", EVERY_CAUSAL_FAMILY)
@pytest.mark.parametrize("precision", ["bf16", pytest.param("int8", marks=needs_int8)])
def test_a_model_says_nearly_the_same(tiny_model, words, precision, family):
    """Its probabilities are within a few percent, and not the same: something was done."""
    model = tiny_model(family)
    less = copy.deepcopy(model)
    to_precision(less, precision)
    assert not any(isinstance(each, Conv1D) for each in less.modules()) or precision == "bf16"
    found = []
    for each in (model, less):
        slots = SlottedModel(family_of(each.config), each, 2)
        ids = words(12)
        found.append(slots.forward([Chunk(slots.open(), ids, 12)]).softmax(-1))
    assert (found[0] - found[1]).abs().max() < 0.08
    assert not torch.equal(found[0], found[1])
