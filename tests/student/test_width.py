"""Narrower students: what is cut, against a teacher in which the same is zero."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from tests.tiny_models import is_causal, make_config
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertConfig,
    DistilBertConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MPNetConfig,
    Olmo2Config,
    OPTConfig,
)

from stillhouse.errors import RecipeError
from stillhouse.families.registry import FAMILIES, family_of
from stillhouse.models.load import load_model, save_model
from stillhouse.student.axes import (
    Axis,
    Sizes,
    feed_forward_axes,
    head_axes,
    heads_divide_hidden_size,
    readers,
    sizes_of,
)
from stillhouse.student.initialize import student_from_teacher
from stillhouse.student.plan import plan_student
from stillhouse.student.settings import StudentRecipe
from stillhouse.student.width import as_ranges, best_heads, channel_scores, choose_widths

WITHOUT_HIDDEN_SIZE = ("gpt_neox", "mpnet")  # refused: see below
WITH_HEADS = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3")
FAST = ("llama", "phi3", "opt", "gpt2", "bert", "qwen2", "gemma2")
every_family = pytest.mark.parametrize(
    "family",
    [pytest.param(name, marks=() if name in FAST else pytest.mark.e2e) for name in FAMILIES],
)
GROUPED = LlamaConfig(hidden_size=2_048, num_attention_heads=32, num_key_value_heads=8)
SMALL = LlamaConfig(hidden_size=64, num_attention_heads=8, num_key_value_heads=4, head_dim=8)


def model_with_heads(family: str):
    """Four heads that share two of keys and values, with every parameter random."""
    config = make_config(family)
    config.num_attention_heads, config.num_key_value_heads = 4, 2
    config.head_dim = 4
    torch.manual_seed(0)
    model = getattr(transformers, family_of(config).model_class)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.1, 0.3)
    return model


def cut_and_zeroed(model, text, axes: list[Axis], **widths: int):
    """Logits of a student of these widths, and of its teacher once what is cut there reads as
    zero; with what each layer keeps."""
    family = family_of(model.config)
    settings = {"family": model.config.model_type, "layer_map": [0, 1], **widths}
    recipe = StudentRecipe.model_validate(settings)
    plan = plan_student(model.config, recipe)
    kept = choose_widths(family, model, plan.narrow, text)
    student = student_from_teacher(model, plan, kept)
    layers = family.layers_of(model)
    name = f"{readers(layers[0], axes)[0]}.weight"
    (dim,) = [axis.dim for axis in axes if axis.parameter == name]
    with torch.no_grad():
        for number, layer in enumerate(layers):
            weight = layer.get_parameter(name)
            cut = torch.ones(weight.shape[dim], dtype=torch.bool)
            cut[kept.places[f"{family.layers}.{number}.{name}", dim]] = False
            weight.movedim(dim, 0)[cut] = 0
    ids = torch.arange(5, 15)[None]
    with torch.no_grad():
        return student(input_ids=ids).logits, model(input_ids=ids).logits, student


@every_family
def test_a_student_with_fewer_channels_is_its_teacher_with_zeros(family, tiny_model, text_for):
    """Fused, transposed and plain projections: the logits are those of the zeroed teacher."""
    model = tiny_model(family)
    size = sizes_of(model.config).feed_forward
    axes = feed_forward_axes(model.config)
    cut, zeroed, student = cut_and_zeroed(model, text_for(model), axes, feed_forward_size=size // 3)
    torch.testing.assert_close(cut, zeroed, atol=1e-5, rtol=1e-5)
    assert sizes_of(student.config).feed_forward == size // 3


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(name, marks=() if name in (*FAST, "qwen3") else pytest.mark.e2e)
        for name in WITH_HEADS
    ],
)
@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (2, 1)])
def test_a_student_with_fewer_heads_is_its_teacher_with_zeros(family, heads, kv_heads, text_for):
    """One head of each group, or one group of two: fused and plain projections."""
    model = model_with_heads(family)
    axes, _ = head_axes(model.config)
    widths = {"num_heads": heads, "num_key_value_heads": kv_heads}
    cut, zeroed, student = cut_and_zeroed(model, text_for(model), axes, **widths)
    torch.testing.assert_close(cut, zeroed, atol=1e-5, rtol=1e-5)
    found = sizes_of(student.config)
    assert (found.heads, found.kv_heads, found.head_size) == (heads, kv_heads, 4)


@pytest.mark.e2e
@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in WITH_HEADS])
def test_heads_that_cannot_be_cut_are_refused(family, record_property):
    """With the reason, before a weight is read."""
    with pytest.raises(RecipeError, match="so they cannot be cut") as refused:
        plan_student(make_config(family), StudentRecipe(layer_map=[0, 1], num_heads=1))
    record_property("refused", str(refused.value))


@pytest.mark.e2e
@pytest.mark.parametrize("family", WITHOUT_HIDDEN_SIZE)
def test_a_hidden_size_that_cannot_be_cut_is_refused(family, record_property):
    """With the reason, before a weight is read."""
    with pytest.raises(RecipeError, match="so they cannot be cut") as refused:
        plan_student(make_config(family), StudentRecipe(layer_map=[0, 1], hidden_size=8))
    record_property("refused", str(refused.value))


def norm_over(norm: nn.LayerNorm, kept) -> nn.Module:
    """The same LayerNorm of these channels alone, and zeros in place of the others. Its factor is
    that of an RMSNorm, for which zeros are enough."""
    own = copy.deepcopy(norm)
    for name, parameter in norm.named_parameters():
        setattr(own, name, nn.Parameter(parameter[kept]))
    growth = norm.normalized_shape[0] / len(kept)
    own.normalized_shape, own.eps = (len(kept),), norm.eps * growth
    own.weight = nn.Parameter(own.weight * growth**0.5)

    def forward(hidden):
        return torch.zeros_like(hidden).index_copy(-1, kept, own(hidden[..., kept]))

    norm.forward = forward  # pyright: ignore[reportAttributeAccessIssue]
    return norm


def zero_what_is_cut(model, kept) -> None:
    """Zero in place of all that a narrower student does not have; LayerNorms read the rest."""
    channels = torch.tensor(kept.hidden)
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm) and (f"{name}.weight", 0) in kept.places:
            norm_over(module, channels)
    with torch.no_grad():
        for (name, dim), places in kept.places.items():
            parameter = model.get_parameter(name)
            cut = torch.ones(parameter.shape[dim], dtype=torch.bool)
            cut[places] = False
            parameter.movedim(dim, 0)[cut] = 0


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(name, marks=() if name in ("llama", "gemma2", "gpt2") else pytest.mark.e2e)
        for name in FAMILIES
        if name not in WITHOUT_HIDDEN_SIZE
    ],
)
def test_a_student_of_a_smaller_hidden_size_is_its_teacher_with_zeros(
    family, tiny_model, text_for, tiny_tokenizer, tmp_path
):
    """All that reads or writes the residual stream is cut, in the same places; the student has the
    size that transformers gives its configuration, and is the same model once it is saved."""
    model, own = tiny_model(family), FAMILIES[family]
    size = 8 if heads_divide_hidden_size(model.config) else 10
    settings = {"family": family, "layer_map": [0, 1], "hidden_size": size}
    plan = plan_student(model.config, StudentRecipe.model_validate(settings))
    kept = choose_widths(own, model, plan.narrow, text_for(model))
    student = student_from_teacher(model, plan, kept)
    assert len(kept.hidden) == student.config.hidden_size == size
    save_model(student, tiny_tokenizer, tmp_path)
    auto = AutoModelForCausalLM if is_causal(family) else AutoModelForMaskedLM
    loaded = auto.from_pretrained(tmp_path)
    zero_what_is_cut(model, kept)
    growth = model.config.hidden_size / size  # of the mean square that a norm adds epsilon to
    for name, module in [*student.named_modules(), *loaded.named_modules()]:
        for key in ("eps", "variance_epsilon"):
            if (f"{name}.weight", 0) in kept.places and hasattr(module, key):
                setattr(module, key, growth * getattr(module, key))
    ids = torch.arange(5, 15)[None]
    with torch.no_grad():
        cut, zeroed, again = (each(input_ids=ids).logits for each in (student, model, loaded))
    torch.testing.assert_close(cut, zeroed, atol=1e-5, rtol=1e-5)
    assert torch.equal(cut, again)


def test_hidden_channels_are_scored_before_attention_and_feed_forward_part(tiny_model, text_for):
    """A channel that no norm lets through is the first to go; one that is amplified stays."""
    model = tiny_model("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            for norm in (layer.input_layernorm, layer.post_attention_layernorm):
                norm.weight[:] = 1
                norm.weight[[2, 5]] = 0
        model.model.layers[1].post_attention_layernorm.weight[5] = 100
        model.model.norm.weight[2] = 100  # before the head: not counted
    plan = plan_student(model.config, StudentRecipe(layer_map=[0, 1], hidden_size=14))
    kept = choose_widths(FAMILIES["llama"], model, plan.narrow, text_for(model))
    assert 5 in kept.hidden
    assert 2 not in kept.hidden
    assert kept.facts() == {"hidden": kept.hidden}


def test_ranges_of_numbers():
    """As in pages to print."""
    assert as_ranges([0, 1, 2, 3, 7, 9, 10]) == "0-3 7 9-10"
    assert as_ranges([4]) == "4"


@every_family
def test_a_student_as_wide_as_its_teacher_is_its_teacher(family, tiny_model, text_for):
    """To the bit, whatever order its channels would be ranked in."""
    model = tiny_model(family)
    sizes = sizes_of(model.config)
    settings = {"family": family, "layer_map": [0, 1], "feed_forward_size": sizes.feed_forward}
    settings["hidden_size"] = sizes.hidden
    if family == "llama":
        settings["num_heads"] = sizes.heads
    plan = plan_student(model.config, StudentRecipe.model_validate(settings))
    kept = choose_widths(family_of(model.config), model, plan.narrow, text_for(model))
    student = student_from_teacher(model, plan, kept)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, student.get_parameter(name))


def test_a_distilbert_is_narrower_than_its_bert(tiny_model, text_for):
    """Channels are cut before the weights go to the other architecture."""
    model = tiny_model("bert")
    plan = plan_student(model.config, StudentRecipe(layer_map=[1], feed_forward_size=24))
    kept = choose_widths(family_of(model.config), model, plan.narrow, text_for(model))
    student = student_from_teacher(model, plan, kept)
    places = kept.places["bert.encoder.layer.1.output.dense.weight", 1]
    theirs = model.get_parameter("bert.encoder.layer.1.output.dense.weight")
    ours = student.get_parameter("distilbert.transformer.layer.0.ffn.lin2.weight")
    assert torch.equal(ours, theirs[:, places])


@pytest.mark.parametrize("family", ["llama", "opt", "bert"])
def test_channel_scores_are_the_norm_of_mean_activations(family, tiny_model, text_for):
    """In float64: mean of |x| over each sequence's real positions, then the root of the sum of
    squares over sequences."""
    model = tiny_model(family)
    own, text = family_of(model.config), text_for(model)
    layer = own.layers_of(model)[1]
    (module,) = readers(layer, feed_forward_axes(model.config))
    seen = []
    hook = layer.get_submodule(module).register_forward_pre_hook(
        lambda _, args: seen.append(args[0].detach().double().numpy())
    )
    (batch,) = text.batches()
    with torch.no_grad():
        own.run_body(model, batch)
    hook.remove()
    states = np.abs(seen[0]).reshape(*batch.input_ids.shape, -1)
    means = [
        each[real].mean(0) for each, real in zip(states, batch.segment_ids.numpy() > 0, strict=True)
    ]
    expected = np.sqrt(np.sum(np.square(means), 0))
    found = channel_scores(own, model, text, [module])[module][1]
    assert np.allclose(found.numpy(), expected, atol=1e-6)


def test_heads_are_ranked_within_their_groups():
    """By the norms of their channels: the best head of each group, or both of the best group."""
    have = Sizes(feed_forward=1, heads=4, kv_heads=2, head_size=2, hidden=8)
    scores = torch.tensor([1.0, 0, 0, 2, 5, 5, 3, 3]).double()  # norms 1, 2 and 7.1, 4.2
    one_each, _ = best_heads(scores, have, replace(have, heads=2))
    assert one_each.tolist() == [2, 3, 4, 5]
    one_group, keys = best_heads(scores, have, replace(have, heads=2, kv_heads=1))
    assert (one_group.tolist(), keys.tolist()) == ([4, 5, 6, 7], [2, 3])


@pytest.mark.parametrize(
    ("teacher", "widths", "message"),
    [
        (GPT2Config(), {"feed_forward_size": 4_000}, "is 4,000, but the teacher has 3,072"),
        (GPT2Config(), {"num_heads": 6}, "heads of a gpt2 model divide its hidden size"),
        (BertConfig(), {"num_heads": 6}, "heads of a bert model divide its hidden size"),
        (Olmo2Config(), {"num_heads": 16}, "heads of a olmo2 model are normed together"),
        (BertConfig(), {"layer_map": [0, 1], "num_heads": 5}, "bert model divide its hidden size"),
        (GPT2Config(), {"num_heads": 5}, "heads of a gpt2 model divide its hidden size"),
        (OPTConfig(), {"num_heads": 5}, "heads of a opt model divide its hidden size"),
        (DistilBertConfig(), {"num_heads": 5}, "a distilbert model divide its hidden size"),
        (SMALL, {"hidden_size": 72}, "hidden_size is 72, but the teacher has 64"),
        (SMALL, {"hidden_size": 36}, r"hidden size 36 and 8 heads \(The hidden size"),
        (GPT2Config(), {"hidden_size": 500}, "multiple of the size of its heads, 64. Give 448"),
        (GPT2Config(), {"hidden_size": 512, "num_heads": 6}, "divide it, so there are 8"),
        (GPTNeoXConfig(), {"hidden_size": 3_072}, "divide it and lie side by side"),
        (MPNetConfig(), {"hidden_size": 512}, "divide it and share biases of positions"),
        (SMALL, {"num_heads": 6, "num_key_value_heads": 3}, r"llama student .* 6 heads \(The hid"),
        (GROUPED, {"num_heads": 40}, "num_heads is 40, but the teacher has 32"),
        (GROUPED, {"num_heads": 12}, "num_heads 12 and .* 8 do not fit .* 32 and 8"),
        (GROUPED, {"num_heads": 16, "num_key_value_heads": 2}, "16 and .* 2 do not fit"),
    ],
)
def test_widths_that_cannot_be_are_refused(teacher, widths, message):
    """With what was asked for, and what there is."""
    with pytest.raises(RecipeError, match=message):
        plan_student(teacher, StudentRecipe(**widths))


@pytest.mark.parametrize(
    ("widths", "expected"),
    [
        ({"num_heads": 16}, (16, 8)),
        ({"num_key_value_heads": 4}, (16, 4)),
        ({"num_heads": 8, "num_key_value_heads": 4}, (8, 4)),
    ],
)
def test_the_number_of_heads_follows(widths, expected):
    """Of queries from that of keys and values; groups stay as they are unless told otherwise."""
    found = sizes_of(plan_student(GROUPED, StudentRecipe(**widths)).config)
    assert (found.heads, found.kv_heads, found.head_size) == (*expected, 64)


def test_a_narrower_student_is_complete_on_disk(text_for, tiny_tokenizer, tmp_path):
    """Saved and loaded again, it is the same model."""
    model = model_with_heads("llama")
    recipe = StudentRecipe(layer_map=[0, 1], feed_forward_size=24, num_heads=2)
    plan = plan_student(model.config, recipe)
    kept = choose_widths(family_of(model.config), model, plan.narrow, text_for(model))
    student = student_from_teacher(model, plan, kept)
    save_model(student, tiny_tokenizer, tmp_path)
    _, loaded = load_model(tmp_path)
    for name, parameter in student.named_parameters():
        assert torch.equal(parameter, loaded.get_parameter(name)), name
