"""The relation term in an objective: two real models against the loss's formula, document by
document."""

import gc
import math
import weakref
from typing import Any

import pytest
import torch
from tests.objectives.test_qkv_hook import OF_BLOCKS, projected_by_hand
from tests.tiny_models import PAIRS_WITH_RELATIONS, is_causal
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from transformers import BertConfig, GPT2Config, GPTNeoXConfig, PretrainedConfig, PreTrainedModel

from stillhouse.errors import RecipeError
from stillhouse.families.registry import family_of
from stillhouse.objectives.language_model import LanguageModelObjective, Teacher
from stillhouse.objectives.relation import check_relation, plan_relation
from stillhouse.objectives.settings import LossesRecipe, RelationRecipe
from stillhouse.tokens.batches import Batch

every_family = pytest.mark.parametrize("pair", PAIRS_WITH_RELATIONS, indirect=True)

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


def objective_of(pair: Pair, **terms: dict) -> LanguageModelObjective:
    student, teacher = pair
    return LanguageModelObjective(
        family_of(student.config),
        LossesRecipe.model_validate(terms),
        teacher=Teacher(family_of(teacher.config), teacher),
        temperature=2.0,
    )


def run(objective: LanguageModelObjective, model: PreTrainedModel, batch: Batch):
    """Values and gradients with the recipe's weights as coefficients."""
    total, values = objective(model, batch, objective.weights)
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    return values, dict(zip(names, gradients, strict=True))


def kinds_alone(model: PreTrainedModel, ids: Tensor, layer: int) -> list[Tensor]:
    """Queries, keys and values of one document, (T, D) each, by modules called by hand."""
    hidden = model(input_ids=ids[None], output_hidden_states=True).hidden_states[layer][0]
    block: Any = model.get_submodule(f"{family_of(model.config).layers}.{layer}")
    if model.config.model_type == "gpt2":
        return list(block.attn.c_attn(block.ln_1(hidden)).split(hidden.shape[-1], dim=-1))
    if model.config.model_type in OF_BLOCKS or hasattr(block, "self_attn"):
        return projected_by_hand(block, hidden)
    if model.config.model_type == "distilbert":
        names = ("q_lin", "k_lin", "v_lin")
        return [block.attention.get_submodule(name)(hidden) for name in names]
    return [block.attention.self.get_submodule(name)(hidden) for name in ("query", "key", "value")]


def log_relations(kind: Tensor, head: int, num_heads: int, *, causal: bool) -> Tensor:
    part = kind.chunk(num_heads, dim=-1)[head]
    scores = part @ part.T / math.sqrt(part.shape[-1])
    if causal:
        scores = scores + torch.full_like(scores, -math.inf).triu(1)
    return scores.log_softmax(-1)


def document_by_document(
    pair: Pair, batch: Batch, *, rows: str, num_heads: int, layers: tuple[int, int]
) -> Tensor:
    """The relation loss with each document run alone, so that nothing has to be masked."""
    total = torch.zeros(())
    counted = batch.rows(rows)  # pyright: ignore[reportArgumentType]
    for ids, segments, counts in zip(batch.input_ids, batch.segment_ids, counted, strict=True):
        for number in range(1, int(segments.max()) + 1):
            here = segments == number
            ours, theirs = (
                kinds_alone(model, ids[here], layer)
                for model, layer in zip(pair, layers, strict=True)
            )
            for s, t in zip(ours, theirs, strict=True):
                for head in range(num_heads):
                    log_q, log_p = (
                        log_relations(kind, head, num_heads, causal=batch.causal)
                        for kind in (s, t.detach())
                    )
                    kl = F.kl_div(log_q, log_p, log_target=True, reduction="none")
                    kl = kl.masked_fill(log_p.isinf(), 0).sum(-1)
                    total = total + kl[counts[here]].sum() / (3 * num_heads)
    return total


@every_family
@pytest.mark.parametrize("rows", ["all", "predicted"])
def test_the_term_is_that_of_each_document_alone(pair, batch, rows):
    """Value and every parameter's gradient; by default the last layers and the student's heads."""
    values, gradients = run(
        objective_of(pair, relation={"weight": 1, "rows": rows}), pair[0], batch
    )
    expected = document_by_document(pair, batch, rows=rows, num_heads=2, layers=(1, 2))
    assert set(values) == {"relation"}
    assert expected.item() > 0.1
    torch.testing.assert_close(values["relation"], expected.detach(), atol=1e-4, rtol=2e-5)
    names, parameters = zip(*pair[0].named_parameters(), strict=True)
    wanted = torch.autograd.grad(expected, parameters, allow_unused=True)
    for name, gradient in zip(names, wanted, strict=True):
        found = gradients[name]
        assert (found is None) == (gradient is None), name
        if gradient is not None:
            atol = 1e-4 + 2e-5 * float(gradient.abs().max())
            torch.testing.assert_close(found, gradient, atol=atol, rtol=1e-4)


def test_layers_and_heads_are_the_recipes(pair, batch):
    """The first layer of the student, the middle one of the teacher, in eight heads of two."""
    term = {"weight": 1, "student_layer": 0, "teacher_layer": 1, "heads": 8}
    values, _ = run(objective_of(pair, relation=term), pair[0], batch)
    expected = document_by_document(pair, batch, rows="all", num_heads=8, layers=(0, 1))
    torch.testing.assert_close(values["relation"], expected.detach(), atol=1e-4, rtol=2e-5)


@every_family
def test_micro_batches_add_up(pair, batch):
    """Whole or one sequence at a time: the same value and gradients, once added."""
    objective = objective_of(pair, relation={"weight": 2})
    values, gradients = run(objective, pair[0], batch)
    parts = [run(objective, pair[0], part) for part in batch.split(1)]
    torch.testing.assert_close(sum(part["relation"] for part, _ in parts), values["relation"])
    for name, gradient in gradients.items():
        if gradient is not None:
            added = sum(part[name] for _, part in parts)
            atol = 1e-4 + 2e-5 * float(gradient.abs().max())
            torch.testing.assert_close(added, gradient, atol=atol, rtol=1e-4)


def test_among_other_terms_each_keeps_its_value(pair, batch):
    """The total is the weighted sum, and any subset of terms can be asked for."""
    objective = objective_of(pair, soft_target={"weight": 3}, relation={"weight": 2})
    together = objective(pair[0], batch, objective.weights)
    alone = {name: objective(pair[0], batch, {name: 1.0}) for name in ("relation", "soft_target")}
    assert {name: set(values) for name, (_, values) in alone.items()} == {
        name: {name} for name in alone
    }
    for name, (total, _) in alone.items():
        torch.testing.assert_close(together[1][name], total.detach())
    expected = 3 * alone["soft_target"][0] + 2 * alone["relation"][0]
    torch.testing.assert_close(together[0], expected)


@pytest.mark.parametrize("pair", [("distilbert", "bert")], indirect=True, ids=["distilbert"])
def test_its_rows_do_not_reach_the_head(pair, batch):
    """Beside losses of predicted rows, the masked head runs on those alone; the values stay."""
    sizes = []
    pair[0].get_submodule("vocab_transform").register_forward_hook(
        lambda _, inputs, __: sizes.append(inputs[0].shape[:-1].numel())
    )
    soft = {"weight": 1, "rows": "predicted"}
    both, _ = run(objective_of(pair, soft_target=soft, relation={"weight": 1}), pair[0], batch)
    alone, _ = run(objective_of(pair, soft_target=soft), pair[0], batch)
    assert sizes == [batch.num_rows("predicted")] * 2
    torch.testing.assert_close(both["soft_target"], alone["soft_target"])


def test_a_copy_has_nothing_to_learn(pair, batch):
    """A student that is its teacher."""
    objective = objective_of((pair[0], pair[0]), relation={"weight": 1})
    values, gradients = run(objective, pair[0], batch)
    assert values["relation"].item() == pytest.approx(0, abs=1e-4)
    assert all(grad is None or grad.abs().max() < 1e-4 for grad in gradients.values())


def test_the_teacher_gets_no_gradient(pair, batch):
    """Nothing of the teacher moves, though its parameters could."""
    objective = objective_of(pair, relation={"weight": 1})
    objective(pair[0], batch, {"relation": 1.0})[0].backward()
    assert all(parameter.grad is None for parameter in pair[1].parameters())


@pytest.mark.e2e
def test_a_compiled_student_learns_the_same(pair, batch):
    """Also where a step begins with other terms alone, as it does to measure their gradients."""
    terms = {"soft_target": {"weight": 1}, "relation": {"weight": 1}}
    expected = run(objective_of(pair, **terms), pair[0], batch)[0]
    pair[0].base_model.compile(backend="eager")
    objective = objective_of(pair, **terms)
    objective(pair[0], batch, {"soft_target": 1.0})
    torch.testing.assert_close(run(objective, pair[0], batch)[0], expected)


def test_steps_do_not_pile_up_hooks(pair, batch):
    """However many micro-batches, a layer is watched once."""
    objective = objective_of(pair, relation={"weight": 1, "teacher_layer": 1})
    layers = [model.get_submodule("transformer.h.1.attn.c_attn") for model in pair]
    for _ in range(3):
        objective(pair[0], batch, {"relation": 1.0})
        assert [len(layer._forward_hooks) for layer in layers] == [1, 1]


@pytest.mark.e2e
def test_nothing_of_a_batch_is_kept(pair, batch):
    """After its backward, a micro-batch's queries, keys and values are gone."""
    traces: list[weakref.ref[Tensor]] = []
    for model in pair:
        model.get_submodule("transformer.h.1.attn.c_attn").register_forward_hook(
            lambda _, __, output: traces.append(weakref.ref(output))
        )
    objective = objective_of(pair, relation={"weight": 1, "teacher_layer": 1})
    total, _ = objective(pair[0], batch, {"relation": 1.0})
    total.backward()
    del total
    gc.collect()
    assert [trace() for trace in traces] == [None, None]


def gpt2(hidden_size: int, num_heads: int, num_layers: int = 2) -> PretrainedConfig:
    return GPT2Config(n_embd=hidden_size, n_head=num_heads, n_layer=num_layers)


def test_the_plan_fills_in_what_the_recipe_leaves_out():
    """Last layers and the student's own heads, which its own hidden size allows."""
    student, teacher = gpt2(16, 4), gpt2(24, 3, num_layers=12)
    plan = plan_relation(RelationRecipe(weight=1), student, teacher)
    assert (plan.student_layer, plan.teacher_layer, plan.num_heads) == (1, 11, 4)
    recipe = RelationRecipe(weight=1, heads=8, teacher_layer=0, student_layer=0)
    plan = plan_relation(recipe, student, teacher)
    assert (plan.student_layer, plan.teacher_layer, plan.num_heads) == (0, 0, 8)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"teacher_layer": 3}, r"relation\.teacher_layer is 3, but the teacher has layers 0 to 2"),
        ({"student_layer": 2}, r"relation\.student_layer is 2, but the student has layers 0 to 1"),
        ({"heads": 16}, r"heads is 16, .* student \(16\) .* teacher \(24\)\. Set it to 8"),
        ({"heads": 5}, r"heads is 5, .*Set it to 4"),
    ],
)
def test_what_two_models_cannot_have_is_refused(keys, message):
    """The key, its value, what there is, and what would do; a term without weight asks nothing."""
    student, teacher = gpt2(16, 4), gpt2(24, 3, num_layers=3)
    with pytest.raises(RecipeError, match=message):
        check_relation(RelationRecipe(weight=1, **keys), student, teacher)
    check_relation(RelationRecipe(weight=0, **keys), student, teacher)
    check_relation(None, student, teacher)


def test_default_heads_that_do_not_fit_the_teacher_are_refused():
    """The student's twelve heads are no part of a hidden size of 32; it says whose they are."""
    student = BertConfig(hidden_size=48, num_attention_heads=12)
    teacher = BertConfig(hidden_size=32, num_attention_heads=4)
    with pytest.raises(RecipeError, match=r"heads is left out, .*own 12, .*Set it to 8"):
        plan_relation(RelationRecipe(weight=1), student, teacher)


def test_queries_that_cannot_be_separated_from_keys_are_refused():
    """GPT-NeoX keeps those of a head side by side; the key and the architecture are named."""
    model = GPTNeoXConfig()
    with pytest.raises(RecipeError, match=r"losses\.relation .* teacher's architecture, gpt_neox"):
        check_relation(RelationRecipe(weight=1), gpt2(16, 4), model)
    check_relation(RelationRecipe(weight=0), model, model)
