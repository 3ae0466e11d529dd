"""The logit lens and attention of a text."""

import numpy as np
import pytest
import torch
from tests.tiny_models import EVERY_FAMILY

from stillhouse.errors import DataError
from stillhouse.inspection.lens import (
    attention_of,
    head_distances,
    inspect_pair,
    logit_lens,
    read,
)

TEXT = "w7 w8 w30 w12 w7"


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_the_last_layer_predicts_what_the_model_does(family, loaded):
    """In every family, whatever follows its layers; and attention sums to 1."""
    model = loaded(family)
    text = read(model, TEXT)
    lens = logit_lens(model, text)
    with torch.inference_mode():
        logits = model.model(input_ids=text.ids[None]).logits[0]
    expected = logits.double().log_softmax(-1)
    torch.testing.assert_close(lens[-1], expected, atol=1e-4, rtol=1e-4)
    assert len(lens) == model.model.config.num_hidden_layers
    assert not torch.allclose(lens[0], lens[-1], atol=1e-3)
    weights = attention_of(model, text)
    assert weights.shape[0] == len(lens)
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:3]))


def test_losses_and_divergences_are_those_of_numpy(loaded):
    model = loaded("llama")
    text = read(model, TEXT)
    first, last = (
        each.numpy() for each in (logit_lens(model, text)[0], logit_lens(model, text)[-1])
    )
    row = inspect_pair(model, None, TEXT)["model"]["layers"][0]
    ids = text.ids.numpy()
    assert row["loss"] == pytest.approx(-first[np.arange(len(ids) - 1), ids[1:]].mean())
    assert row["kl"] == pytest.approx((np.exp(last) * (last - first)).sum(1).mean())
    assert row["agreement"] == (first.argmax(1) == last.argmax(1)).mean()
    word, probability = row["top"][2][0]
    assert word == model.token_text(int(first[2].argmax()))
    assert probability == pytest.approx(np.exp(first[2].max()), abs=1e-4)


def test_distances_of_heads_are_jensen_shannon_divergences(loaded):
    """0 for a head and itself, those of the formula for others; the first position is left out."""
    one = attention_of(loaded("gpt2"), read(loaded("gpt2"), TEXT))
    other = attention_of(loaded("gpt2", seed=1), read(loaded("gpt2", seed=1), TEXT))
    found = head_distances(one, other, causal=True)
    p, q = (each.flatten(0, 1)[1, 1:].double().numpy() for each in (one, other))
    middle = (p + q) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = [np.nansum(each * np.log2(each / middle), 1) for each in (p, q)]
    assert float(found[1, 1]) == pytest.approx(np.mean(parts))
    assert head_distances(one, one, causal=True).diagonal().abs().max() < 1e-12


def test_a_model_beside_itself_has_its_own_heads(loaded):
    found = inspect_pair(loaded("bert"), loaded("bert"), TEXT)
    for row in found["heads"]:
        assert row["distance"] == 0
        assert [each[:2] for each in row["nearest"]] == [[row["layer"], 0], [row["layer"], 1]]
    assert found["beside"] == found["model"]


def test_a_text_that_is_empty_or_too_long_is_refused(loaded):
    for text, number in (("", 0), ("w7 " * 23, 23)):
        with pytest.raises(DataError, match=f"The text has {number} tokens; give 1 to 22"):
            read(loaded("gpt2"), text)
