"""Our step computes what the plain statement of 2019's step computes: losses, terms, gradients."""

import dataclasses

import pytest
import torch
from benchmarks.comparison import Against2019, compare
from benchmarks.equality import equality
from benchmarks.ours import Pair, build_batch, build_models, classic_losses, our_outcome
from benchmarks.reference_2019 import PaddedBatch, reference_outcome

from stillhouse.section import Rows


@pytest.fixture(params=["bert", "gpt2"])
def pair(request: pytest.FixtureRequest, pairs: dict[str, Pair]) -> Pair:
    return pairs[request.param]


@pytest.mark.parametrize("rows", ["all", "predicted"])
def test_losses_terms_and_gradients_equal_those_of_2019(pair: Pair, rows: Rows):
    """In float32, for every parameter of the student."""
    found = compare(Against2019(pair, rows, seed=1))["2019"]
    assert max(found.losses.values()) < 1e-5, found.losses
    assert max(found.gradients.values()) < 1e-5, found.gradients


def test_the_comparison_covers_every_parameter_and_term(pair: Pair):
    """An equality that leaves something out proves nothing of it."""
    found = compare(Against2019(pair, "all", seed=1))["2019"]
    student = build_models(pair, seed=1).student
    assert set(found.gradients) == {name for name, _ in student.named_parameters()}
    assert set(found.losses) == {"loss", "soft_target", "language_modeling", "hidden_cosine"}


def test_the_comparison_fails_where_the_two_differ(pair: Pair):
    """Shown other labels than the reference, our term and our gradients must tell."""
    models, batch = build_models(pair, seed=1), build_batch(pair, seed=1)
    moved = batch.labels.where(batch.labels < 0, (batch.labels + 1) % 97)
    expected = reference_outcome(models.student, models.teacher, [PaddedBatch.of(batch)], "all")
    found = equality(
        our_outcome(models, dataclasses.replace(batch, labels=moved), classic_losses("all")),
        expected,
    )
    assert not found.holds()
    assert found.losses["language_modeling"] > 1e-4
    assert max(found.gradients.values()) > 1e-3


@pytest.mark.parametrize("rows", ["all", "predicted"])
def test_micro_batches_add_up_to_the_whole_batch(pair: Pair, rows: Rows):
    """However many rows each has: the outcome weighs rows alike."""
    models, batch = build_models(pair, seed=1), build_batch(pair, seed=1)
    parts = [PaddedBatch.of(part) for part in batch.split(2)]
    assert len({part.num_rows(rows) for part in parts}) > 1
    whole = reference_outcome(models.student, models.teacher, [PaddedBatch.of(batch)], rows)
    split = reference_outcome(models.student, models.teacher, parts, rows)
    torch.testing.assert_close(split.loss, whole.loss)
    assert max(equality(split, whole).gradients.values()) < 1e-5
