"""The student's plan: the rule for layer maps, and what a teacher cannot give."""

import pytest
from transformers import AutoConfig, BertConfig, GPT2Config, Qwen2Config, RobertaConfig

from stillhouse.errors import RecipeError
from stillhouse.families.base import PER_LAYER, evenly_spread
from stillhouse.families.registry import check_sequence_length
from stillhouse.families.settings import FAMILY_NAMES
from stillhouse.student.plan import plan_student
from stillhouse.student.settings import LayerChoice, StudentRecipe
from stillhouse.tokens.settings import TokensRecipe


@pytest.mark.parametrize(
    ("num_student_layers", "num_teacher_layers", "expected"),
    [
        (6, 12, [0, 2, 4, 7, 9, 11]),  # the map of 2019
        (1, 12, [0]),
        (2, 12, [0, 11]),
        (3, 6, [0, 2, 5]),  # 2.5 goes to the even 2
        (3, 4, [0, 2, 3]),  # 1.5 goes to the even 2
        (3, 12, [0, 6, 11]),  # 5.5 goes to the even 6
        (1, 1, [0]),
    ],
)
def test_layers_are_evenly_spread_halves_to_even(num_student_layers, num_teacher_layers, expected):
    """round(i * (L - 1) / (n - 1)), as written down by hand."""
    assert evenly_spread(num_student_layers, num_teacher_layers) == expected


@pytest.mark.parametrize("num_layers", [1, 2, 5, 12])
def test_as_many_layers_as_the_teacher_are_all_of_them(num_layers):
    """n = L is the identity."""
    assert evenly_spread(num_layers, num_layers) == list(range(num_layers))


def test_a_spread_rises_from_the_first_layer_to_the_last():
    """No layer comes twice, and both ends are there, for every pair of depths."""
    for num_teacher_layers in range(2, 25):
        for num_student_layers in range(2, num_teacher_layers + 1):
            spread = evenly_spread(num_student_layers, num_teacher_layers)
            assert spread == sorted(set(spread))
            assert (spread[0], spread[-1]) == (0, num_teacher_layers - 1)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (LayerChoice(layers=2, by="even"), [0, 11]),
        ([11, 3, 3], [11, 3, 3]),
        ([0], [0]),
        (12, list(range(12))),  # there is nothing to choose
    ],
)
def test_the_layer_map_gives_the_depth(asked, expected):
    """As given, or spread evenly. The depth follows."""
    plan = plan_student(GPT2Config(), StudentRecipe(layer_map=asked))
    assert plan.layer_map == expected
    assert plan.choice is None
    assert plan.config.num_hidden_layers == len(expected)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (None, LayerChoice(layers=6)),
        (2, LayerChoice(layers=2)),
        (LayerChoice(layers=3, by="greedy"), LayerChoice(layers=3, by="greedy")),
    ],
)
def test_a_number_of_layers_is_chosen_by_importance(asked, expected):
    """By influence unless asked otherwise; the student's size is known before, its layers later."""
    recipe = StudentRecipe(layer_map=asked)
    plan = plan_student(GPT2Config(), recipe)
    assert plan.choice == expected
    assert plan.config.num_hidden_layers == expected.layers
    layers = list(range(expected.layers))
    assert plan_student(GPT2Config(), recipe, chosen=layers).layer_map == layers


@pytest.mark.parametrize("weights", ["random", "runs/earlier/student"])
def test_layers_that_nothing_is_copied_from_are_not_measured(weights):
    """A student with weights of its own needs only the number of layers."""
    assert plan_student(GPT2Config(), StudentRecipe(layer_map=2, weights=weights)).choice is None


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, True),
        ({"layer_map": 12}, False),
        ({"layer_map": [0, 3]}, False),
        ({"layer_map": [0, 3], "feed_forward_size": 3_072}, False),
        ({"layer_map": [0, 3], "feed_forward_size": 512}, True),
        ({"layer_map": [0, 3], "feed_forward_size": 512, "weights": "random"}, False),
    ],
)
def test_a_teacher_is_measured_where_there_is_a_choice(settings, expected):
    """All layers, or widths as large as the teacher's, leave nothing to choose."""
    assert plan_student(GPT2Config(), StudentRecipe(**settings)).is_measured == expected


def test_what_is_no_list_of_layers_is_left_alone():
    """Two ids that end a text are not one for each of two layers; their kinds of attention are."""
    kinds = ["full_attention", "sliding_attention"]
    teacher = Qwen2Config(num_hidden_layers=2, eos_token_id=[1, 2], layer_types=kinds)
    teacher.architectures = ["Qwen2ForCausalLM", "Another"]
    config = plan_student(teacher, StudentRecipe(layer_map=[1])).config
    assert config.layer_types == ["sliding_attention"]
    assert config.eos_token_id == [1, 2]
    assert config.architectures == teacher.architectures


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_every_list_of_layers_is_known(family):
    """No architecture has another key whose value grows with the layers."""
    one, other = (AutoConfig.for_model(family, num_hidden_layers=n).to_dict() for n in (5, 7))
    listed = {key for key in one if isinstance(one[key], list) and one[key] != other[key]}
    assert listed <= {*PER_LAYER}


def test_a_teacher_of_one_layer_still_has_a_student():
    """Half of one layer is one layer, not none."""
    plan = plan_student(GPT2Config(n_layer=1), StudentRecipe())
    assert plan.layer_map == [0]
    assert plan.config.n_layer == 1


def test_the_teachers_configuration_is_left_alone():
    """The student's depth is set on a copy."""
    teacher = GPT2Config()
    plan_student(teacher, StudentRecipe(layer_map=2))
    assert teacher.num_hidden_layers == 12


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ([0, 12], r"layers \[12\], but the teacher has layers 0 to 11.*\[0, 2, 4, 7, 9, 11\]"),
        ([-1], r"layers \[-1\]"),
        (13, "asks for 13 layers, but the teacher has 12.*from 1 to 12"),
    ],
)
def test_a_layer_the_teacher_does_not_have_is_refused(asked, message):
    """The error names the layer, what there is, and a map that would do."""
    with pytest.raises(RecipeError, match=message):
        plan_student(GPT2Config(), StudentRecipe(layer_map=asked))


@pytest.mark.parametrize(
    ("teacher", "asked", "expected"),
    [
        (BertConfig(), None, "distilbert"),
        (BertConfig(), "bert", "bert"),
        (GPT2Config(), None, "gpt2"),
        (RobertaConfig(), None, "roberta"),
    ],
)
def test_the_students_family_follows_from_the_teachers(teacher, asked, expected):
    """BERT's student is DistilBERT unless asked otherwise; the others stay in the family."""
    plan = plan_student(teacher, StudentRecipe(family=asked))
    assert plan.family.model_type == plan.config.model_type == expected


def test_a_family_its_teacher_cannot_start_is_refused():
    """GPT-2 cannot become a BERT; the error says what it can become."""
    with pytest.raises(RecipeError, match=r"family is bert, but a gpt2 teacher.* gpt2\."):
        plan_student(GPT2Config(), StudentRecipe(family="bert"))


def tokens(language_modeling: str, sequence_length: int) -> TokensRecipe:
    given = {"language_modeling": language_modeling, "sequence_length": sequence_length}
    return TokensRecipe.model_validate(given)


@pytest.mark.parametrize(
    ("config", "kind", "longest"),
    [
        (GPT2Config(), "causal", 1024),
        (BertConfig(), "masked", 512),
        (RobertaConfig(max_position_embeddings=514, pad_token_id=1), "masked", 512),
    ],
)
def test_sequences_longer_than_the_teachers_positions_are_refused(config, kind, longest):
    """RoBERTa's first rows of positions are no one's, so 514 rows take 512 tokens."""
    check_sequence_length(tokens(kind, longest), config)
    with pytest.raises(RecipeError, match=f"is {longest + 1}, but .* at most {longest}"):
        check_sequence_length(tokens(kind, longest + 1), config)


def test_the_wrong_kind_of_language_modeling_is_refused():
    """A causal recipe for BERT is a mistake named before any work."""
    with pytest.raises(RecipeError, match="is causal, but the teacher is a bert"):
        check_sequence_length(tokens("causal", 128), BertConfig())
