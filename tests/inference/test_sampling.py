"""What may follow and how it is drawn: the tokens transformers leaves, by a law of chance, and no
dependence on anything but the seed, the sequence and the place."""

import math

import numpy as np
import pytest
import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from stillhouse.errors import RecipeError
from stillhouse.inference.engine.sampling import candidates, next_token, uniform_at
from stillhouse.inference.generation import Generation

VOCABULARY = 97
SETTINGS = [
    {},
    {"temperature": 0.3},
    {"top_k": 5},
    {"top_p": 0.7},
    {"min_p": 0.2},
    {"typical_p": 0.6},
    {"repetition_penalty": 1.4},
    {"top_k": 30, "top_p": 0.8},
    {"temperature": 1.7, "top_k": 40, "top_p": 0.95, "min_p": 0.05, "typical_p": 0.9},
    {"temperature": 0.8, "top_p": 0.9, "typical_p": 0.5, "repetition_penalty": 0.8},
]


def random_logits(seed: int) -> torch.Tensor:
    return 3 * torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(seed))


def by_transformers(logits: torch.Tensor, settings: Generation, so_far: list[int]) -> torch.Tensor:
    """The distribution of the library's own processors, in its order."""
    steps = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(settings.repetition_penalty)])
    steps.append(TemperatureLogitsWarper(settings.temperature))
    if settings.top_k:
        steps.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1:
        steps.append(TopPLogitsWarper(settings.top_p))
    if settings.min_p > 0:
        steps.append(MinPLogitsWarper(settings.min_p))
    if settings.typical_p < 1:
        steps.append(TypicalLogitsWarper(settings.typical_p))
    before = torch.tensor([so_far])
    return steps(before, logits[None].clone())[0].softmax(-1)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("changes", SETTINGS, ids=str)
def test_what_may_follow_is_what_transformers_leaves(changes):
    """The same tokens, as likely as there, for twenty rows of logits."""
    settings = Generation(**{"top_k": 0, **changes})
    for seed in range(20):
        logits, so_far = random_logits(seed), [3, 3, 17, 50 + seed]
        found = candidates(logits, settings, so_far)
        expected = by_transformers(logits, settings, so_far)
        assert found.ids.tolist() == expected.nonzero().flatten().tolist()
        torch.testing.assert_close(
            found.probabilities.float(), expected[found.ids], atol=1e-6, rtol=1e-5
        )
        assert found.probabilities.sum().item() == pytest.approx(1)


def test_greedy_takes_the_most_likely():
    """And a repetition penalty counts there too."""
    logits = torch.tensor([1.0, 3.0, 2.5])
    assert next_token(logits, Generation(greedy=True), [1], (0, 0, 0)) == 1
    penalized = Generation(greedy=True, repetition_penalty=1.5)
    assert next_token(logits, penalized, [1], (0, 0, 0)) == 2


def test_draws_follow_the_distribution():
    """5,000 draws against the exact probabilities: a chi-squared statistic of 4 degrees of freedom
    is above 25 once in 20,000 times."""
    logits, settings = random_logits(0), Generation(top_k=5, temperature=2.0)
    found = candidates(logits, settings, [])
    counts = dict.fromkeys(found.ids.tolist(), 0)
    number = 5_000
    for place in range(number):
        counts[found.draw(uniform_at(1, 0, place))] += 1
    expected = number * found.probabilities.numpy()
    statistic = ((np.array(list(counts.values())) - expected) ** 2 / expected).sum()
    assert statistic < 25


def test_numbers_depend_on_all_four_and_on_nothing_else():
    """Another seed, sequence, place or purpose gives another number; asked again, the same one."""
    keys = [
        (seed, sequence, place, purpose)
        for seed in (0, 2**64 - 1)
        for sequence in (0, 1)
        for place in range(8)
        for purpose in range(3)
    ]
    drawn = [uniform_at(*key) for key in keys]
    assert len(set(drawn)) == len(keys)
    assert drawn == [uniform_at(*key) for key in keys]
    assert all(0 <= number < 1 for number in drawn)


def test_the_ends_of_the_scale_are_tokens():
    """Zero draws the first that may follow, and what is next to one the last."""
    found = candidates(random_logits(0), Generation(top_k=4), [])
    assert found.draw(0.0) == found.ids[0]
    assert found.draw(math.nextafter(1, 0)) == found.ids[-1]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0; it must be above 0"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"repetition_penalty": -1.0}, "repetition_penalty is -1.0"),
        ({"max_new_tokens": -1}, "max_new_tokens is -1"),
        ({"num_return_sequences": 0}, "num_return_sequences is 0"),
        ({"num_beams": 0}, "num_beams is 0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"typical_p": 0.0}, "typical_p is 0.0"),
        ({"min_p": math.nan}, "min_p is nan"),
        ({"top_k": -1}, "top_k is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"stop": ("",)}, "in stop is empty"),
        ({"greedy": True, "num_return_sequences": 2}, "greedy gives one text only"),
        ({"num_beams": 2}, "Beam search does not sample"),
        ({"num_beams": 2, "greedy": True, "num_return_sequences": 3}, "ask for more beams"),
    ],
)
def test_settings_that_cannot_be_right_are_named(setting, message):
    """Before any model runs."""
    with pytest.raises(RecipeError, match=message):
        Generation(**setting)


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 4e-237])
@pytest.mark.parametrize("others", [{}, {"top_k": 5}, {"top_p": 0.2}, {"typical_p": 0.5}])
def test_the_least_temperature_leaves_the_most_likely(temperature, others):
    """However little it is: no number overflows."""
    logits = 30 * random_logits(0)
    found = candidates(logits, Generation(temperature=temperature, **others), [])
    assert found.ids[found.probabilities.argmax()] == logits.argmax()
    assert found.probabilities.max() == 1
