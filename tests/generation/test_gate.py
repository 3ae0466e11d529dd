"""Less precision where it costs nothing, and the plain one where it does."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import stillhouse
from stillhouse.errors import ModelError, RecipeError
from stillhouse.families import resolve_folder
from stillhouse.generation.gate import load_at_precision
from stillhouse.generation.precision import Int8Linear, has_int8

needs_int8 = pytest.mark.skipif(not has_int8(), reason="needs a processor with AVX512-VNNI")
PROMPT = "def __init__(self"


@pytest.fixture(scope="module")
def fragile(tmp_path_factory):
    """The sample teacher with one enormous weight in each row: eight bits have nothing left for the
    others. (The weight stands at an input that is zero, so that the model says what it said.)"""
    folder = tmp_path_factory.mktemp("fragile") / "model"
    shutil.copytree(resolve_folder("sample", offline=True), folder)
    weights = load_file(folder / "model.safetensors")
    for layer in range(6):
        prefix = f"transformer.h.{layer}"
        weights[f"{prefix}.ln_2.weight"][0] = 0
        weights[f"{prefix}.ln_2.bias"][0] = 0
        weights[f"{prefix}.mlp.c_fc.weight"][0] = 500.0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@needs_int8
def test_auto_is_int8_where_the_perplexity_stays():
    """The sample teacher changes by less than a percent, and continues as it did for a while."""
    model, precision, change = load_at_precision("sample", "auto", offline=True)
    assert precision == "int8"
    assert abs(change) < 0.01
    assert any(isinstance(each, Int8Linear) for each in model.model.modules())
    plain = stillhouse.load("sample", offline=True)
    asked = {"greedy": True, "max_new_tokens": 4}
    assert model.generate(PROMPT, **asked) == plain.generate(PROMPT, **asked)
    assert model.num_parameters == plain.model.num_parameters()


@needs_int8
def test_a_model_that_loses_by_it_stays_as_it_is(fragile):
    """Auto gives float32 weights back; asked for by name, the figure is the answer."""
    model, precision, change = load_at_precision(fragile, "auto")
    assert (precision, change) == ("fp32", 0.0)
    asked = {"greedy": True, "max_new_tokens": 8}
    assert model.generate(PROMPT, **asked) == stillhouse.load(fragile).generate(PROMPT, **asked)
    with pytest.raises(ModelError, match=r"In int8 the perplexity of .* changes by \d+.*1% is al"):
        load_at_precision(fragile, "int8")


def test_bf16_is_taken_where_it_is_asked_for():
    """Its weights are; its text goes on."""
    model, precision, change = load_at_precision("sample", "bf16", offline=True)
    assert precision == "bf16"
    assert change < 0.01
    assert model.model.dtype == torch.bfloat16
    assert len(model.generate(PROMPT, greedy=True, max_new_tokens=8)) == 1


def test_a_precision_that_does_not_exist_is_named():
    """And those that do."""
    with pytest.raises(RecipeError, match="precision is fp8; choose from auto, fp32, bf16, int8"):
        load_at_precision("sample", "fp8", offline=True)


@pytest.mark.parametrize("precision", ["bf16", pytest.param("int8", marks=needs_int8)])
def test_an_encoder_with_real_weights_says_the_same_in_less(precision):
    """Its vectors point where they did, and it is said by how much they moved."""
    found = load_at_precision("minilm", precision, offline=True)
    assert found.precision == precision
    assert 0 < found.change < 0.01
    assert found.measured == "outputs"
    texts = ["A cat sleeps.", "The sea was rough that night.", "Taxes are due in April."]
    cosines = (found.model.embed(texts) * stillhouse.load("minilm").embed(texts)).sum(1)
    assert cosines.min() > 0.995
