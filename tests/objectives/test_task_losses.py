"""Losses of task models: nothing to learn from a copy, the formula in float64, exact gradients."""

import numpy as np
import pytest
import torch

from stillhouse.objectives.task_losses import (
    binary_soft_target_loss,
    contrastive_loss,
    similarity_loss,
)


def drawn(*shape, seed=0, unit=False):
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(values, dim=-1) if unit else 3 * values


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_binary_soft_targets_are_the_divergence_of_each_class(temperature):
    """By the formula in float64; zero for a copy."""
    student, teacher = drawn(7, 4), drawn(7, 4, seed=1)
    p, q = (1 / (1 + np.exp(-each.double().numpy() / temperature)) for each in (teacher, student))
    expected = temperature**2 * (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).sum()
    found = binary_soft_target_loss(student, teacher, temperature=temperature)
    assert float(found) == pytest.approx(expected, rel=1e-5)
    copy = binary_soft_target_loss(teacher.clone(), teacher, temperature=temperature)
    assert float(copy) == pytest.approx(0, abs=1e-4)
    extreme = torch.tensor([[1e4, -1e4]])
    assert float(binary_soft_target_loss(extreme, extreme, temperature=temperature)) == 0


def test_similarity_compares_rows_of_a_group_alone():
    """Every pair of different rows, by the formula in float64; sizes of vectors may differ."""
    student, teacher = drawn(6, 5, unit=True), drawn(6, 8, seed=1, unit=True)
    s, t = student.double().numpy(), teacher.double().numpy()
    expected = 0.0
    for start in (0, 3):
        for i in range(start, start + 3):
            others = [j for j in range(start, start + 3) if j != i]
            expected += np.mean([(s[i] @ s[j] - t[i] @ t[j]) ** 2 for j in others])
    assert float(similarity_loss(student, teacher, group=3)) == pytest.approx(expected, rel=1e-5)
    turned = teacher @ torch.linalg.qr(drawn(8, 8)).Q
    assert float(similarity_loss(turned, teacher, group=3)) == pytest.approx(0, abs=1e-10)
    parts = [
        similarity_loss(student[rows], teacher[rows], group=3) for rows in (slice(3), slice(3, 6))
    ]
    assert float(sum(parts)) == pytest.approx(expected, rel=1e-5)


def test_contrast_finds_the_partner_among_the_group():
    """By the formula in float64; the group of one has nothing to choose."""
    first, second = drawn(6, 5, unit=True), drawn(6, 5, seed=1, unit=True)
    a, b = first.double().numpy(), second.double().numpy()
    expected = 0.0
    for i in range(6):
        group = range(i // 3 * 3, i // 3 * 3 + 3)
        expected -= np.log(
            np.exp(a[i] @ b[i] / 0.1) / sum(np.exp(a[i] @ b[j] / 0.1) for j in group)
        )
    found = contrastive_loss(first, second, group=3, temperature=0.1)
    assert float(found) == pytest.approx(expected, rel=1e-5)
    assert float(contrastive_loss(first, second, group=1, temperature=0.1)) == 0


@pytest.mark.parametrize(
    "loss",
    [
        lambda x: binary_soft_target_loss(x, drawn(4, 3, seed=2).double(), temperature=2.0),
        lambda x: similarity_loss(x, drawn(4, 3, seed=2).double(), group=2),
        lambda x: contrastive_loss(x, drawn(4, 3, seed=2).double(), group=2, temperature=0.5),
    ],
)
def test_gradients_are_those_of_finite_differences(loss):
    """Along a random direction."""
    point, direction = drawn(4, 3).double() / 5, drawn(4, 3, seed=3).double() / 5
    point.requires_grad_(True)
    (gradient,) = torch.autograd.grad(loss(point), point)
    ahead, behind = (float(loss(point.detach() + sign * 1e-2 * direction)) for sign in (1, -1))
    assert float((gradient * direction).sum()) == pytest.approx((ahead - behind) / 2e-2, rel=2e-3)
