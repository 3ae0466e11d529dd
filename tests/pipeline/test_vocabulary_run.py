"""Students of a smaller vocabulary, from text to evaluation."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from tests.pipeline.tiny_run import Outcome, TinyRun, call, refused
from tests.task_models import SENTENCES, make_task_folder
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from stillhouse.runs.manifest import read_manifest
from stillhouse.tokens.vocabulary import read_kept


@pytest.fixture
def distil(initialized, tmp_path):
    """distil(student, ...): a run with this student; the run and its outcome."""
    shutil.copytree(initialized.folder / "teacher", tmp_path / "teacher")
    (tmp_path / "teacher" / "manifest.json").unlink()
    text = initialized.recipe.with_name("text.txt")
    recipe = {
        "teacher": str(tmp_path / "teacher"),
        "corpus": {"source": str(text), "documents": "per_line", "validation_fraction": 0.1},
        "tokens": {"language_modeling": "causal", "sequence_length": 32},
        "distillation": {"tokens_per_step": 256, "max_tokens": 2048, "precision": "fp32"},
        "evaluation": {"speed": False},
    }

    def run(student, *arguments, name="run", **changes) -> tuple[TinyRun, Outcome]:
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(recipe | {"student": student} | changes), encoding="utf-8")
        found = TinyRun(path, tmp_path / name)
        return found, found.call("run", *arguments)

    return run


@pytest.mark.e2e
def test_a_student_of_a_smaller_vocabulary(distil, tmp_path):
    """Its folder is one that transformers loads; teacher, student and control share its tokens; a
    second run changes nothing."""
    run, outcome = distil({"layer_map": 2, "vocabulary": 300})
    assert outcome.code == 0, outcome.err
    assert "300 of 320 tokens stay" in outcome.err
    tokenizer = AutoTokenizer.from_pretrained(run.folder / "student")
    model = AutoModelForCausalLM.from_pretrained(run.folder / "student")
    assert len(tokenizer) == model.config.vocab_size == 300
    outputs = model.get_output_embeddings()
    assert outputs is not None
    assert model.get_input_embeddings().weight is outputs.weight
    text = "Stills \u00e9\U0001f642 keep\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    kept = read_kept(run.folder / "tokens")
    teacher, whole = (
        load_file(folder / "model.safetensors")["transformer.wte.weight"].numpy()
        for folder in (run.folder / "teacher", tmp_path / "teacher")
    )
    assert np.array_equal(teacher, whole[kept])
    models = json.loads((run.folder / "evaluation.json").read_text())["models"]
    scored = {each["perplexity"]["tokens_scored"] for each in models.values()}
    assert set(models) == {"teacher", "student", "control"}
    assert len(scored) == 1
    report = (run.folder / "student" / "README.md").read_text()
    assert "All models have 300 of the teacher's 320 tokens" in report
    student = AutoModelForCausalLM.from_pretrained(run.folder / "student").num_parameters()
    whole_size = AutoModelForCausalLM.from_pretrained(tmp_path / "teacher").num_parameters()
    share = f"{student / whole_size:.0%}"
    pattern = rf"The teacher with all tokens has .* parameters, of which the student has {share}; "
    assert re.search(rf"{pattern}on the same text it has .* bits per byte", report)
    again = run.call("run")
    assert again.code == 0
    for name in ("tokens", "teacher", "student-init", "student", "control", "evaluation.json"):
        assert f"{name} is up to date" in again.err


@pytest.mark.e2e
def test_a_teacher_with_its_tokenizer_elsewhere(distil, tmp_path):
    """Its tokens are those of `tokens.tokenizer`; it is stored in the precision of its weights,
    whatever its configuration says. Zero-shot, the student is compared with all of its tokens."""
    rows, elsewhere = tmp_path / "words.jsonl", tmp_path / "tokenizer"
    rows.write_text("".join(json.dumps({"text": each}) + "\n" for each in SENTENCES))
    shutil.copytree(tmp_path / "teacher", tmp_path / "whole")
    score = ["score", str(tmp_path / "whole"), "--task", "lambada", "--data", str(rows), "--json"]
    whole = json.loads(call(*score).out)["metrics"]

    def prepared() -> dict:
        folder = tmp_path / "teacher"
        elsewhere.mkdir()
        for file in folder.glob("tokenizer*"):
            shutil.move(file, elsewhere / file.name)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
        return {"language_modeling": "causal", "sequence_length": 32, "tokenizer": str(elsewhere)}

    sets = {"words": {"task": "lambada", "data": str(rows)}}
    run, outcome = distil(
        {"layer_map": 2, "vocabulary": 300},
        tokens=prepared(),
        evaluation={"speed": False, "zero_shot": sets},
    )
    assert outcome.code == 0, outcome.err
    found = json.loads((run.folder / "evaluation.json").read_text())
    assert found["vocabulary"]["whole_teacher"]["perplexity"]["words"] > 0
    assert found["zero_shot"]["sets"]["words"]["models"]["teacher"] == whole
    assert "The teacher's zero-shot scores are those with all tokens." in outcome.out
    for weight in load_file(run.folder / "teacher" / "model.safetensors").values():
        assert weight.dtype == torch.float32


@pytest.mark.e2e
def test_a_student_has_the_precision_of_its_teachers_weights(distil, tmp_path):
    """Whatever the teacher's configuration says."""
    file = tmp_path / "teacher" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"dtype": "bfloat16"}))
    run, outcome = distil({"layer_map": 2}, "--until", "distill")
    assert outcome.code == 0, outcome.err
    for weight in load_file(run.folder / "student" / "model.safetensors").values():
        assert weight.dtype == torch.float32


@pytest.mark.e2e
def test_with_all_tokens_the_student_is_the_same(distil):
    """Trained to the bit like one whose vocabulary was not asked for."""
    students = []
    for name, vocabulary in (("all", {"vocabulary": 320}), ("plain", {})):
        run, outcome = distil({"layer_map": 2, **vocabulary}, "--until", "distill", name=name)
        assert outcome.code == 0, outcome.err
        students.append(load_file(run.folder / "student" / "model.safetensors"))
    for key, value in students[0].items():
        assert value.equal(students[1][key]), key


@pytest.mark.e2e
@pytest.mark.parametrize("kind", ["sampled", "top_k"])
def test_a_cache_holds_the_tokens_that_stay(distil, kind):
    """Its rows are of the trimmed teacher, which the check against the live one confirms."""
    distillation = {"tokens_per_step": 256, "max_tokens": 2048, "precision": "fp32"}
    distillation |= {"teacher_outputs": {"cache": kind, "size": 16}, "control": "none"}
    distillation["losses"] = {"soft_target": {"weight": 1.0}}
    run, outcome = distil({"layer_map": 2, "vocabulary": 300}, distillation=distillation)
    assert outcome.code == 0, outcome.err
    manifest = read_manifest(run.folder / "teacher-cache")
    assert manifest is not None
    assert manifest.facts["format"]["vocabulary_size"] == 300


@pytest.mark.e2e
def test_a_race_of_one_vocabulary(distil):
    """Every candidate of a budget has it, so the budget buys more layers or channels."""
    budget = {"parameters": 12_000, "race": {"candidates": 2, "finalists": 1, "tokens": 512}}
    run, outcome = distil({"vocabulary": 300, "budget": budget}, "--until", "init")
    assert outcome.code == 0, outcome.err
    config = json.loads((run.folder / "student-init" / "config.json").read_text())
    assert config["vocab_size"] == 300


@pytest.mark.e2e
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_an_encoder_of_a_smaller_vocabulary(distil, tmp_path, family):
    """Its head and bias follow; what becomes unknown is counted."""
    teacher = make_task_folder(tmp_path / family, family, "MaskedLM")  # pyright: ignore[reportArgumentType]
    text = tmp_path / "sentences.txt"
    text.write_text("\n".join(SENTENCES * 30))
    size = len(AutoTokenizer.from_pretrained(teacher)) - 5
    run, outcome = distil(
        {"family": family, "layer_map": 1, "vocabulary": size},
        teacher=str(teacher),
        corpus={"source": str(text), "documents": "per_line", "validation_fraction": 0.1},
        tokens={"language_modeling": "masked", "sequence_length": 32},
    )
    assert outcome.code == 0, outcome.err
    tokenizer = AutoTokenizer.from_pretrained(run.folder / "student")
    model = AutoModelForMaskedLM.from_pretrained(run.folder / "student")
    assert len(tokenizer) == model.config.vocab_size == size
    assert model.get_output_embeddings().bias.shape == (size,)
    assert model.config.pad_token_id == tokenizer.pad_token_id
    manifest = read_manifest(run.folder / "tokens")
    assert manifest is not None
    unknown = manifest.facts["vocabulary"]["unknown_share"]
    # No more than before, of more tokens. (No byte is unknown to RoBERTa.)
    assert (0 < unknown["trimmed"] <= unknown["whole"]) == (family == "bert")


def test_a_vocabulary_that_cannot_be_is_refused_before_work(distil):
    run, outcome = distil({"vocabulary": 200})
    refused(outcome, 2, r"student\.vocabulary is 200", "would be lost. Give 257 to 320")
    assert not (run.folder / "tokens").exists()


@pytest.mark.e2e
def test_check_counts_the_smaller_vocabulary(distil, tmp_path):
    distil({"vocabulary": 200})  # writes the recipe, and is refused
    path = tmp_path / "run.yaml"
    whole, small = (
        json.loads(call("check", path, "--set", f"student.vocabulary={size}", "--json").out)
        for size in (320, 300)
    )
    hidden = small["student"]["hidden_size"]
    gone = whole["student"]["parameters"] - small["student"]["parameters"]
    assert gone == 20 * hidden
    assert small["teacher"] == whole["teacher"]
    assert small["ratio"]["parameters"] < whole["ratio"]["parameters"]
