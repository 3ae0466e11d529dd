"""The peers' own code computes what our step computes, and runs in the precision it says.

Needs the peers: pip install --requirement benchmarks/peers.txt
"""

import dataclasses
import functools
from collections.abc import Callable

import pytest
import torch
from benchmarks.comparison import Comparison, compare
from benchmarks.equality import equality
from benchmarks.ours import Losses, Pair, build_models, our_outcome
from torch import Tensor, nn
from transformers import PretrainedConfig

from stillhouse.objectives.settings import LossesRecipe
from stillhouse.section import Rows

for package in ("textbrewer", "trl"):
    pytest.importorskip(package, reason=f"{package} is not installed: see benchmarks/peers.txt")

from benchmarks.peers import AgainstTextBrewer, AgainstTrl  # noqa: E402 (needs both)


def against_trl(pair: Pair) -> AgainstTrl:
    """On a pair without dropout, as GKD trains."""
    without_dropout: Callable[..., PretrainedConfig] = pair.teacher
    config = functools.partial(without_dropout, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    return AgainstTrl(1, dataclasses.replace(pair, teacher=config))


@pytest.fixture(params=["textbrewer", "trl"])
def comparison(request: pytest.FixtureRequest, pairs: dict[str, Pair]) -> Comparison:
    if request.param == "trl":
        return against_trl(pairs["gpt2"])
    return AgainstTextBrewer("all", 1, pairs["bert"])


@pytest.mark.parametrize("rows", ["all", "predicted"])
def test_losses_terms_and_gradients_equal_those_of_textbrewer(pairs: dict[str, Pair], rows: Rows):
    """Its cross-entropy weighed and shifted to our divergence; its cosine; the model's own loss."""
    found = compare(AgainstTextBrewer(rows, 1, pairs["bert"]))["textbrewer"]
    assert set(found.losses) == {"loss", "soft_target", "language_modeling", "hidden_cosine"}
    assert max(found.losses.values()) < 1e-5, found.losses
    assert max(found.gradients.values()) < 1e-5, found.gradients


@pytest.mark.parametrize("beta", [0.2, 0.5])
def test_loss_and_gradients_equal_those_of_gkd(pairs: dict[str, Pair], beta: float):
    """Its mixture from either end, its shift, its mask and its mean."""
    comparison = dataclasses.replace(against_trl(pairs["gpt2"]), beta=beta)
    found = compare(comparison)["trl"]
    assert set(found.losses) == {"loss", "jsd"}
    assert max(found.losses.values()) < 1e-5, found.losses
    assert max(found.gradients.values()) < 1e-5, found.gradients


@pytest.mark.parametrize(("beta", "temperature"), [(0.8, 1.0), (0.2, 2.0)])
def test_the_comparison_with_gkd_tells_beta_and_temperature(
    pairs: dict[str, Pair], beta: float, temperature: float
):
    """Neither the other end of the mixture nor a softened loss would pass for equal."""
    comparison = dataclasses.replace(against_trl(pairs["gpt2"]), beta=0.2)
    models = build_models(comparison.pair, comparison.seed)
    expected = comparison.reference_outcomes(models)["trl"]
    recipe = LossesRecipe.model_validate(
        {"jsd": {"weight": 1.0, "rows": "predicted", "beta": beta}}
    )
    ours = our_outcome(models, comparison.batch(), Losses(recipe, temperature))
    assert not equality(ours, expected).holds()


def test_steps_of_a_peer_keep_their_precision_side_by_side(comparison: Comparison):
    """Prepared in one process, as they are for the timings, each multiplies in its own type."""
    found: dict[str, set[torch.dtype]] = {name: set() for name in comparison.references}
    steps = []
    for name, dtypes in found.items():
        models = build_models(comparison.pair, comparison.seed)

        def note(module: nn.Module, _: object, output: Tensor, seen: set = dtypes) -> None:
            seen.add(output.dtype)

        for model in (models.teacher, models.student):
            head = model.get_output_embeddings()
            assert isinstance(head, nn.Module)
            head.register_forward_hook(note)
        steps.append(comparison.reference_step(name, models))
    for step in steps:
        step()
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    assert found == {name: {dtypes[kind]} for name, kind in comparison.references.items()}


def test_a_step_of_a_peer_trains_the_student_alone(comparison: Comparison):
    """Its gradients reach the student's weights, and none are left for the next step."""
    models = build_models(comparison.pair, comparison.seed)
    before = {name: value.clone() for name, value in models.student.named_parameters()}
    taught = [value.clone() for value in models.teacher.parameters()]
    comparison.reference_step(next(iter(comparison.references)), models)()
    for name, value in models.student.named_parameters():
        assert not torch.equal(value, before[name]), name
        assert value.grad is None or not value.grad.any()
    assert all(map(torch.equal, models.teacher.parameters(), taught))
