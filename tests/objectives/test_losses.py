"""Losses: each against its textbook formula, written out in float64 with loops."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from torch import Tensor

from stillhouse.objectives.divergences import DIVERGENCES
from stillhouse.objectives.language_model import language_modeling_loss

TEMPERATURES = [0.5, 1.0, 4.0]
WITHOUT_TEMPERATURE_SQUARED = {"total_variation"}
LOSSES: dict[str, Callable[..., Tensor]] = {name: each.loss for name, each in DIVERGENCES.items()}
# Losses of logits, with their defaults and with other settings.
LOGIT_LOSSES = {
    **{name: loss for name, loss in LOSSES.items() if DIVERGENCES[name].reads == "logits"},
    "jsd, beta 0.2": partial(LOSSES["jsd"], beta=0.2),
    "skew_kl, alpha 0": partial(LOSSES["skew_kl"], alpha=0.0),
    "skew_kl, alpha 0.7": partial(LOSSES["skew_kl"], alpha=0.7),
}
WITH_TEMPERATURE = {
    f"{name}, T {temperature}": partial(loss, temperature=temperature)
    for name, loss in LOGIT_LOSSES.items()
    for temperature in TEMPERATURES
}
PAIRED = {  # losses of two tensors of the same shape
    **WITH_TEMPERATURE,
    **{name: loss for name, loss in LOSSES.items() if DIVERGENCES[name].reads == "hidden"},
}

every_paired_loss = pytest.mark.parametrize("loss", PAIRED.values(), ids=PAIRED)

Row = Sequence[float]


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    """Logits (or hidden states) of a student and a teacher: five rows of seven."""
    generator = torch.Generator().manual_seed(0)
    return 2 * torch.randn(5, 7, generator=generator), 2 * torch.randn(5, 7, generator=generator)


def softmax(row: Row, temperature: float) -> list[float]:
    exponentials = [math.exp(value / temperature) for value in row]
    return [value / sum(exponentials) for value in exponentials]


def kl(p: Row, q: Row) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def mixture(p: Row, q: Row, share_of_p: float) -> list[float]:
    return [share_of_p * a + (1 - share_of_p) * b for a, b in zip(p, q, strict=True)]


def jsd(p: Row, q: Row, beta: float) -> float:
    m = mixture(p, q, beta)
    return beta * kl(p, m) + (1 - beta) * kl(q, m)


# p is the teacher's distribution, q the student's; without temperature^2.
FORMULAS: dict[str, Callable[[Row, Row], float]] = {
    "soft_target": kl,
    "reverse_kl": lambda p, q: kl(q, p),
    "jsd": lambda p, q: jsd(p, q, 0.5),
    "jsd, beta 0.2": lambda p, q: jsd(p, q, 0.2),
    "skew_kl": lambda p, q: kl(p, mixture(p, q, 0.1)),
    "skew_kl, alpha 0": kl,
    "skew_kl, alpha 0.7": lambda p, q: kl(p, mixture(p, q, 0.7)),
    "total_variation": lambda p, q: sum(abs(a - b) for a, b in zip(p, q, strict=True)) / 2,
}


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.law("formula")
def test_a_divergence_is_its_formula(name, temperature, pair):
    """The sum over rows of the formula, times temperature^2 for all but the total variation."""
    student, teacher = pair
    expected = sum(
        FORMULAS[name](softmax(t, temperature), softmax(s, temperature))
        for s, t in zip(student.double().tolist(), teacher.double().tolist(), strict=True)
    )
    scale = 1.0 if name in WITHOUT_TEMPERATURE_SQUARED else temperature**2
    found = LOGIT_LOSSES[name](student, teacher, temperature=temperature)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(scale * expected, rel=2e-5)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.law("formula")
def test_a_divergence_is_its_reference(name, temperature, pair):
    """The one in float64, row by row, with the default settings."""
    divergence = DIVERGENCES[name]
    settings = divergence.settings(weight=1).model_dump(exclude={"weight", "rows"})
    if divergence.reads == "logits":
        settings["temperature"] = temperature
    rows = zip(*(each.numpy() for each in pair), strict=True)
    expected = math.fsum(divergence.reference(*row, **settings) for row in rows)
    found = divergence.loss(*pair, **settings)
    assert found.item() == pytest.approx(expected, rel=2e-5)


@pytest.mark.parametrize("name", [name for name in DIVERGENCES if name in LOGIT_LOSSES])
def test_gradient_keeps_its_size_when_the_temperature_changes(name, pair):
    """Thanks to the factor temperature^2 (docs/concepts/objectives.md), or without any."""

    def norm(temperature: float) -> float:
        student = pair[0].clone().requires_grad_()
        loss = LOSSES[name](student, pair[1], temperature=temperature)
        return torch.autograd.grad(loss, student)[0].norm().item()

    keeps_its_size = norm(8.0) == pytest.approx(norm(4.0), rel=0.2)
    assert keeps_its_size == (name not in WITHOUT_TEMPERATURE_SQUARED)


@pytest.mark.parametrize("temperature", [100.0, 1000.0])
def test_temperature_squared_keeps_the_size_of_the_gradient(temperature, pair):
    """At high temperature T^2 KL tends to half the variance of the logits' difference."""
    student, teacher = (logits.double() for logits in pair)
    limit = 0.5 * (student - teacher).var(-1, correction=0).sum().item()
    found = LOSSES["soft_target"](student, teacher, temperature=temperature)
    assert found.item() == pytest.approx(limit, rel=0.1)


def test_logit_mse_is_the_mean_over_the_vocabulary(pair):
    """Summed over rows, averaged over words."""
    student, teacher = (logits.double().tolist() for logits in pair)
    expected = sum(
        sum((a - b) ** 2 for a, b in zip(s, t, strict=True)) / 7
        for s, t in zip(student, teacher, strict=True)
    )
    assert LOSSES["logit_mse"](*pair).item() == pytest.approx(expected, rel=1e-5)
    assert LOSSES["hidden_mse"](*pair).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.law("formula")
def test_hidden_cosine_is_one_minus_the_cosine(pair):
    """Of each row, whatever the lengths of the two vectors."""
    student, teacher = (hidden.double().tolist() for hidden in pair)
    expected = sum(
        1 - sum(a * b for a, b in zip(s, t, strict=True)) / (math.hypot(*s) * math.hypot(*t))
        for s, t in zip(student, teacher, strict=True)
    )
    found = LOSSES["hidden_cosine"](pair[0], 3 * pair[1])
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_language_modeling_is_minus_the_log_probability_of_the_label(pair):
    """Natural logarithm, at temperature 1; rows labeled -100 count nothing."""
    logits = pair[0]
    labels = torch.tensor([2, -100, 0, 6, -100])
    expected = -sum(
        math.log(softmax(row, 1.0)[label])
        for row, label in zip(logits.double().tolist(), labels.tolist(), strict=True)
        if label >= 0
    )
    found = language_modeling_loss(logits, labels)
    assert found.item() == pytest.approx(expected, rel=1e-5)
    assert language_modeling_loss(logits[:0], labels[:0]).item() == 0


@every_paired_loss
@pytest.mark.law("copy")
def test_a_perfect_copy_has_nothing_to_learn(loss, pair):
    """Zero, and no gradient, for a student that equals its teacher."""
    student = pair[0].clone().requires_grad_()
    value = loss(student, pair[0])
    (gradient,) = torch.autograd.grad(value, student)
    assert value.item() == pytest.approx(0, abs=2e-5)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-5, rtol=0)


@every_paired_loss
def test_no_loss_is_negative(loss, pair):
    """Whatever student and teacher say; and it is not zero where they differ."""
    assert loss(*pair).item() > 0.01


@every_paired_loss
def test_parts_of_the_rows_add_up(loss, pair):
    """A sum, not a mean: splitting the rows does not change the total."""
    student, teacher = pair
    parts = [loss(student[rows], teacher[rows]) for rows in (slice(0, 2), slice(2, 2), slice(2, 5))]
    torch.testing.assert_close(torch.stack(parts).sum(), loss(student, teacher))


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("name", FORMULAS)
def test_a_constant_added_to_all_logits_changes_nothing(name, temperature, pair):
    """Distributions are compared, not logits."""
    student, teacher = pair
    loss = partial(LOGIT_LOSSES[name], temperature=temperature)
    torch.testing.assert_close(
        loss(student + 3, teacher - 2), loss(student, teacher), atol=1e-5, rtol=1e-5
    )


@every_paired_loss
def test_extreme_logits_give_finite_values_and_gradients(loss):
    """+-10,000, certain of the right word and of the wrong one."""
    student = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]], requires_grad=True)
    teacher = torch.tensor([[-1e4, 1e4, 0.0], [-1e4, 1e4, -1e4]])
    value = loss(student, teacher)
    (gradient,) = torch.autograd.grad(value, student)
    assert value.isfinite()
    assert gradient.isfinite().all()


@every_paired_loss
def test_reduced_precision_is_raised_before_the_sum(loss, pair):
    """bfloat16 inputs give the float32 loss of their values."""
    low = [tensor.bfloat16() for tensor in pair]
    found = loss(*low)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, loss(*(tensor.float() for tensor in low)))


def test_a_symmetric_divergence_is_symmetric(pair):
    """JSD at 0.5 and total variation do not ask who teaches; KL does."""
    student, teacher = pair
    for loss in (LOSSES["jsd"], LOSSES["total_variation"]):
        torch.testing.assert_close(
            loss(student, teacher, temperature=1.0), loss(teacher, student, temperature=1.0)
        )
    forward = LOSSES["soft_target"](student, teacher, temperature=1.0)
    assert forward.item() != pytest.approx(
        LOSSES["soft_target"](teacher, student, temperature=1.0).item(), rel=0.01
    )
    torch.testing.assert_close(forward, LOSSES["reverse_kl"](teacher, student, temperature=1.0))


def test_total_variation_is_at_most_one_for_each_row():
    """Two that are certain of different words are as far apart as can be."""
    student, teacher = 100 * torch.eye(3), 100 * torch.eye(3).roll(1, 0)
    assert LOSSES["total_variation"](student, teacher, temperature=1.0).item() == pytest.approx(3)
