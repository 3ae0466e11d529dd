"""Candidates of a budget: what transformers counts, and what cannot be."""

import json
import re

import pytest
import torch
import transformers
from tests.tiny_models import make_config
from transformers import AutoModelForCausalLM, BertConfig, GPT2Config, LlamaConfig

from stillhouse.errors import RecipeError
from stillhouse.families.registry import FAMILIES
from stillhouse.objectives.settings import RelationRecipe
from stillhouse.race.candidates import (
    TOLERANCE,
    Candidate,
    parameter_limit,
    plan_candidates,
    spread,
)
from stillhouse.race.stage import check
from stillhouse.recipe import Recipe
from stillhouse.stages.check import RecipeCheck
from stillhouse.student.settings import BudgetRecipe, RaceRecipe, StudentRecipe

GROUPED = LlamaConfig(
    vocab_size=4_000,
    hidden_size=256,
    intermediate_size=704,
    num_hidden_layers=8,
    num_attention_heads=8,
    num_key_value_heads=4,
)
FAST = ("llama", "gpt2", "bert")
EVERY = [pytest.param(n, marks=() if n in FAST else pytest.mark.e2e) for n in FAMILIES]


def candidates(teacher, *, race: RaceRecipe | None = None, **size: int) -> list[Candidate]:
    budget = BudgetRecipe(race=race or RaceRecipe(), **size)  # pyright: ignore[reportArgumentType]
    return plan_candidates(teacher, StudentRecipe(budget=budget))


def counted_by_transformers(config) -> int:
    """On the meta device, by its own method."""
    with torch.device("meta"):
        model = getattr(transformers, FAMILIES[config.model_type].model_class)(config)
    return model.num_parameters()


@pytest.mark.parametrize("family", EVERY)
def test_every_candidate_meets_the_budget_as_transformers_counts(family):
    """At most the budget, at least 98 % of it, in shapes that all differ."""
    teacher = make_config(family, num_layers=6)
    limit = round(0.7 * counted_by_transformers(teacher))
    found = candidates(teacher, parameters=limit)
    assert len({candidate.name for candidate in found}) == len(found) > 1
    for candidate in found:
        assert candidate.num_parameters == counted_by_transformers(candidate.plan.config)
        assert (1 - TOLERANCE) * limit <= candidate.num_parameters <= limit


@pytest.mark.e2e
def test_candidates_trade_layers_for_channels_and_heads():
    """Deeper ones are narrower, of all heads or fewer, and of two hidden sizes; half of the heads
    at least."""
    limit = round(0.7 * counted_by_transformers(GROUPED))
    found = candidates(GROUPED, parameters=limit, race=RaceRecipe(candidates=100))
    by_heads: dict[tuple[int, ...], list[dict[str, int]]] = {}
    for shape in (candidate.shape for candidate in found):
        own = (shape["num_heads"], shape["num_key_value_heads"], shape["hidden_size"])
        by_heads.setdefault(own, []).append(shape)
    assert {(8, 4, 256), (4, 4, 256), (4, 2, 256), (8, 4, 224), (8, 4, 192)} <= set(by_heads)
    assert min(heads for heads, *_ in by_heads) == 4
    for shapes in by_heads.values():
        depths = [shape["layers"] for shape in shapes]
        widths = [shape["feed_forward_size"] for shape in shapes]
        assert depths == sorted({*depths})
        assert widths == sorted({*widths}, reverse=True)
        assert max(widths) <= 704


@pytest.mark.e2e
def test_a_race_has_as_many_candidates_as_it_is_given():
    """Evenly spread over the shapes, the outermost among them."""
    limit = round(0.7 * counted_by_transformers(GROUPED))
    every = candidates(GROUPED, parameters=limit, race=RaceRecipe(candidates=100))
    few = candidates(GROUPED, parameters=limit, race=RaceRecipe(candidates=3))
    names = [[candidate.name for candidate in found] for found in (every, few)]
    assert len(names[1]) == 3 < len(names[0])
    assert (names[1][0], names[1][-1]) == (names[0][0], names[0][-1])
    assert names[1] == [name for name in names[0] if name in names[1]]
    assert spread([1, 2, 3], 1) == [2]


def test_shapes_that_cannot_have_the_relation_term_are_left_out():
    """Such as those without the layer that it names; where all are, its refusal is given."""
    teacher = make_config("llama", num_layers=6)
    limit = round(0.7 * counted_by_transformers(teacher))
    student = StudentRecipe(budget=BudgetRecipe(parameters=limit))
    assert min(own.shape["layers"] for own in plan_candidates(teacher, student)) == 5
    relation = RelationRecipe(weight=1.0, heads=1, student_layer=5)
    found = plan_candidates(teacher, student, relation)
    assert min(own.shape["layers"] for own in found) == 6
    nowhere = RelationRecipe(weight=1.0, heads=1, student_layer=6)
    with pytest.raises(RecipeError, match=r"losses\.relation\.student_layer is 6"):
        plan_candidates(teacher, student, nowhere)


@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, 4), (torch.bfloat16, 2), (None, 4)])
def test_a_memory_is_that_of_the_teachers_precision(dtype, width):
    """Students are stored as their teachers are."""
    teacher = make_config("llama")
    teacher.dtype = dtype
    assert parameter_limit(BudgetRecipe(memory=1_000_001), teacher) == 1_000_000 // width
    assert parameter_limit(BudgetRecipe(parameters=1_000_001), teacher) == 1_000_001


def test_a_memory_counts_the_weights_as_they_are_stored(task_folder):
    """Whatever precision the teacher's configuration names."""
    folder = task_folder("llama", "CausalLM", num_hidden_layers=6)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    size = AutoModelForCausalLM.from_pretrained(folder).num_parameters()
    recipe = {"teacher": str(folder), "corpus": {"source": "sample"}}
    recipe |= {"tokens": {"sequence_length": 16}}
    recipe |= {"student": {"budget": {"memory": int(4 * 0.9 * size)}}}
    checked = RecipeCheck(Recipe.model_validate(recipe), ["race"], offline=True)
    check(checked)
    sizes = [own.num_parameters for own in checked.candidates]
    assert 0.85 * size < max(sizes) <= 0.9 * size


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("teacher", "parameters", "message"),
    [
        (GPT2Config(), 29_000_000, r"29.0 M parameters, but the embeddings and one narrow layer"),
        (BertConfig(), 1_000, r"1,000 parameters, but .* Give [\d,]+ to [\d,]+ parameters"),
        (GPT2Config(), 200_000_000, "all layers of the teacher have 124.4 M already"),
        (GPT2Config(), 124_439_808, r"Give [\d,]+ to 124,439,807 parameters"),
    ],
)
def test_a_budget_that_cannot_be_met_is_refused(teacher, parameters, message):
    """With what there is, and the sizes that there are."""
    with pytest.raises(RecipeError, match=rf"student\.budget allows .*{message}"):
        candidates(teacher, parameters=parameters)


@pytest.mark.e2e
def test_the_sizes_that_a_refusal_names_have_students():
    """Also where a quarter of the channels is no multiple of the steps that they are cut in."""
    teacher = LlamaConfig(
        vocab_size=100, hidden_size=64, intermediate_size=300, num_hidden_layers=4,
        num_attention_heads=4,
    )  # fmt: skip
    with pytest.raises(RecipeError, match=r"Give [\d,]+ to [\d,]+ parameters") as refused:
        candidates(teacher, parameters=1)
    named = re.findall(r"\d[\d,]+\d", str(refused.value).partition("Give")[2])
    smallest, largest = (int(number.replace(",", "")) for number in named)
    (found,) = candidates(teacher, parameters=smallest)
    assert found.num_parameters == smallest
    assert candidates(teacher, parameters=largest)


def test_a_size_between_two_students_is_refused_with_the_nearest():
    """A teacher of few channels has gaps; the size that is named is one that there is."""
    teacher = LlamaConfig(
        vocab_size=8, hidden_size=16, intermediate_size=1, num_hidden_layers=3,
        num_attention_heads=1, num_key_value_heads=1,
    )  # fmt: skip
    one = counted_by_transformers(candidates_config(teacher, 1))
    with pytest.raises(RecipeError, match=rf"no student .* 2% fewer\. Give {one:,}\.") as refused:
        candidates(teacher, parameters=round(1.5 * one))
    assert str(refused.value).startswith("student.budget allows")
    (found,) = candidates(teacher, parameters=one)
    assert found.shape["layers"] == 1


def candidates_config(teacher: LlamaConfig, num_layers: int) -> LlamaConfig:
    """The teacher with fewer layers."""
    config = LlamaConfig.from_dict(teacher.to_dict())
    config.num_hidden_layers = num_layers
    return config
