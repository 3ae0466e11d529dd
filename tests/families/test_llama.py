"""What is particular to the family llama: grouped-query attention, rotary positions, SwiGLU, heads
tied or not; what all families share is tested over the registry."""

import itertools
import signal
from typing import Any

import pytest
import torch
from tests.export.test_plain import exported
from tests.pipeline.tiny_run import CAUSAL, call, write_text
from tests.task_models import make_tokenizer
from tests.tiny_models import make_config
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from stillhouse.errors import ModelError, RecipeError
from stillhouse.export.to_ctranslate2 import CTRANSLATE2
from stillhouse.export.to_gguf import GGUF
from stillhouse.export.to_onnx import ONNX
from stillhouse.families.registry import family_named
from stillhouse.inference.engine.kv_cache import Chunk, SlottedModel
from stillhouse.models.folder_check import load_config
from stillhouse.models.load import count_parameters, empty_model, load_model, save_model
from stillhouse.objectives.language_model import LanguageModelObjective
from stillhouse.objectives.relation import plan_relation
from stillhouse.objectives.settings import RelationRecipe
from stillhouse.student.initialize import student_from_teacher
from stillhouse.student.plan import plan_student
from stillhouse.student.settings import StudentRecipe
from stillhouse.tokens.tokenizer import special_tokens

FAMILY = family_named("llama")


def make_model(num_layers: int = 3, **settings) -> LlamaForCausalLM:
    """Four heads of queries and two of keys and values, with every parameter random."""
    config = LlamaConfig(
        vocab_size=60, hidden_size=16, intermediate_size=24, num_hidden_layers=num_layers,
        max_position_embeddings=64, bos_token_id=1, eos_token_id=2,
        **{"num_attention_heads": 4, "num_key_value_heads": 2, **settings},
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


SETTINGS = [
    {},
    {"tie_word_embeddings": True, "num_key_value_heads": 1},
    {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4},
    {"head_dim": 8},
    {"sliding_window": 4},  # Mistral's; a Llama attends to everything
    {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0}},
    {"rope_parameters": {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0}},
]
every_model = pytest.mark.parametrize("settings", SETTINGS, ids=str)


@every_model
def test_cached_tokens_have_the_logits_of_transformers(settings, words):
    """Two sequences in one step: a prompt in chunks beside single tokens of the other."""
    model = make_model(**settings)
    slotted = SlottedModel(FAMILY, model, 2)
    texts = [words(30), words(24, 1)]
    one, other = slotted.open(), slotted.open()
    found = [slotted.forward([Chunk(one, texts[0][:7], 7)])]
    for step in range(23):
        next_ids = (texts[0][7 + step], texts[1][step])
        pairs = zip((one, other), next_ids, strict=True)
        found.append(slotted.forward([Chunk(slot, [token]) for slot, token in pairs]))
    logits = torch.cat(found)
    with torch.no_grad():
        expected = [model(input_ids=torch.tensor([text])).logits[0] for text in texts]
    torch.testing.assert_close(logits[:7], expected[0][:7], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits[7::2], expected[0][7:], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits[8::2], expected[1][:23], atol=1e-4, rtol=1e-4)


@every_model
def test_student_with_all_layers_has_the_logits_of_its_teacher(settings, words):
    """To the bit."""
    teacher = make_model(**settings)
    plan = plan_student(teacher.config, StudentRecipe(layer_map=3))
    student = student_from_teacher(teacher, plan)
    ids = torch.tensor([words(20)])
    with torch.no_grad():
        assert torch.equal(student(input_ids=ids).logits, teacher(input_ids=ids).logits)
    tied = settings.get("tie_word_embeddings", False)
    assert (student.lm_head.weight is student.get_input_embeddings().weight) == tied


@every_model
def test_saved_model_is_loaded_by_transformers(settings, words, tmp_path, tiny_tokenizer):
    """To the bit, by AutoModel and here."""
    model = make_model(**settings)
    save_model(model, tiny_tokenizer, tmp_path)
    ids = torch.tensor([words(20)])
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        for found in (AutoModelForCausalLM.from_pretrained(tmp_path), load_model(tmp_path)[1]):
            assert torch.equal(found(input_ids=ids).logits, expected)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_rotary_positions_that_depend_on_the_length_are_refused(kind, tmp_path):
    """At load, by name."""
    more = {"factor": 2.0, "rope_theta": 1e4, "original_max_position_embeddings": 32}
    if kind == "longrope":
        more |= {"short_factor": [1.0, 1.0], "long_factor": [2.0, 2.0]}
    config = make_model(1).config
    config.rope_parameters = {"rope_type": kind, **more}
    config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=f"rope_type {kind}, whose frequencies depend"):
        load_config(tmp_path)


def test_relation_heads_divide_queries_and_keys():
    """By default the student's heads, as long as they divide the widths of its keys too."""
    config = make_model(num_key_value_heads=1).config  # queries of 16, keys of 4
    plan = plan_relation(RelationRecipe(weight=1), config, config)
    assert plan.num_heads == 4
    config = make_model(num_attention_heads=8, num_key_value_heads=2).config  # keys of 4
    with pytest.raises(RecipeError, match=r"student \(16 and 4\).* Set it to 4"):
        plan_relation(RelationRecipe(weight=1), config, config)


def test_published_models_have_their_published_sizes():
    """SmolLM2-135M and Llama 3.2 1B, counted without weights in memory."""
    smol = LlamaConfig(
        vocab_size=49_152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
        num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True,
    )  # fmt: skip
    llama = LlamaConfig(
        vocab_size=128_256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16,
        num_attention_heads=32, num_key_value_heads=8, tie_word_embeddings=True,
    )  # fmt: skip
    for config, expected in ((smol, 134_515_008), (llama, 1_235_814_400)):
        assert count_parameters(empty_model(config))[0] == expected


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        (CTRANSLATE2, "this export writes bert, distilbert, gpt2, roberta for CTranslate2"),
        (ONNX, "a causal model needs a KV cache, which this export does not write"),
    ],
    ids=["ctranslate2", "onnx"],
)
def test_export_is_refused_by_name(form, reason):
    """GGUF is advised, which holds it."""
    refusal = form.refusal(exported("llama"))
    assert refusal.startswith(reason)
    assert refusal.endswith("take gguf")
    assert GGUF.refusal(exported("llama")) is None


def test_tokenizer_that_begins_texts_gives_the_document_start():
    """Documents start with the token that the post-processor puts first."""
    tokenizer = make_tokenizer("llama")
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    assert special_tokens(tokenizer, "causal").document_start == tokenizer.bos_token_id


@pytest.mark.e2e
def test_stopped_run_resumes_to_the_same_student(tmp_path, monkeypatch):
    """From a teacher with random weights to the report, stopped by a signal and run again."""
    recipe = tmp_path / "llama.yaml"
    text = CAUSAL.format(text=write_text(tmp_path / "text.txt"), control="none", speed="false")
    recipe.write_text(text.replace("family: gpt2", "family: llama"), encoding="utf-8")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert call("check", recipe).code == 0
    assert call("run", recipe, "--run-dir", whole).code == 0
    assert call("run", recipe, "--run-dir", parts, "--until", "init").code == 0
    original, calls = LanguageModelObjective.__call__, itertools.count(1)

    def stopped(*arguments: Any) -> Any:
        if next(calls) == 6:
            signal.raise_signal(signal.SIGTERM)
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(LanguageModelObjective, "__call__", stopped)
        assert call("run", recipe, "--run-dir", parts).code == 128 + signal.SIGTERM
    assert call("run", recipe, "--run-dir", parts).code == 0
    files = [folder / "student/model.safetensors" for folder in (whole, parts)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_tiny_model_shares_keys_between_queries():
    """The model that the tests of the registry run has grouped-query attention."""
    config = make_config("llama")
    assert config.num_key_value_heads < config.num_attention_heads
