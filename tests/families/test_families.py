"""Families: where each architecture keeps its parts, checked against the library's own models."""

import pytest
import torch
from pydantic import ValidationError
from tests.tiny_models import EVERY_CAUSAL_FAMILY, EVERY_FAMILY, make_config
from transformers import (
    BertConfig,
    DebertaV2Config,
    ElectraConfig,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    ModernBertConfig,
    MPNetConfig,
    Phi3Config,
    PretrainedConfig,
    Qwen2Config,
    RobertaConfig,
    XLMRobertaConfig,
)

from stillhouse.errors import ModelError, RecipeError
from stillhouse.families.registry import FAMILIES, family_named, family_of
from stillhouse.families.settings import FAMILY_NAMES, ArchitectureRecipe
from stillhouse.models.folder_check import load_config
from stillhouse.models.load import count_parameters, empty_model
from stillhouse.student.plan import plan_student
from stillhouse.student.settings import StudentRecipe
from stillhouse.teacher.settings import TeacherRecipe

every_family = pytest.mark.parametrize("name", EVERY_FAMILY)
every_causal_family = pytest.mark.parametrize("name", EVERY_CAUSAL_FAMILY)


@every_family
def test_body_and_head_apart_equal_the_models_own_logits(name, tiny_model, batch_of, words):
    """run_body, then transform @ weight + bias, is what the model itself computes."""
    model, family = tiny_model(name), family_named(name)
    batch = batch_of(
        [[words(12)], [words(12, seed=1)]], 12, causal=family.language_modeling == "causal"
    )
    assert batch.uniform
    head = family.head(model)
    with torch.no_grad():
        logits = head.logits(head.transform(family.run_body(model, batch)))
        torch.testing.assert_close(
            logits, model(input_ids=batch.input_ids).logits, atol=1e-5, rtol=1e-5
        )


@every_family
@pytest.mark.law("packing")
def test_packed_documents_do_not_see_each_other(name, tiny_model, batch_of, words):
    """Each segment's hidden states are those it has when the library runs it alone."""
    model, family = tiny_model(name), family_named(name)
    pieces = [[words(9), words(5, seed=1)], [words(4, seed=2)], [words(14, seed=3)]]
    batch = batch_of(pieces, 14, causal=family.language_modeling == "causal")
    body = model.get_submodule(family.body)
    with torch.no_grad():
        hidden = family.run_body(model, batch)
        assert hidden.isfinite().all()
        for row, segments in enumerate(pieces):
            for number in range(1, len(segments) + 1):
                here = batch.segment_ids[row] == number
                alone = body(input_ids=batch.input_ids[row][here][None]).last_hidden_state[0]
                torch.testing.assert_close(hidden[row][here], alone, atol=1e-5, rtol=1e-5)


@every_causal_family
def test_causal_model_does_not_attend_to_later_tokens(name, tiny_model, batch_of, words):
    """In a packed row, another last token leaves every earlier hidden state as it was."""
    model, family = tiny_model(name), family_named(name)
    first, second = words(6), words(5, seed=1)
    changed = [*second[:-1], (second[-1] - 4) % 55 + 5]
    assert changed != second
    with torch.no_grad():
        one, other = (
            family.run_body(model, batch_of([[first, last]], 12, causal=True))[0]
            for last in (second, changed)
        )
    assert torch.equal(one[:10], other[:10])
    assert not torch.allclose(one[10], other[10])


@every_family
def test_the_named_parts_are_there(name, tiny_model):
    """Embeddings are parameters, layers are as many as the configuration says."""
    model, family = tiny_model(name, num_layers=3), family_named(name)
    assert family_of(model.config) is family
    assert set(family.embeddings.values()) <= set(dict(model.named_parameters()))
    word = model.get_parameter(family.embeddings["word_embeddings"])
    assert word is model.get_input_embeddings().weight
    if "position_embeddings" in family.embeddings:
        positions = model.get_parameter(family.embeddings["position_embeddings"])
        before_the_first = 2 if name == "opt" else 0  # rows that no position uses
        assert len(positions) == model.config.max_position_embeddings + before_the_first
    layers = model.get_submodule(family.layers)
    assert isinstance(layers, torch.nn.ModuleList)
    assert len(layers) == 3
    width = getattr(model.config, "embedding_size", model.config.hidden_size)
    assert word.shape[1] == width


@every_family
def test_the_longest_sequence_is_the_one_with_a_position_for_each_token(
    name, tiny_model, batch_of, words
):
    """num_positions tokens run; where positions are embedded, one more finds no embedding."""
    model, family = tiny_model(name), family_named(name)
    longest = family.num_positions(model.config)
    causal = family.language_modeling == "causal"
    with torch.no_grad():
        family.run_body(model, batch_of([[words(longest)]], longest, causal=causal))
        if "position_embeddings" not in family.embeddings:
            return
        with pytest.raises((IndexError, RuntimeError), match=r"out of (range|bounds)"):
            family.run_body(model, batch_of([[words(longest + 1)]], longest + 1, causal=causal))


@every_family
def test_a_model_still_sees_padding_after_its_body_ran_alone(name, tiny_model, batch_of, words):
    """The body takes a mask as it is given; the model itself goes on to heed one of padding."""
    model, family = tiny_model(name), family_named(name)
    ids = torch.tensor([words(8), words(8, 1)])
    padding = torch.ones_like(ids)
    padding[0, :3] = 0
    with torch.no_grad():
        before = model(input_ids=ids, attention_mask=padding).logits
        family.run_body(
            model, batch_of([[words(8)]], 8, causal=family.language_modeling == "causal")
        )
        after = model(input_ids=ids, attention_mask=padding).logits
        without = model(input_ids=ids).logits
    assert torch.equal(before, after)
    assert not torch.allclose(before[0, 3:], without[0, 3:])


@every_family
def test_a_teacher_trained_here_has_the_shape_of_its_recipe(name):
    """The recipe's numbers are found again in the model, and its sequences just fit."""
    recipe = TeacherRecipe(
        family=name, num_layers=3, hidden_size=24, num_heads=4, intermediate_size=40, dropout=0.2
    )
    special = {"end_of_text": 7, "pad": 3, "cls": 4, "sep": 5}
    family = family_named(name)
    config = family.new_config(recipe, 90, 32, special)
    model = empty_model(config)
    assert family.num_positions(config) == 32
    assert (config.vocab_size, config.hidden_size) == (90, 24)
    assert (config.num_hidden_layers, config.num_attention_heads) == (3, 4)
    first_layer = model.get_submodule(f"{family.layers}.0")
    assert any(40 in parameter.shape for parameter in first_layer.parameters())
    dropouts = [module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    assert set(dropouts or [config.attention_dropout]) == {0.2}
    if family.language_modeling == "causal":
        assert config.eos_token_id == config.bos_token_id == 7
    else:
        assert config.pad_token_id == 3


@every_family
def test_default_student_is_a_registered_family_that_copies_every_layer(name, tiny_model):
    """Each student parameter has a teacher tensor of its shape, in each of its families."""
    teacher = tiny_model(name, num_layers=3)
    default = plan_student(teacher.config, StudentRecipe()).family.model_type
    assert default == next(iter(family_named(name).student_mappings))
    for family in family_named(name).student_mappings:
        plan = plan_student(teacher.config, StudentRecipe(family=family, layer_map=[0, 2]))
        weights = plan.kind.weights(dict(teacher.named_parameters()), plan.layer_map)
        shapes = {n: p.shape for n, p in empty_model(plan.config).named_parameters()}
        assert shapes.items() <= {n: p.shape for n, p in weights.items()}.items()


LONGROPE = {
    "rope_type": "longrope", "factor": 2.0, "rope_theta": 1e4,
    "original_max_position_embeddings": 12, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4,
    "partial_rotary_factor": 1.0,
}  # fmt: skip
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
DEFAULT = {"rope_type": "default", "rope_theta": 1e4}


@pytest.mark.parametrize(
    ("name", "settings", "kind"),
    [
        ("phi3", LONGROPE, "longrope"),
        ("qwen2", DYNAMIC, "dynamic"),
        ("gemma3_text", {"full_attention": DYNAMIC, "sliding_attention": DEFAULT}, "dynamic"),
    ],
)
def test_rotary_positions_that_depend_on_the_length_are_refused(name, settings, kind, tmp_path):
    """At load, by name, also where layers of one kind alone have them."""
    config = make_config(name)
    config.rope_parameters = settings
    config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=f"rope_type {kind}, whose frequencies depend"):
        load_config(tmp_path)


def test_a_new_model_shares_keys_between_as_many_heads_as_its_recipe_says():
    """Where the architecture can; otherwise the key is refused by name."""
    size = {"num_layers": 1, "hidden_size": 24, "num_heads": 4, "num_key_value_heads": 2}
    special = {"end_of_text": 7, "pad": 3, "cls": 4, "sep": 5}
    qwen = ArchitectureRecipe.model_validate({"family": "qwen3", **size})
    config = family_named("qwen3").new_config(qwen, 90, 32, special)
    assert (config.num_attention_heads, config.num_key_value_heads) == (4, 2)
    gpt2 = ArchitectureRecipe.model_validate({"family": "gpt2", **size})
    with pytest.raises(RecipeError, match=r"num_key_value_heads is 2, .*gpt2"):
        family_named("gpt2").new_config(gpt2, 90, 32, special)
    with pytest.raises(ValidationError, match="not a multiple of num_key_value_heads 3"):
        ArchitectureRecipe.model_validate({"family": "qwen3", **size, "num_key_value_heads": 3})


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LlamaConfig.from_dict({"sliding_window": 4}), None),
        (MistralConfig(sliding_window=4), 4),
        (MistralConfig(sliding_window=None), None),
        (Phi3Config(sliding_window=4), 4),
        (Qwen2Config(sliding_window=4), None),
        (Qwen2Config(sliding_window=4, use_sliding_window=True, max_window_layers=1), 4),
        (Gemma2Config(sliding_window=4), 4),
    ],
)
def test_a_window_is_that_of_the_architecture(config, expected):
    """Some read a key of their configuration that others ignore, or only in layers of a kind."""
    assert family_of(config).window(config) == expected


def test_every_file_of_architectures_is_a_family():
    """The file's name is transformers' model_type."""
    assert [family.model_type for family in FAMILIES.values()] == list(FAMILIES)
    assert set(FAMILIES) == set(FAMILY_NAMES) >= {"bert", "distilbert", "gpt2", "roberta"}


def bert(vocabulary_size: int) -> BertConfig:
    return BertConfig(vocab_size=vocabulary_size)


XLM_ROBERTA = XLMRobertaConfig(vocab_size=250002, max_position_embeddings=514, type_vocab_size=1)
ELECTRA = ElectraConfig(
    embedding_size=128, hidden_size=256, num_attention_heads=4, intermediate_size=1024
)
DEBERTA = DebertaV2Config(
    **family_named("deberta-v2").published, hidden_size=768, num_hidden_layers=12,
    num_attention_heads=12, intermediate_size=3072,
)  # fmt: skip
MPNET = MPNetConfig(max_position_embeddings=514)
ROBERTA = RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1)


@pytest.mark.parametrize(
    ("teacher", "millions", "student_millions"),
    [
        pytest.param(GPT2Config(), 124.4, 81.9, id="gpt2"),
        pytest.param(bert(30522), 109.5, 67.0, id="bert-base-uncased"),
        pytest.param(bert(28996), 108.3, 65.8, id="bert-base-cased"),
        pytest.param(ROBERTA, 124.7, 82.2, id="roberta-base"),
        pytest.param(XLM_ROBERTA, 278.3, 235.8, id="xlm-roberta-base"),
        pytest.param(ELECTRA, 13.5, 8.8, id="electra-small-generator"),
        pytest.param(MPNET, 109.5, 67.0, id="mpnet-base"),
        pytest.param(ModernBertConfig(), 149.7, 94.5, id="ModernBERT-base"),
        pytest.param(DEBERTA, 184.6, 142.0, id="deberta-v3-base"),
        pytest.param(bert(119547), 178.0, 135.4, id="bert-base-multilingual-cased"),
    ],
)
def test_published_models_have_their_published_sizes(
    teacher: PretrainedConfig, millions: float, student_millions: float
):
    """Counted without a single weight in memory.

    Default students are the published ones where there are some: DistilGPT2, DistilBERT,
    DistilRoBERTa.
    """
    for config, expected in (
        (teacher, millions),
        (plan_student(teacher, StudentRecipe()).config, student_millions),
    ):
        total, _ = count_parameters(empty_model(config))
        assert total / 1e6 == pytest.approx(expected, abs=0.0501)


def test_a_tied_projection_belongs_to_the_body(tiny_model):
    """GPT-2's head has no parameters of its own; BERT's has its transform, norm and bias."""
    total, body = count_parameters(tiny_model("gpt2"))
    assert total == body
    total, body = count_parameters(tiny_model("bert"))
    assert total - body == (16 * 16 + 16) + (16 + 16) + 60
