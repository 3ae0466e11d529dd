"""The last layer at the rows that are read: the same values and gradients, for less work."""

from dataclasses import replace

import pytest
import torch
from tests.tiny_models import EVERY_FAMILY, is_causal

from stillhouse.families.registry import family_of
from stillhouse.tokens.batches import IGNORED, Batch


def predicting(batch: Batch, places: list[int]) -> Batch:
    """The batch with labels at these of its B * T places alone."""
    labels = torch.full((batch.labels.numel(),), IGNORED)
    labels[places] = 1
    return replace(batch, labels=labels.view(batch.labels.shape))


@pytest.mark.parametrize("family", EVERY_FAMILY)
@pytest.mark.parametrize("places", [[3, 4, 12, 23], list(range(18)), [7]])
def test_rows_are_those_of_the_whole_body(family, places, tiny_model, batch_of, words):
    """Hidden states, and every parameter's gradient; of few rows and of many."""
    model = tiny_model(family)
    kind = family_of(model.config)
    rows = [[words(7), words(4, 1)], [words(12, 2)]]
    batch = predicting(batch_of(rows, 12, causal=is_causal(family)), places)
    found = []
    for hidden in (
        kind.run_rows(model, batch, "predicted"),
        kind.run_body(model, batch).flatten(0, 1)[places],
    ):
        hidden.square().sum().backward()
        found.append([hidden, *(p.grad for p in model.parameters() if p.grad is not None)])
        model.zero_grad()
    assert len(found[0]) == len(found[1])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_a_body_is_whole_again_afterwards(family, tiny_model, batch_of, words):
    """What computes all positions is not changed by one that did not."""
    model = tiny_model(family).eval()
    kind = family_of(model.config)
    batch = predicting(batch_of([[words(12)]], 12, causal=is_causal(family)), [2])
    before = kind.run_body(model, batch)
    kind.run_rows(model, batch, "predicted")
    assert torch.equal(before, kind.run_body(model, batch))


@pytest.mark.e2e
def test_a_compiled_body_is_compiled_once(tiny_model, batch_of, words):
    """It computes all positions, whatever number of them is read."""
    torch.compiler.reset()  # what other tests compiled counts against a limit
    model = tiny_model("bert").eval()
    kind = family_of(model.config)
    batch = batch_of([[words(12)]], 12, causal=False)
    few, one = (predicting(batch, places) for places in ([2, 5, 7], [4]))
    expected = [kind.run_rows(model, each, "predicted") for each in (few, one)]
    model.base_model.compile(backend="eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        found = [kind.run_rows(model, each, "predicted") for each in (few, one)]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
