"""Expected calibration error: the textbook formula, and its laws."""

import math

import pytest
import torch
from tests.evaluation.test_perplexity import END, model, text  # noqa: F401

from stillhouse.evaluation.calibration import NUM_BINS, CalibrationError
from stillhouse.evaluation.perplexity import Observer, score_text
from stillhouse.families.registry import family_of


def error_of(logits, labels, chunk=10**6):
    statistic = CalibrationError()
    for part, own in zip(logits.split(chunk), labels.split(chunk), strict=True):
        statistic.add(part, own)
    return statistic.value()


def textbook(logits, labels):
    """Guo et al. 2017, equation 3, in float64, bin by bin."""
    confidence, predicted = logits.double().softmax(-1).max(-1)
    error = 0.0
    for number in range(NUM_BINS):
        inside = (confidence > number / NUM_BINS) & (confidence <= (number + 1) / NUM_BINS)
        if inside.any():
            accuracy = (predicted == labels)[inside].double().mean()
            gap = (accuracy - confidence[inside].mean()).abs()
            error += float(inside.double().mean() * gap)
    return error


@pytest.fixture
def tokens():
    """Logits from nearly uniform to nearly certain; labels that are right about half the time."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4_000, 11, generator=generator)
    logits *= torch.linspace(0.1, 6, 4_000)[:, None]
    labels = torch.randint(11, (4_000,), generator=generator)
    labels[::2] = logits[::2].argmax(-1)
    return logits, labels


@pytest.mark.parametrize("chunk", [1, 37, 10**6])
def test_calibration_error_equals_the_textbook_formula(tokens, chunk):
    """However the tokens are split into chunks."""
    logits, labels = tokens
    first = slice(None, None, 8) if chunk == 1 else slice(None)
    logits, labels = logits[first], labels[first]
    assert error_of(logits, labels, chunk) == pytest.approx(textbook(logits, labels), abs=1e-6)


def test_perfectly_calibrated_model_has_no_calibration_error():
    """A confidence of 3/4 that is right in three of four, one of 1/2 in one of two."""
    logits = torch.tensor([[0.75, 0.25]] * 4 + [[0.5, 0.5]] * 2).log()
    predicted = logits.argmax(-1)
    labels = torch.where(torch.tensor([1, 1, 1, 0, 1, 0]).bool(), predicted, 1 - predicted)
    assert error_of(logits, labels) == pytest.approx(0, abs=1e-6)


def test_certain_model_that_is_always_wrong_has_the_largest_calibration_error():
    logits = torch.tensor([[0.0, 200.0]] * 3)
    assert error_of(logits, torch.zeros(3, dtype=torch.long)) == 1
    assert error_of(logits, torch.ones(3, dtype=torch.long)) == 0


def test_order_of_tokens_and_of_the_vocabulary_changes_nothing(tokens):
    logits, labels = tokens
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    renamed = torch.randperm(11, generator=torch.Generator().manual_seed(2))
    expected = pytest.approx(error_of(logits, labels), abs=1e-6)
    assert error_of(logits[order], labels[order]) == expected
    assert error_of(logits[:, renamed], renamed.argsort()[labels]) == expected


@pytest.mark.parametrize("damage", [math.nan, math.inf])
def test_logits_that_are_not_finite_have_no_calibration_error(tokens, damage):
    logits, labels = tokens
    logits[7] = damage
    assert error_of(logits, labels) is None


def test_text_without_tokens_has_no_calibration_error():
    assert CalibrationError().value() is None


def test_calibration_is_measured_on_the_tokens_of_the_perplexity(model, text):  # noqa: F811
    """In the same pass: each scored token once, with its own logits."""
    seen = []
    observer = Observer(chunk=lambda logits, labels: seen.append((logits, labels)))
    family = family_of(model.config)
    figures, losses = score_text(family, model, text, document_start=END, observer=observer)
    logits, labels = (torch.cat(parts) for parts in zip(*seen, strict=True))
    assert len(labels) == figures["tokens_scored"]
    assert sorted(labels.tolist()) == sorted(int(i) for ids in text.documents for i in ids)
    total = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    assert float(total) == pytest.approx(losses.sums.sum(), rel=1e-5)
