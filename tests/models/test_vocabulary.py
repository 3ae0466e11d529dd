"""Models with a part of their vocabulary: for the tokens that stay, what the whole ones compute."""

import numpy as np
import pytest
import torch
from tests.tiny_models import EVERY_FAMILY, VOCABULARY

from stillhouse.families.registry import family_of
from stillhouse.models.load import count_parameters, empty_model
from stillhouse.models.vocabulary import keep_tokens, with_vocabulary_size
from stillhouse.objectives.language_model import LanguageModelObjective, Teacher
from stillhouse.objectives.settings import LossesRecipe

KEPT = np.array([0, 1, 2, 3, 4, 5, 9, 10, 17, 30, 31, 59])


def logits(model, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids).logits


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_the_logits_of_the_tokens_that_stay(tiny_model, family):
    """Close to the whole model's for the same tokens; with all tokens, equal to the bit."""
    whole = tiny_model(family)
    new = torch.randint(5, len(KEPT), (2, 7), generator=torch.Generator().manual_seed(0))
    old = torch.from_numpy(KEPT)[new]
    expected = logits(whole, old)
    smaller = keep_tokens(whole, KEPT)
    torch.testing.assert_close(logits(smaller, new), expected[..., KEPT], rtol=1e-6, atol=1e-6)
    same = keep_tokens(whole, np.arange(VOCABULARY))
    assert torch.equal(logits(same, old), expected)


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_parameters_are_as_many_as_planned(tiny_model, family):
    """What is tied stays tied, and only rows of tokens are gone."""
    whole = tiny_model(family)
    smaller = keep_tokens(whole, KEPT)
    planned = empty_model(with_vocabulary_size(whole.config, len(KEPT)))
    assert count_parameters(smaller) == count_parameters(planned)
    assert smaller.config.tie_word_embeddings == whole.config.tie_word_embeddings
    assert len(family_of(smaller.config).head(smaller).weight) == len(KEPT)


def test_special_ids_follow(tiny_model):
    """End tokens are found under their new ids; those that are gone are left out."""
    whole = tiny_model("llama")
    whole.config.eos_token_id, whole.config.bos_token_id = [9, 17, 18], 18
    whole.generation_config.eos_token_id = 30
    whole.generation_config.suppress_tokens = [40]
    whole.generation_config.min_new_tokens = 3
    smaller = keep_tokens(whole, KEPT)
    assert smaller.config.eos_token_id == [6, 8]
    assert smaller.config.bos_token_id is None
    assert smaller.generation_config.eos_token_id == 9
    assert smaller.generation_config.suppress_tokens is None
    assert smaller.generation_config.min_new_tokens == 3


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_the_soft_target_is_the_teacher_restricted_to_what_stays(tiny_model, batch_of, family):
    """KL(p / P || q) in float64 from the whole teacher's distribution p, P its mass on the tokens
    that stay."""
    whole, student = tiny_model(family), keep_tokens(tiny_model(family, seed=1), KEPT)
    own, causal = family_of(whole.config), family_of(whole.config).language_modeling == "causal"
    batch = batch_of([[[5, 7, 9, 11, 6, 8, 10, 5]]], 8, causal=causal)
    teacher = Teacher(own, keep_tokens(whole, KEPT))
    losses = LossesRecipe.model_validate({"soft_target": {"weight": 1.0}})
    objective = LanguageModelObjective(own, losses, teacher=teacher, temperature=2.0)
    _, values = objective(student, batch, {"soft_target": 1.0})
    p = logits(whole, torch.from_numpy(KEPT)[batch.input_ids])[0].double().numpy() / 2
    q = logits(student, batch.input_ids)[0].double().numpy() / 2
    p, q = (np.exp(each) / np.exp(each).sum(-1, keepdims=True) for each in (p, q))
    p = p[:, KEPT] / p[:, KEPT].sum(-1, keepdims=True)
    expected = 4 * (p * np.log(p / q)).sum()
    assert float(values["soft_target"]) == pytest.approx(expected, rel=1e-4)
