"""A teacher with a chat template: its student keeps the template, the special tokens and the end
tokens, so that it stops where its teacher stops."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.export.odd_models import edit_json, odd_model
from tests.pipeline.tiny_run import call, write_text
from transformers import AutoModelForCausalLM, AutoTokenizer

import stillhouse

pytestmark = pytest.mark.e2e

RECIPE = """
teacher: {teacher}
corpus: {{source: {text}, documents: per_line, validation_fraction: 0.1}}
tokens: {{language_modeling: causal, tokenizer: teacher, sequence_length: 32}}
student: {{layer_map: {layers}}}
distillation:
  tokens_per_step: 64
  max_tokens: 128
  optimizer: {{learning_rate: 0.000001}}
  precision: fp32
"""
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def distilled(folder: Path, teacher: Any, layers: Any) -> Path:
    """The run folder, after the stages up to `distill`."""
    text, recipe = write_text(folder / "text.txt"), folder / "chat.yaml"
    recipe.write_text(RECIPE.format(teacher=teacher, text=text, layers=layers), encoding="utf-8")
    for stage in ("prepare", "init", "distill"):
        outcome = call(stage, recipe, "--run-dir", folder / "run", "--offline")
        assert outcome.code == 0, outcome.err
    return folder / "run"


def add_chat(model: Any, tokenizer: Any) -> None:
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = TEMPLATE
    model.resize_token_embeddings(len(tokenizer))


@pytest.mark.parametrize("named", ["generation_config.json", "config.json"])
def test_a_student_keeps_the_chat_of_its_teacher(tmp_path, named):
    """Whichever file names the end tokens; with the sampling that the teacher was published
    with."""
    teacher = odd_model(tmp_path / "teacher", add_chat)
    ids = AutoTokenizer.from_pretrained(teacher).convert_tokens_to_ids(["<|im_end|>"])
    edit_json(teacher / "generation_config.json", temperature=0.2, top_p=0.9, do_sample=True)
    for file in ("generation_config.json", "config.json"):
        edit_json(teacher / file, eos_token_id=[0, *ids] if file == named else 0)
    run = distilled(tmp_path, teacher, [0, 3, 5])
    for name in ("student-init", "student"):
        tokenizer = AutoTokenizer.from_pretrained(run / name)
        assert tokenizer.chat_template == TEMPLATE
        assert tokenizer.convert_tokens_to_ids(["<|im_end|>"]) == ids
        assert set(ids) <= set(tokenizer.all_special_ids)
        model = AutoModelForCausalLM.from_pretrained(run / name)
        assert model.generation_config.eos_token_id == [0, *ids]
        assert json.loads((run / name / "config.json").read_text())["eos_token_id"] == [0, *ids]
        settings = model.generation_config
        assert (settings.temperature, settings.top_p, settings.do_sample) == (0.2, 0.9, True)
        assert stillhouse.load(run / name).end_ids == {0, *ids}


def test_a_student_of_smollm2_answers_and_stops_as_its_teacher(smollm2_folder, tmp_path):
    """With all layers, after two tiny steps: its teacher's answer, and its end."""
    teacher = stillhouse.load(smollm2_folder)
    run = distilled(tmp_path, str(smollm2_folder), list(range(30)))
    student = stillhouse.load(run / "student")
    assert student.tokenizer.chat_template == teacher.tokenizer.chat_template
    assert student.tokenizer.special_tokens_map == teacher.tokenizer.special_tokens_map
    names = student.tokenizer.convert_ids_to_tokens(sorted(student.end_ids))
    assert names == ["<|endoftext|>", "<|im_end|>", "<reponame>"]
    question = "What is the capital of France?"
    (answer,) = student.chat(question, greedy=True, max_new_tokens=60)
    assert "Paris" in answer
    assert len(student.encode(answer)) < 59
    assert "<|im_end|>" not in answer
    assert answer == teacher.chat(question, greedy=True, max_new_tokens=60)[0]
