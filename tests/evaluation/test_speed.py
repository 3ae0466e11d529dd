"""Speed: plausible figures for models of any size."""

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

from stillhouse.evaluation.metrics.speed import measure_speed, run_forward, run_generation
from stillhouse.families.registry import family_of
from stillhouse.inference.reference import shape_key


def gpt2(positions: int = 128, num_layers: int = 1) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=50, n_positions=positions, n_embd=16, n_layer=num_layers, n_head=2,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


def bert() -> BertForMaskedLM:
    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=32,
    )  # fmt: skip
    return BertForMaskedLM(config).eval()


@pytest.mark.parametrize(("positions", "tokens"), [(128, 1024), (512, 2048)])
def test_forward_counts_its_tokens(positions, tokens):
    """Eight sequences, of 256 tokens or as many as the model takes."""
    model = gpt2(positions)
    assert run_forward(family_of(model.config), model) == tokens


@pytest.mark.parametrize(("positions", "new_tokens"), [(128, 64), (40, 24), (16, 8), (8, 4)])
def test_generation_fits_the_model(positions, new_tokens):
    """A model with few positions gets a shorter prompt and fewer new tokens, and no error."""
    model = gpt2(positions)
    assert run_generation(family_of(model.config), model) == new_tokens


def test_every_model_gets_a_rate():
    """Both kinds of speed for a causal model; a masked model does not generate."""
    models = {"gpt2": gpt2(), "bert": bert()}
    speeds = measure_speed({name: (family_of(m.config), m) for name, m in models.items()})
    names = ("forward_tokens_per_second", "generate_tokens_per_second")
    rates = [speeds["gpt2"][name] for name in names] + [speeds["bert"][names[0]]]
    assert all(rate is not None and rate > 0 for rate in rates)
    assert speeds["bert"]["generate_tokens_per_second"] is None


@pytest.mark.e2e
def test_range_of_a_speed_ratio_contains_the_ratio():
    """The reported range never contradicts the quotient of the two rates."""
    models = {"deep": gpt2(num_layers=4), "flat": gpt2()}
    speeds = measure_speed({name: (family_of(m.config), m) for name, m in models.items()})
    for kind in ("forward", "generate"):
        rates = [speeds[name][f"{kind}_tokens_per_second"] for name in models]
        low, high = speeds["flat"]["ratio_to_first"][kind]
        assert low <= rates[1] / rates[0] <= high
        assert speeds["deep"]["ratio_to_first"][kind] == [1.0, 1.0]


def test_models_of_one_shape_have_one_key(tmp_path):
    """Weights do not matter to the speed; the number of layers does."""
    for name, layers in (("one", 1), ("same", 1), ("other", 2)):
        gpt2(num_layers=layers).save_pretrained(tmp_path / name)
    assert shape_key(tmp_path / "one") == shape_key(tmp_path / "same")
    assert shape_key(tmp_path / "one") != shape_key(tmp_path / "other")
