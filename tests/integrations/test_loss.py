"""The objective in a plain PyTorch loop: transformers' own loss, and the gradients of a recipe."""

import copy

import pytest
import torch
from tests.tiny_models import EVERY_FAMILY, is_causal

from stillhouse.errors import DataError, RecipeError
from stillhouse.families.registry import family_of
from stillhouse.integrations.cache import ExampleCache, write_teacher_cache
from stillhouse.integrations.loss import DistillationLoss
from stillhouse.objectives.language_model import LanguageModelObjective, Teacher
from stillhouse.objectives.settings import LossesRecipe
from stillhouse.tokens.batches import IGNORED

LOSSES = {
    "soft_target": {"weight": 5.0, "rows": "predicted"},
    "language_modeling": {"weight": 1.0},
    "hidden_cosine": {"weight": 2.0, "rows": "all"},
}
ALONE = {"language_modeling": {"weight": 1.0}}


@pytest.fixture
def student(tiny_model):
    return tiny_model("gpt2", num_layers=2)


@pytest.fixture
def teacher(tiny_model):
    return tiny_model("gpt2", num_layers=3, seed=1)


@pytest.fixture
def inputs(words):
    """Four sequences of 12 tokens, two of them padded on the right."""
    ids = torch.tensor([words(12, seed) for seed in range(4)])
    mask = torch.ones_like(ids)
    mask[1, 7:], mask[3, 10:] = 0, 0
    labels = ids.masked_fill(mask == 0, IGNORED)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def gradients(model):
    return {name: each.grad.clone() for name, each in model.named_parameters()}


def assert_close(found, expected, tolerance=1e-5):
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=tolerance, rtol=1e-4, msg=name)


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_the_language_modeling_loss_is_that_of_transformers(tiny_model, inputs, family):
    """Its value and its gradients, on padded sequences."""
    ours = tiny_model(family)
    theirs = copy.deepcopy(ours)
    if not is_causal(family):
        inputs["labels"][:, ::2] = IGNORED
    expected = theirs(**inputs).loss
    expected.backward()
    found = DistillationLoss(ALONE)(ours, inputs)
    found.loss.backward()
    torch.testing.assert_close(found.loss, expected)
    assert found.terms == {"language_modeling": pytest.approx(expected.item(), rel=1e-5)}
    assert_close(gradients(ours), gradients(theirs))


def test_gradients_are_those_of_a_recipe(student, teacher, batch_of, words):
    """To the bit, on packed documents, padding and all terms."""
    rows = [[words(7), words(4, 1)], [words(12, 2)], [words(5, 3)]]
    batch = batch_of(rows, 12, causal=True)
    labels = torch.cat([torch.full((3, 1), IGNORED), batch.labels[:, :-1]], 1)
    inputs = {
        "input_ids": batch.input_ids,
        "attention_mask": (batch.segment_ids > 0).long(),
        "position_ids": batch.position_ids,
        "labels": labels,
    }
    ours, theirs = copy.deepcopy(student), copy.deepcopy(student)
    loss = DistillationLoss(LOSSES, teacher=teacher, temperature=2.0)(ours, inputs).loss
    loss.backward()
    objective = LanguageModelObjective(
        family_of(theirs.config),
        LossesRecipe.model_validate(LOSSES),
        teacher=Teacher(family_of(teacher.config), teacher),
        temperature=2.0,
    )
    weights = {
        name: weight / batch.num_rows(objective.rows[name])
        for name, weight in objective.weights.items()
    }
    expected, _ = objective(theirs, batch, weights)
    expected.backward()
    assert torch.equal(loss, expected)
    for name, gradient in gradients(theirs).items():
        assert torch.equal(gradients(ours)[name], gradient), name


def test_calls_register_hooks_once(student, teacher, inputs):
    """The relation term captures with the same hooks in every step."""
    loss = DistillationLoss({"relation": {"weight": 1.0}}, teacher=teacher)

    def num_hooks() -> int:
        return sum(
            len(module._forward_hooks) for model in (student, teacher) for module in model.modules()
        )

    loss(student, inputs)
    after_one = num_hooks()
    loss(student, inputs)
    assert num_hooks() == after_one > 0


def test_padding_on_the_left_changes_nothing(student, teacher, inputs):
    loss = DistillationLoss(LOSSES, teacher=teacher)
    shifts = (12 - inputs["attention_mask"].sum(1)).tolist()
    moved = {
        name: torch.stack([row.roll(shift) for row, shift in zip(each, shifts, strict=True)])
        for name, each in inputs.items()
    }
    torch.testing.assert_close(loss(student, moved).loss, loss(student, inputs).loss)


def test_micro_batches_add_up_to_one_batch(student, teacher, inputs):
    """Given the rows of all of them, however unlike they are."""
    loss = DistillationLoss(LOSSES, teacher=teacher)
    whole = copy.deepcopy(student)
    loss(whole, inputs).loss.backward()
    parts = [
        {name: each[part] for name, each in inputs.items()} for part in (slice(0, 1), slice(1, 4))
    ]
    num_rows = loss.count_rows(student, parts)
    for part in parts:
        loss(student, part, num_rows=num_rows).loss.backward()
    assert_close(gradients(student), gradients(whole))


class TestCache:
    @pytest.fixture
    def cache(self, tmp_path, teacher, inputs):
        """Of all tokens, so that nothing but rounding is lost; written in two batches."""
        parts = (slice(0, 3), slice(3, 4))
        loader = [{name: each[part] for name, each in inputs.items()} for part in parts]
        found = write_teacher_cache(
            tmp_path / "cache", teacher, loader, LOSSES, kind="top_k", size=10_000, temperature=2.0
        )
        assert found == 4
        return ExampleCache(tmp_path / "cache")

    def test_it_serves_what_the_live_teacher_does(self, student, teacher, inputs, cache):
        """In any order, and to the rounding of half precision."""
        live = copy.deepcopy(student)
        expected = DistillationLoss(LOSSES, teacher=teacher, temperature=2.0)(live, inputs)
        expected.loss.backward()
        order = torch.tensor([2, 0, 3, 1])
        mixed = {name: each[order] for name, each in inputs.items()} | {"cache_index": order}
        found = DistillationLoss(LOSSES, cache=cache, temperature=2.0)(student, mixed)
        found.loss.backward()
        assert found.terms == pytest.approx(expected.terms, rel=2e-3, abs=2e-3)
        assert_close(gradients(student), gradients(live), tolerance=5e-3)

    def test_other_examples_are_noticed(self, student, inputs, cache):
        loss = DistillationLoss(LOSSES, cache=cache, temperature=2.0)
        with pytest.raises(RecipeError, match="no cache_index: add the number"):
            loss(student, inputs)
        index = torch.arange(4)
        with pytest.raises(DataError, match="Example 3 has other tokens or labels"):
            loss(student, inputs | {"cache_index": index.flip(0)})
        with pytest.raises(DataError, match="from 0 to 3 for each of the 4 sequences"):
            loss(student, inputs | {"cache_index": index + 1})

    def test_another_temperature_is_refused(self, cache):
        with pytest.raises(RecipeError, match="written at temperature 2; got temperature 1"):
            DistillationLoss(LOSSES, cache=cache)

    def test_what_a_cache_cannot_serve_is_refused(self, tmp_path, teacher, inputs):
        with pytest.raises(RecipeError, match=r"losses.jsd needs the teacher's whole distribution"):
            write_teacher_cache(tmp_path / "c", teacher, [inputs], {"jsd": {"weight": 1.0}})
        with pytest.raises(DataError, match="The loader gives no examples"):
            write_teacher_cache(tmp_path / "c", teacher, [], LOSSES)
        assert not (tmp_path / "c").exists()
        (tmp_path / "c").mkdir()
        with pytest.raises(RecipeError, match="is already there"):
            write_teacher_cache(tmp_path / "c", teacher, [inputs], LOSSES)
        with pytest.raises(DataError, match="is no cache of `write_teacher_cache`"):
            ExampleCache(tmp_path / "c")


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ({"soft_targets": {"weight": 1.0}}, "soft_targets: Extra inputs are not permitted"),
        ({"soft_target": {"weight": -1.0}}, "soft_target.weight: .* got -1.0"),
        ({}, "nothing to learn from"),
    ],
)
def test_wrong_terms_are_refused(losses, message):
    with pytest.raises(RecipeError, match=message):
        DistillationLoss(losses)


def test_wrong_inputs_are_refused(student, inputs):
    with pytest.raises(RecipeError, match=r"need a teacher; give one as teacher or cache"):
        DistillationLoss(LOSSES)(student, inputs)
    loss = DistillationLoss(ALONE)
    with pytest.raises(RecipeError, match="token_type_ids other than 0"):
        loss(student, inputs | {"token_type_ids": torch.ones_like(inputs["input_ids"])})
    del inputs["labels"]
    with pytest.raises(RecipeError, match="no labels"):
        loss(student, inputs)
