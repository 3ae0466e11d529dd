"""The objective: the plain losses of dense logits, each document run alone, without the waste."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from tests.tiny_models import PAIRS, is_causal
from torch import Tensor
from transformers import PreTrainedModel

from stillhouse.families.registry import family_of
from stillhouse.objectives.divergences import DIVERGENCES
from stillhouse.objectives.language_model import (
    LANGUAGE_MODELING_ALONE,
    LanguageModelObjective,
    Teacher,
    language_modeling_loss,
)
from stillhouse.objectives.settings import LossesRecipe
from stillhouse.objectives.sparse import sparse_rows
from stillhouse.section import Rows
from stillhouse.tokens.batches import IGNORED, Batch, TeacherRows

TEMPERATURE = 2.0
SETTINGS = {"jsd": {"beta": 0.3}, "skew_kl": {"alpha": 0.2}}
PLAIN = {
    name: partial(each.loss, temperature=TEMPERATURE, **SETTINGS.get(name, {}))
    if each.reads == "logits"
    else each.loss
    for name, each in DIVERGENCES.items()
}
NAMES = (*PLAIN, "language_modeling")

every_family = pytest.mark.parametrize("pair", PAIRS, indirect=True)

Pair = tuple[PreTrainedModel, PreTrainedModel]


@pytest.fixture(params=[("gpt2", "gpt2")], ids=lambda pair: pair[0])
def pair(request, tiny_model) -> Pair:
    """A student of two layers and a teacher of three."""
    student, teacher = request.param
    return tiny_model(student, num_layers=2), tiny_model(teacher, num_layers=3, seed=1)


@pytest.fixture
def batch(pair, batch_of, words) -> Batch:
    """Three rows: two documents and padding, one full, one short."""
    rows = [[words(7), words(4, 1)], [words(12, 2)], [words(5, 3)]]
    return batch_of(rows, 12, causal=is_causal(pair[0].config.model_type))


def recipe_of(names, rows: str = "all") -> LossesRecipe:
    """The named terms, with weights 1, 2, ... and SETTINGS."""
    terms: dict[str, dict[str, Any]] = {}
    for weight, name in enumerate(names, start=1):
        terms[name] = {"weight": float(weight)}
        if name != "language_modeling":
            terms[name] |= {"rows": rows, **SETTINGS.get(name, {})}
    return LossesRecipe.model_validate(terms)


def objective_of(pair: Pair, recipe: LossesRecipe) -> LanguageModelObjective:
    student, teacher = pair
    return LanguageModelObjective(
        family_of(student.config),
        recipe,
        teacher=Teacher(family_of(teacher.config), teacher),
        temperature=TEMPERATURE,
    )


def run(objective: LanguageModelObjective, model: PreTrainedModel, batch: Batch):
    """Total, values and gradients with the recipe's weights as coefficients."""
    total, values = objective(model, batch, objective.weights)
    return total.detach(), values, gradients_of(total, model)


def gradients_of(total: Tensor, model: PreTrainedModel) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    return {
        name: torch.zeros_like(parameter) if gradient is None else gradient
        for name, parameter, gradient in zip(names, parameters, gradients, strict=True)
    }


def alone(model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits and last hidden states of every real position, each document run by itself."""
    logits, hidden = [], []
    for ids, segments in zip(batch.input_ids, batch.segment_ids, strict=True):
        for number in range(1, int(segments.max()) + 1):
            output = model(input_ids=ids[segments == number][None], output_hidden_states=True)
            logits.append(output.logits[0])
            hidden.append(output.hidden_states[-1][0])
    return torch.cat(logits), torch.cat(hidden)


def dense(pair: Pair, batch: Batch, recipe: LossesRecipe) -> tuple[Tensor, dict[str, Tensor]]:
    """The same weighted sum from full logits and the plain losses."""
    student, teacher = pair
    logits, hidden = alone(student, batch)
    with torch.no_grad():
        teacher_logits, teacher_hidden = alone(teacher, batch)
    labels = batch.labels[batch.segment_ids > 0]
    values = {}
    for name, term in recipe.active().items():
        rows = labels != IGNORED if term.rows == "predicted" else torch.ones_like(labels) > 0
        if name == "language_modeling":
            values[name] = language_modeling_loss(logits, labels)
        elif DIVERGENCES[name].reads == "hidden":
            values[name] = PLAIN[name](hidden[rows], teacher_hidden[rows])
        else:
            values[name] = PLAIN[name](logits[rows], teacher_logits[rows])
    weights = {name: term.weight for name, term in recipe.active().items()}
    return torch.stack([weights[name] * value for name, value in values.items()]).sum(), values


def assert_same(found, wanted) -> None:
    """Totals, values and every parameter's gradient agree to float32's rounding."""
    torch.testing.assert_close(found[0], wanted[0], atol=1e-4, rtol=2e-5)
    assert set(found[1]) == set(wanted[1])
    for name, value in found[1].items():
        torch.testing.assert_close(value, wanted[1][name].detach(), atol=1e-4, rtol=2e-5)
    for name, gradient in found[2].items():
        # A key's bias has a gradient of zero by cancellation, which leaves rounding behind.
        atol = 1e-4 + 2e-5 * float(wanted[2][name].abs().max())
        torch.testing.assert_close(gradient, wanted[2][name], atol=atol, rtol=1e-4)


def assert_equals_dense(pair: Pair, batch: Batch, recipe: LossesRecipe) -> None:
    total, values = dense(pair, batch, recipe)
    wanted = (total.detach(), values, gradients_of(total, pair[0]))
    assert_same(run(objective_of(pair, recipe), pair[0], batch), wanted)


@pytest.mark.parametrize("rows", ["all", "predicted"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.law("gradient")
def test_each_term_equals_that_of_dense_logits(name, rows, pair, batch):
    """Value and gradients, over all rows and over the predicted ones."""
    assert_equals_dense(pair, batch, recipe_of([name], rows))


@every_family
def test_all_terms_with_their_own_rows_equal_dense_logits(pair, batch):
    """Nine terms, some over all rows and some over the predicted ones, in one pass."""
    recipe = recipe_of(NAMES)
    mixed = {
        name: term.model_copy(update={"rows": "predicted"})
        for name, term in recipe.active().items()
        if name in ("soft_target", "logit_mse", "hidden_cosine")
    }
    assert_equals_dense(pair, batch, recipe.model_copy(update=mixed))


@every_family
@pytest.mark.law("padding")
def test_padding_is_not_seen(pair, batch):
    """More padding, with any tokens, and whole rows of it change nothing."""
    shape = (len(batch.input_ids) + 2, batch.input_ids.shape[1] + 5)

    def padded(tensor: Tensor, filler: int) -> Tensor:
        wider = torch.full(shape, filler)
        wider[: tensor.shape[0], : tensor.shape[1]] = tensor
        return wider

    wider = Batch(
        padded(batch.input_ids, 33),
        padded(batch.labels, IGNORED),
        padded(batch.segment_ids, 0),
        padded(batch.position_ids, 3),
        causal=batch.causal,
        uniform=False,
    )
    wider.input_ids[batch_padding(wider)] = 44
    objective = objective_of(pair, recipe_of(NAMES))
    assert_same(run(objective, pair[0], wider), run(objective, pair[0], batch))


def batch_padding(batch: Batch) -> Tensor:
    return batch.segment_ids == 0


@pytest.mark.parametrize("rows", ["all", "predicted"])
@every_family
@pytest.mark.law("accumulation")
def test_micro_batches_add_up(rows, pair, batch):
    """Whole or one sequence at a time: the same values and gradients, once added."""
    objective = objective_of(pair, recipe_of(NAMES, rows))
    parts = [run(objective, pair[0], part) for part in batch.split(1)]
    together = (
        torch.stack([total for total, _, _ in parts]).sum(),
        {name: sum(values[name] for _, values, _ in parts) for name in NAMES},
        {name: sum(grads[name] for _, _, grads in parts) for name in parts[0][2]},
    )
    assert_same(together, run(objective, pair[0], batch))


@every_family
@pytest.mark.law("formula")
def test_language_modeling_alone_is_the_librarys_own_loss(pair, batch_of, words):
    """As transformers computes it from labels, times the labels it averaged over."""
    student, _ = pair
    causal = is_causal(student.config.model_type)
    batch = batch_of([[words(10)], [words(10, 1)]], 10, causal=causal)
    labels = batch.input_ids if causal else batch.labels  # the library shifts causal labels itself
    loss = student(input_ids=batch.input_ids, labels=labels).loss * batch.num_rows("predicted")
    objective = LanguageModelObjective(family_of(student.config), LANGUAGE_MODELING_ALONE)
    wanted = (loss.detach(), {"language_modeling": loss}, gradients_of(loss, student))
    assert_same(run(objective, student, batch), wanted)


@pytest.mark.law("copy")
def test_a_student_that_is_its_teacher_has_nothing_to_copy(pair, batch):
    """Every term but language modeling is zero for a copy."""
    student = pair[0]
    objective = objective_of((student, student), recipe_of(PLAIN))
    total, values, _ = run(objective, student, batch)
    assert total.item() == pytest.approx(0, abs=1e-3)
    assert set(values) == set(PLAIN)


def test_terms_without_a_coefficient_are_left_out(pair, batch):
    """The sum has the terms that were asked for; a term of weight zero is no term."""
    objective = objective_of(pair, recipe_of(["soft_target", "language_modeling", "hidden_mse"]))
    total, values = objective(pair[0], batch, {"hidden_mse": 0.5})
    assert set(values) == {"hidden_mse"}
    torch.testing.assert_close(total.detach(), 0.5 * values["hidden_mse"])
    silent = LossesRecipe.model_validate(
        {"soft_target": {"weight": 0}, "language_modeling": {"weight": 2}}
    )
    assert objective_of(pair, silent).weights == {"language_modeling": 2.0}


def test_rows_are_the_recipes_and_predicted_for_language_modeling(pair):
    """The engine divides each term by the rows this says."""
    objective = objective_of(pair, recipe_of(["soft_target", "language_modeling"]))
    assert objective.rows == {"soft_target": "all", "language_modeling": "predicted"}
    assert objective.weights == {"soft_target": 1.0, "language_modeling": 2.0}


def test_the_teacher_gets_no_gradient(pair, batch):
    """Nothing of the teacher moves, though its parameters could."""
    total, _ = objective_of(pair, recipe_of(NAMES))(pair[0], batch, dict.fromkeys(NAMES, 1.0))
    total.backward()
    assert all(parameter.grad is None for parameter in pair[1].parameters())
    assert all(parameter.grad is not None for parameter in pair[0].parameters())


def test_the_teacher_is_not_run_for_language_modeling(pair, batch):
    """What needs no teacher costs none."""
    runs = []
    pair[1].get_submodule("transformer").register_forward_hook(lambda *_: runs.append(1))
    objective = objective_of(pair, recipe_of(["soft_target", "language_modeling"]))
    objective(pair[0], batch, {"language_modeling": 1.0})
    assert not runs
    objective(pair[0], batch, {"soft_target": 1.0})
    assert len(runs) == 1


@pytest.mark.parametrize("pair", [("distilbert", "bert")], indirect=True, ids=["distilbert"])
def test_only_rows_that_count_reach_the_head(pair, batch):
    """With predicted rows alone, the masked head runs on those and no others."""
    sizes = []
    pair[0].get_submodule("vocab_transform").register_forward_hook(
        lambda _, inputs, __: sizes.append(inputs[0].shape[:-1].numel())
    )
    for rows in ("predicted", "all"):
        run(
            objective_of(pair, recipe_of(["soft_target", "language_modeling"], rows)),
            pair[0],
            batch,
        )
    assert sizes == [batch.num_rows("predicted"), batch.num_rows("all")]
    assert sizes[0] < sizes[1] / 2


def test_a_batch_without_labels_is_worth_nothing(pair, batch):
    """No predicted row: zero, with zero gradients rather than NaN."""
    silent = Batch(
        batch.input_ids,
        torch.full_like(batch.labels, IGNORED),
        batch.segment_ids,
        batch.position_ids,
        causal=batch.causal,
        uniform=batch.uniform,
    )
    total, values, gradients = run(
        objective_of(pair, recipe_of(NAMES, "predicted")), pair[0], silent
    )
    assert total.item() == 0
    assert all(value.item() == 0 for value in values.values())
    assert not any(gradient.any() for gradient in gradients.values())


def with_cached_teacher(pair: Pair, batch: Batch, rows: Rows) -> Batch:
    """The batch with all outputs of its teacher for the rows, as from a cache."""
    family = family_of(pair[1].config)
    with torch.no_grad():
        hidden = family.run_body(pair[1], batch)[batch.rows(rows)]
        head = family.head(pair[1])
        logits = head.logits(head.transform(hidden))
    chance = torch.zeros(len(logits))
    size = logits.shape[1]
    targets = sparse_rows(logits, "top_k", size, temperature=TEMPERATURE, uniform=chance)
    return replace(batch, teacher=TeacherRows(rows, targets, hidden))


CACHED = ("soft_target", "language_modeling", "hidden_cosine", "hidden_mse")


@pytest.mark.parametrize("cached_rows", ["all", "predicted"])
@every_family
@pytest.mark.law("cache")
def test_a_cached_teacher_teaches_like_a_live_one(cached_rows, pair, batch):
    """Whole or one sequence at a time, all terms or some: what the live teacher gives."""
    recipe = recipe_of(CACHED, cached_rows)
    live = objective_of(pair, recipe)
    cached = LanguageModelObjective(live.family, recipe, teacher="cached", temperature=TEMPERATURE)
    taught = with_cached_teacher(pair, batch, cached_rows)
    assert_same(run(cached, pair[0], taught), run(live, pair[0], batch))
    parts = [run(cached, pair[0], part) for part in taught.split(2)]
    assert len(parts) == 2
    together = torch.stack([total for total, _, _ in parts]).sum()
    torch.testing.assert_close(together, run(live, pair[0], batch)[0], atol=1e-4, rtol=2e-5)
    for names in (["language_modeling"], ["soft_target", "hidden_mse"]):
        some = dict.fromkeys(names, 1.0)
        found, wanted = cached(pair[0], taught, some), live(pair[0], batch, some)
        torch.testing.assert_close(found[0], wanted[0], atol=1e-4, rtol=2e-5)


def test_a_cache_may_hold_more_rows_than_a_term_counts(pair, batch):
    """A term over the predicted rows picks its own from a cache of all rows."""
    recipe = recipe_of(["soft_target", "language_modeling"], "predicted")
    live = objective_of(pair, recipe)
    cached = LanguageModelObjective(live.family, recipe, teacher="cached", temperature=TEMPERATURE)
    taught = with_cached_teacher(pair, batch, "all")
    assert_same(run(cached, pair[0], taught), run(live, pair[0], batch))


def test_copying_needs_a_teacher(pair):
    """Without one only language modeling is left."""
    with pytest.raises(ValueError, match="soft_target"):
        LanguageModelObjective(family_of(pair[0].config), recipe_of(["soft_target"]))
