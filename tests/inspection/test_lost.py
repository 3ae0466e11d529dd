"""What a student lost of its teacher, beside numpy's least squares."""

import numpy as np
import pytest
import torch

from stillhouse.inspection import lost
from stillhouse.inspection.lost import LinearFit, Residuals, compare
from stillhouse.inspection.text import read_text
from stillhouse.training.progress import QuietReporter

RNG = np.random.default_rng(0)


def _rows(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """X with a large mean and channels of very different sizes, one constant; Y partly linear."""
    x = RNG.normal(size=(number, 6)) * [1, 1, 100, 0.01, 1, 0] + [0, 50, 1_000, 0, 0, 3]
    mixed = x[:, :4] @ np.diag([1, 1, 0.01, 100]) @ np.ones((4, 3)) + [1, 2, 300]
    return torch.from_numpy(x).float(), torch.from_numpy(
        mixed + RNG.normal(size=(number, 3)) * [0, 1, 5]
    ).float()


@pytest.mark.parametrize("size", [40, 400])
def test_the_fit_is_that_of_least_squares(size, monkeypatch):
    """In numpy, in float64 and at once, with a ridge on channels of unit variance."""
    x, y = _rows(400)
    fit = LinearFit.at(x[:size], y[:size])
    for start in range(0, 400, size):
        fit.add(x[start : start + size], y[start : start + size])
    wide, target = x.double().numpy(), y.double().numpy()
    scaled = (wide - wide.mean(0))[:, :5] / wide.std(0)[:5]
    ridge = np.sqrt(400 * lost.RIDGE) * np.eye(5)
    weight = np.linalg.lstsq(
        np.concatenate([scaled, ridge]),
        np.concatenate([target - target.mean(0), np.zeros((5, 3))]),
        rcond=None,
    )[0]
    expected = scaled @ weight + target.mean(0)
    np.testing.assert_allclose(fit.solve()(x), expected, rtol=1e-4, atol=2e-2)


def test_r2_is_one_less_the_share_of_squared_errors():
    _, y = _rows(300)
    predicted = y + torch.from_numpy(RNG.normal(size=y.shape)).float()
    found = Residuals()
    for start in range(0, 300, 70):
        found.add(y[start : start + 70], predicted[start : start + 70])
    wide, error = y.double().numpy(), (y - predicted).double().numpy()
    expected = 1 - (error**2).sum(0) / ((wide - wide.mean(0)) ** 2).sum(0)
    np.testing.assert_allclose(found.r2(), expected, rtol=1e-4)


@pytest.fixture
def text(loaded, words_file):
    return read_text(loaded("llama"), str(words_file), 400, QuietReporter(), offline=True)


def test_a_rotated_copy_has_lost_nothing(loaded, tiny_model, text):
    """Its hidden states are the teacher's in another basis, its neurons are in another order."""
    teacher, model = loaded("llama"), tiny_model("llama")
    order = torch.randperm(
        model.config.intermediate_size, generator=torch.Generator().manual_seed(1)
    )
    rotation = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(2)))[0]
    _rotate(teacher.model, model, rotation, order)
    found = compare(loaded(model), teacher, text)
    assert found.r2.diagonal().min() > 0.99
    assert found.correlations.min() > 0.999
    size = len(order)
    places = torch.empty_like(order)
    places[order] = torch.arange(size)
    assert torch.equal(found.nearest, torch.stack([places, places + size]))


@torch.no_grad()
def _rotate(teacher, model, rotation, order) -> None:
    """Put the teacher's function into another basis; its norms must not weigh channels."""
    for each in (teacher, model):
        for name, parameter in each.named_parameters():
            if "norm" in name:
                parameter.fill_(1)
    theirs = dict(teacher.named_parameters())
    for name, parameter in model.named_parameters():
        source = theirs[name]
        if "embed" in name or name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
            parameter.copy_(source @ rotation)
        elif name.endswith("o_proj.weight"):
            parameter.copy_(rotation.T @ source)
        elif name.endswith("down_proj.weight"):
            parameter.copy_((rotation.T @ source)[:, order])
        elif "gate_proj" in name or "up_proj" in name:
            parameter.copy_((source @ rotation)[order])


def test_an_unrelated_student_has_lost_more(loaded, text):
    """The same in one chunk of the teacher's layers and in several."""
    teacher, other = loaded("llama"), loaded("llama", seed=7, num_layers=3)
    found = compare(other, teacher, text)
    assert found.r2.shape == (3, 2)
    assert found.correlations.median() < 0.9
    assert compare(teacher, teacher, text).r2.diagonal().min() > found.r2.max() - 0.05


def test_layers_in_chunks_give_the_same(loaded, text, monkeypatch):
    teacher, other = loaded("llama"), loaded("llama", seed=7)
    whole = compare(other, teacher, text)
    monkeypatch.setattr(lost, "BYTES", 1)
    assert lost.num_passes(other, teacher) == 2
    split = compare(other, teacher, text)
    torch.testing.assert_close(split.r2, whole.r2)
    torch.testing.assert_close(split.correlations, whole.correlations)


def test_correlations_are_those_of_numpy(loaded, text):
    """The best on the first half, measured on the second."""
    teacher, other = loaded("llama"), loaded("llama", seed=7)
    halves = text.halves()
    theirs, ours = ([_neurons(model, half) for half in halves] for model in (teacher, other))
    fit = np.corrcoef(theirs[0].T, ours[0].T)[: theirs[0].shape[1], theirs[0].shape[1] :]
    best = abs(fit).argmax(1)
    expected = [
        np.sign(fit[unit, near]) * np.corrcoef(theirs[1][:, unit], ours[1][:, near])[0, 1]
        for unit, near in enumerate(best)
    ]
    found = compare(other, teacher, text)
    np.testing.assert_array_equal(found.nearest.flatten(), best)
    np.testing.assert_allclose(found.correlations.flatten(), expected, atol=1e-4)


def _neurons(model, text) -> np.ndarray:
    sample = lost.UnitSample(model, text)
    for batch, rows in text.batches():
        with sample.observed(rows), torch.inference_mode():
            model.family.run_body(model.model, batch)
    return sample.activations().flatten(1).double().numpy()
