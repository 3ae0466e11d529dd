"""The alpha-beta divergence: its limits, its special cases and its gradient."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from stillhouse.objectives.divergence import LogitPair
from stillhouse.objectives.divergences import DIVERGENCES
from stillhouse.objectives.divergences.alpha_beta import (
    AlphaBetaRecipe,
    alpha_beta_gradient,
    alpha_beta_loss,
    alpha_beta_reference,
)

EXPONENTS = [(0.5, 0.5), (0.2, 0.7), (1.0, 1.0), (1.0, 0.0), (0.0, 1.0), (0.3, 0.0), (0.0, 2.0)]
every_pair_of_exponents = pytest.mark.parametrize(("alpha", "beta"), EXPONENTS)
every_temperature = pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    """Logits of a student and a teacher: five rows of seven."""
    generator = torch.Generator().manual_seed(0)
    return 2 * torch.randn(5, 7, generator=generator), 2 * torch.randn(5, 7, generator=generator)


def exact(pair: tuple[Tensor, Tensor], temperature: float, alpha: float, beta: float) -> float:
    """The float64 reference, summed over rows."""
    rows = zip(*(each.double().numpy() for each in pair), strict=True)
    settings = {"temperature": temperature, "alpha": alpha, "beta": beta}
    return math.fsum(alpha_beta_reference(*row, **settings) for row in rows)


@every_pair_of_exponents
@every_temperature
@pytest.mark.law("formula")
def test_loss_equals_its_float64_reference(alpha, beta, temperature, pair):
    found = alpha_beta_loss(*pair, temperature=temperature, alpha=alpha, beta=beta)
    assert found.item() == pytest.approx(exact(pair, temperature, alpha, beta), rel=2e-5)


@every_temperature
@pytest.mark.parametrize(
    ("alpha", "beta", "name"), [(1.0, 0.0, "soft_target"), (0.0, 1.0, "reverse_kl")]
)
def test_kl_divergences_are_limits(alpha, beta, name, temperature, pair):
    """Forward KL at alpha 1 and beta 0, reverse KL at alpha 0 and beta 1; close to them nearby."""
    rows = zip(*(each.double().numpy() for each in pair), strict=True)
    expected = math.fsum(DIVERGENCES[name].reference(*row, temperature=temperature) for row in rows)
    assert exact(pair, temperature, alpha, beta) == pytest.approx(expected, rel=1e-12)
    near = exact(pair, temperature, max(alpha, 1e-6), max(beta, 1e-6))
    assert near == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("alpha", "beta"), [(0.3, 0.0), (0.0, 2.0)])
def test_divergence_is_continuous_at_exponent_zero(alpha, beta, pair):
    near = exact(pair, 1.0, max(alpha, 1e-6), max(beta, 1e-6))
    assert near == pytest.approx(exact(pair, 1.0, alpha, beta), rel=1e-4)


@every_pair_of_exponents
def test_exchanged_roles_exchange_the_exponents(alpha, beta, pair):
    """D(p, q) with (alpha, beta) is D(q, p) with (beta, alpha)."""
    found = alpha_beta_loss(*pair, temperature=2.0, alpha=alpha, beta=beta)
    other = alpha_beta_loss(*pair[::-1], temperature=2.0, alpha=beta, beta=alpha)
    torch.testing.assert_close(found, other)


def test_half_and_half_is_four_times_the_squared_hellinger_distance(pair):
    """2 * sum of (sqrt(p) - sqrt(q))^2."""
    q, p = (each.double().softmax(-1) for each in pair)
    expected = 2 * (p.sqrt() - q.sqrt()).square().sum()
    assert exact(pair, 1.0, 0.5, 0.5) == pytest.approx(expected.item(), rel=1e-12)


@every_pair_of_exponents
@every_temperature
@pytest.mark.law("gradient")
def test_gradient_equals_autograd_of_the_loss(alpha, beta, temperature, pair):
    """Of each row, and with extreme logits as well."""
    extreme = torch.tensor([[1e4, -1e4, 0.0, 0.0, 0.0, 0.0, 0.0]])
    student, teacher = (
        torch.cat([each, edge]) for each, edge in zip(pair, (extreme, extreme.roll(1)), strict=True)
    )
    leaf = student.clone().requires_grad_()
    loss = alpha_beta_loss(leaf, teacher, temperature=temperature, alpha=alpha, beta=beta)
    (expected,) = torch.autograd.grad(loss, leaf)
    scratch = list(torch.empty(3, *student.shape))
    values, found = alpha_beta_gradient(
        LogitPair(student, teacher, temperature, scratch), alpha=alpha, beta=beta
    )
    assert found.isfinite().all()
    torch.testing.assert_close(values.sum(), loss.detach())
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


def test_exponents_that_are_both_zero_are_refused():
    with pytest.raises(ValidationError, match="alpha and beta are both 0"):
        AlphaBetaRecipe(weight=1, alpha=0, beta=0)
    with pytest.raises(ValidationError, match="alpha"):
        AlphaBetaRecipe(weight=1, alpha=-0.5)
