"""What must hold of an architecture before it is believed: the laws of docs/reference/families.md,
for whose tables `benchmarks/family_laws.py` runs these tests.

Models are tiny, every parameter is random, heads are grouped and windows short where the
architecture has them. The reference is transformers with its plain ("eager") attention.
"""

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny_models import CAUSAL, POSITIONS, VOCABULARY, is_causal, make_config
from tests.training.jobs import LENGTH as LENGTH_OF_JOBS
from tests.training.jobs import Silent, make_job
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedModel

from stillhouse.errors import RecipeError, Stopped
from stillhouse.families.base import Family
from stillhouse.families.registry import family_named
from stillhouse.families.settings import FAMILY_NAMES, MASKED
from stillhouse.inference.engine.kv_cache import Chunk, SlottedModel
from stillhouse.inference.quantization import to_precision
from stillhouse.models.load import count_parameters, empty_model, load_model, save_model
from stillhouse.student.initialize import student_from_teacher
from stillhouse.student.plan import plan_student
from stillhouse.student.settings import StudentRecipe
from stillhouse.tokens.packing import pack
from stillhouse.tokens.settings import TokensRecipe
from stillhouse.tokens.shards import TokenSplit
from stillhouse.training.engine import train
from stillhouse.training.job import TrainingJob
from stillhouse.training.ranks import StopRequest

every_decoder = pytest.mark.parametrize("name", CAUSAL)
every_family = pytest.mark.parametrize("name", FAMILY_NAMES)
LENGTH = 20  # past the windows, within the positions
# The last matrices of attention and of the feed-forward part, by their names in transformers.
OUTPUTS = ("c_proj", "o_proj", "down_proj", "dense", "dense_4h_to_h", "out_proj", "fc2")
BF16_ERROR = 0.05  # of the logits, relative in norm


def reference(model: PreTrainedModel, ids: list[int]) -> Tensor:
    """The logits of transformers' plain attention (T, V)."""
    before, model.config._attn_implementation = model.config._attn_implementation, "eager"
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0]
    model.config._attn_implementation = before
    return logits


def largest_difference(found: Tensor, expected: Tensor) -> float:
    """Of any element."""
    return float((found - expected).abs().max())


def cut(teacher: PreTrainedModel, layer_map: list[int]) -> PreTrainedModel:
    family = teacher.config.model_type
    plan = plan_student(teacher.config, StudentRecipe(family=family, layer_map=layer_map))
    return student_from_teacher(teacher, plan)


@every_family
def test_identity(name, tiny_model, words):
    """A student with all layers has the logits of its teacher, to the bit."""
    teacher = tiny_model(name, num_layers=3)
    student = cut(teacher, [0, 1, 2])
    assert torch.equal(reference(student, words(LENGTH)), reference(teacher, words(LENGTH)))


@every_decoder
def test_zeroed_layers(name, tiny_model, words):
    """A layer that adds nothing to the residual stream equals a layer that was cut."""
    teacher = tiny_model(name, num_layers=4)
    student, ids = cut(teacher, [1, 2]), words(LENGTH)
    found, whole = reference(student, ids), reference(teacher, ids)
    assert not torch.allclose(found, whole)
    layers = family_named(name).layers_of(teacher)
    with torch.no_grad():
        for layer in (layers[0], layers[3]):
            zeroed = [m for n, m in layer.named_modules() if n.rpartition(".")[2] in OUTPUTS]
            assert len(zeroed) == 2
            for parameter in (each for module in zeroed for each in module.parameters()):
                parameter.zero_()
    assert torch.equal(found, reference(teacher, ids))


@pytest.mark.parametrize("name", MASKED)
def test_skipped_layers(name, tiny_model, words):
    """A layer of the teacher that passes on what it got equals a layer that was cut."""
    teacher = tiny_model(name, num_layers=4)
    student, ids = cut(teacher, [0, 2]), words(LENGTH)
    found, whole = reference(student, ids), reference(teacher, ids)
    assert not torch.allclose(found, whole)
    layers = family_named(name).layers_of(teacher)
    for layer in (layers[1], layers[3]):
        layer.register_forward_hook(
            lambda layer, given, output: (
                (given[0], *output[1:]) if isinstance(output, tuple) else given[0]
            )
        )
    assert torch.equal(found, reference(teacher, ids))


@every_family
def test_parity(name, tiny_model, batch_of, words, record_property):
    """Body and head as trained equal transformers, past the attention window."""
    model, family = tiny_model(name), family_named(name)
    batch = batch_of([[words(LENGTH)]], LENGTH, causal=is_causal(name))
    head = family.head(model)
    with torch.no_grad():
        found = head.logits(head.transform(family.run_body(model, batch)[0]))
    expected = reference(model, batch.input_ids[0].tolist())
    record_property("difference", largest_difference(found, expected))
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)


@every_family
@pytest.mark.law("packing")
def test_packed_alone(name, tiny_model, batch_of, words, record_property):
    """Documents in one row, longer and shorter than the window, and one beside padding, have the
    logits they have alone."""
    model, family = tiny_model(name), family_named(name)
    texts = [words(11), words(9, 1)]
    batch = batch_of([texts, [words(7, 2)]], LENGTH, causal=is_causal(name))
    head = family.head(model)
    with torch.no_grad():
        found = head.logits(head.transform(family.run_body(model, batch)))
    places = [batch.segment_ids[row] == number for row, number in ((0, 1), (0, 2), (1, 1))]
    together = [found[row][here] for row, here in zip((0, 0, 1), places, strict=True)]
    rows = [batch.input_ids[row][here] for row, here in zip((0, 0, 1), places, strict=True)]
    alone = torch.cat([reference(model, row.tolist()) for row in rows])
    record_property("difference", largest_difference(torch.cat(together), alone))
    torch.testing.assert_close(torch.cat(together), alone, atol=2e-5, rtol=2e-5)


@every_family
def test_bf16(name, tiny_model, words, record_property):
    """In bfloat16 the logits stay within the stated distance, and are not the same."""
    model = tiny_model(name)
    exact = reference(model, words(LENGTH))
    to_precision(model, "bf16")
    error = (reference(model, words(LENGTH)).float() - exact).norm() / exact.norm()
    record_property("difference", float(error))
    assert 0 < error < BF16_ERROR


@every_family
@pytest.mark.law("reload")
def test_reload(name, tiny_model, words, tmp_path, tiny_tokenizer):
    """A saved model has the same logits, to the bit, by AutoModel and by Stillhouse."""
    model, ids = tiny_model(name), words(LENGTH)
    save_model(model, tiny_tokenizer, tmp_path)
    auto = AutoModelForCausalLM if is_causal(name) else AutoModelForMaskedLM
    for found in (auto.from_pretrained(tmp_path), load_model(tmp_path)[1]):
        assert torch.equal(reference(found, ids), reference(model, ids))


@every_decoder
@pytest.mark.parametrize("runner", ["own", "body"])
def test_generation(name, runner, tiny_model, words, record_property):
    """A prompt in one chunk, then single tokens of two texts in one step each: the logits of
    transformers, by the family's token runner and by the body as a whole."""
    model, family = tiny_model(name), family_named(name)
    if runner == "body":
        family = replace(family, token_runner=None)
    texts = [words(LENGTH), words(LENGTH, 1)]
    first, then = cached_logits(family, model, texts)
    found = torch.cat([first[0], then[0], first[1], then[1]])
    expected = torch.cat([reference(model, text) for text in texts])
    record_property("difference", largest_difference(found, expected))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def cached_logits(family: Family, model: PreTrainedModel, texts: list[list[int]]) -> Any:
    """The logits of two texts' first 5 and 9 tokens, a chunk each, and of the tokens after them."""
    slotted, ends = SlottedModel(family, model, 2), (5, 9)
    slots = [slotted.open(), slotted.open()]
    chunks = [Chunk(slot, text[:n], n) for slot, text, n in zip(slots, texts, ends, strict=True)]
    first = slotted.forward(chunks).split(ends)
    then: list[list[Tensor]] = [[], []]
    for step in range(LENGTH - ends[0]):
        going = [n for n in (0, 1) if ends[n] + step < LENGTH]
        found = slotted.forward([Chunk(slots[n], [texts[n][ends[n] + step]]) for n in going])
        for number, row in zip(going, found.split(1), strict=True):
            then[number].append(row)
    return first, [torch.cat(rows) for rows in then]


@every_family
def test_parameters(name, tiny_model):
    """`check` counts, without weights, what transformers counts; of a student too."""
    teacher = tiny_model(name, num_layers=3)
    plan = plan_student(
        make_config(name, 3, positions=POSITIONS), StudentRecipe(family=name, layer_map=[0, 2])
    )
    for config, model in ((teacher.config, teacher), (plan.config, cut(teacher, [0, 2]))):
        assert count_parameters(empty_model(config))[0] == model.num_parameters()


@pytest.mark.e2e
@every_family
@pytest.mark.law("resume")
def test_resume(name, tiny_model, tiny_tokenizer, words, tmp_path):
    """Distillation stopped after two of four steps and resumed ends with the weights, to the bit,
    of distillation that was not stopped."""
    kind = family_named(name).language_modeling
    if kind == "causal":
        tiny_tokenizer.eos_token = "[SEP]"
    documents = [np.array([3, *words(30, seed)]) for seed in range(24)]
    split = TokenSplit.in_memory(documents, VOCABULARY)
    tokens = TokensRecipe(language_modeling=kind, sequence_length=LENGTH_OF_JOBS)

    def job(folder: Path) -> TrainingJob:
        return make_job(
            folder,
            model=tiny_model(name, num_layers=2, seed=1),
            teacher=tiny_model(name, num_layers=2),
            source=pack(split, tiny_tokenizer, tokens),
        )

    class StopAfterTwo(Silent):
        def step(self, step: int, values: dict[str, Any]) -> None:
            stop.signal_number = signal.SIGTERM if step == 2 else None

    whole, stopped, resumed = job(tmp_path / "a"), job(tmp_path / "b"), job(tmp_path / "b")
    train(whole, Silent())
    stop = StopRequest()
    with pytest.raises(Stopped, match="Step 2 of 4"):
        train(stopped, StopAfterTwo(), stop)
    reporter = Silent()
    assert train(resumed, reporter).step == 4
    assert "student (seed 3): resuming after step 2" in reporter.said
    before = tiny_model(name, num_layers=2, seed=1)
    for parameter, expected in resumed.model.named_parameters():
        assert torch.equal(expected, whole.model.get_parameter(parameter)), parameter
    assert not torch.equal(
        family_named(name).head(before).weight, family_named(name).head(resumed.model).weight
    )


def test_a_first_layer_that_differs_stays_the_first(tiny_model):
    """ModernBERT's has no norm before its attention: refused by name, before weights are read."""
    config = tiny_model("modernbert", num_layers=4).config
    for layers in ([1, 2], [0, 0]):
        with pytest.raises(RecipeError, match="first layer of a modernbert model has other"):
            plan_student(config, StudentRecipe(layer_map=layers))
