"""The optimizer's groups, and the learning rate of every step."""

import math

import pytest
import torch
from torch import nn

from stillhouse.training.settings import OptimizerRecipe, ScheduleRecipe
from stillhouse.training.step import (
    learning_parameters,
    learning_rate_factor,
    make_optimizer,
    set_learning_rate,
)


def factors(name: str, warmup_fraction: float, num_steps: int) -> list[float]:
    schedule = ScheduleRecipe.model_validate({"name": name, "warmup_fraction": warmup_fraction})
    return [learning_rate_factor(schedule, step, num_steps) for step in range(num_steps)]


def test_linear_rises_to_one_and_falls_in_even_steps():
    """Ten steps with two of warm-up: 1/2, 1, then from 1 downwards by eighths."""
    expected = [0.5, 1.0, *(1 - done / 8 for done in range(8))]
    assert factors("linear", 0.2, 10) == pytest.approx(expected)


def test_cosine_falls_along_half_a_wave():
    """Half-way through the fall the rate is half; a quarter through, cos(pi/4) tells it."""
    found = factors("cosine", 0.2, 10)
    assert found[:3] == pytest.approx([0.5, 1.0, 1.0])
    assert found[4] == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert found[6] == pytest.approx(0.5)


def test_constant_stays_after_the_warm_up():
    """Only the warm-up changes the rate."""
    assert factors("constant", 0.25, 8) == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 1])


@pytest.mark.parametrize("name", ["linear", "cosine", "constant"])
def test_without_warm_up_the_first_step_has_the_full_rate(name):
    """No step of a schedule without warm-up is lost to a rate of zero."""
    assert factors(name, 0.0, 5)[0] == 1.0
    assert min(factors(name, 0.0, 5)) > 0


def test_the_warm_up_is_rounded_up():
    """5 % of 30 steps are two steps, as in 2019."""
    assert factors("constant", 0.05, 30)[:3] == pytest.approx([0.5, 1.0, 1.0])


def test_biases_and_norms_do_not_decay():
    """Only parameters of two axes or more are pulled towards zero; frozen ones are left out."""
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2), nn.Linear(2, 2))
    frozen = model[2].requires_grad_(False)
    optimizer = make_optimizer(model, OptimizerRecipe(weight_decay=0.1, learning_rate=0.5))
    for parameter in learning_parameters(optimizer):
        parameter.grad = torch.zeros_like(parameter)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    optimizer.step()
    after = dict(model.named_parameters())
    torch.testing.assert_close(after["0.weight"], before["0.weight"] * (1 - 0.5 * 0.1))
    for name in ("0.bias", "1.weight", "1.bias", "2.weight", "2.bias"):
        assert torch.equal(after[name], before[name]), name
    assert not {id(p) for p in frozen.parameters()} & {
        id(p) for p in learning_parameters(optimizer)
    }


def test_a_step_is_that_of_adamw():
    """The recipe's betas, eps and rate reach the update: compared with the formula."""
    parameter = nn.Parameter(torch.tensor([[1.0, -2.0]]))
    module = nn.Module()
    module.weight = parameter
    recipe = OptimizerRecipe(betas=(0.8, 0.9), eps=0.01, weight_decay=0.0)
    optimizer = make_optimizer(module, recipe)
    set_learning_rate(optimizer, 0.1)
    expected = parameter.detach().double().clone()
    mean, square = torch.zeros(1, 2).double(), torch.zeros(1, 2).double()
    for step, gradient in enumerate(([0.5, -1.0], [2.0, 3.0]), start=1):
        parameter.grad = torch.tensor([gradient])
        optimizer.step()
        gradient = torch.tensor([gradient]).double()
        mean = 0.8 * mean + 0.2 * gradient
        square = 0.9 * square + 0.1 * gradient**2
        root = (square / (1 - 0.9**step)).sqrt() + 0.01
        expected -= 0.1 * mean / (1 - 0.8**step) / root
    torch.testing.assert_close(parameter.detach().double(), expected, atol=1e-6, rtol=1e-6)
