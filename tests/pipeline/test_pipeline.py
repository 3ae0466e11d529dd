"""A whole tiny recipe, from text to report: what it writes, and what it leaves unchanged."""

import json
import statistics
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file
from tests.pipeline.tiny_run import TinyRun, call, sha256, snapshot, write_recipe
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from stillhouse.evaluation.metrics.registry import METRICS
from stillhouse.tokens.shards import open_split

MODEL_KEYS = {
    "path",
    "parameters",
    "body_parameters",
    "size_bytes",
    "validation_loss",
    "masked_loss",
    "perplexity",
    "speed",
    "peak_memory_bytes",
    "agreement",
    "training",
}
RESULT_KEYS = {
    "schema",
    "protocol",
    "machine",
    "versions",
    "commit",
    "seed",
    "models",
    "comparison",
}
FILES = {
    "recipe.yaml",
    "corpus/manifest.json",
    "tokens/manifest.json",
    "tokens/train-00000.bin",
    "tokens/tokenizer/tokenizer.json",
    "teacher/model.safetensors",
    "student-init/model.safetensors",
    "student/config.json",
    "student/model.safetensors",
    "student/tokenizer.json",
    "student/README.md",
    "student/manifest.json",
    "control/model.safetensors",
    "metrics.jsonl",
    "evaluation.json",
    "report.html",
}


def metrics_of(run: TinyRun, model: str) -> list[dict]:
    lines = (run.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [line for line in map(json.loads, lines) if line["model"] == model]


def test_a_run_writes_every_file_and_nothing_temporary(finished):
    """One command turns text into a report; no checkpoint and no temporary file remains."""
    files = {str(path.relative_to(finished.folder)) for path in finished.folder.rglob("*")}
    assert files >= FILES
    assert not [name for name in files if ".tmp-" in name or "step-" in name]


def test_evaluation_json_has_the_keys_of_its_schema(finished):
    """Every reader of evaluation.json finds the keys of schema 2, finite numbers in them."""
    result = json.loads((finished.folder / "evaluation.json").read_text(encoding="utf-8"))
    assert set(result) >= RESULT_KEYS
    assert result["schema"] == 2
    assert list(result["models"]) == ["teacher", "student", "control"]
    for model in result["models"].values():
        assert set(model) == MODEL_KEYS | {str(metric.key).partition(".")[0] for metric in METRICS}
        assert set(model["perplexity"]) == {
            "token",
            "token_sliding",
            "word",
            "bits_per_byte",
            "tokens_scored",
            "words",
            "bytes",
        }
    models, comparison = result["models"], result["comparison"]
    gap = models["student"]["validation_loss"] - models["control"]["validation_loss"]
    assert comparison["loss_minus_control"] == pytest.approx(gap)
    assert comparison["size_ratio"] == pytest.approx(
        models["student"]["parameters"] / models["teacher"]["parameters"]
    )
    assert models["student"]["training"]["tokens"] == 4096


def test_training_facts_report_mfu(finished):
    """Each step, the manifest and the report have MFU and roofline."""
    result = json.loads((finished.folder / "evaluation.json").read_text(encoding="utf-8"))
    for model in ("teacher", "student", "control"):
        for line in metrics_of(finished, model):
            assert 0 < line["mfu"] < 1
        facts = result["models"][model]["training"]
        speed = facts["tokens"] / facts["seconds"]
        assert 0 < facts["mfu"] <= speed / facts["roofline_tokens_per_second"] * (1 + 1e-9)
    page = (finished.folder / "report.html").read_text(encoding="utf-8")
    assert "Model FLOPs utilization (MFU)" in page


@pytest.mark.law("reload")
def test_the_student_loads_in_plain_transformers(finished):
    """A student is a standard checkpoint: model and tokenizer load from its folder alone."""
    folder = finished.folder / "student"
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    logits = model(**tokenizer("ab cd", return_tensors="pt")).logits
    assert model.config.n_layer == 2
    assert logits.shape[-1] == len(tokenizer) == 320
    assert torch.isfinite(logits).all()


@pytest.mark.law("reload")
def test_a_reloaded_student_has_the_reported_loss(finished):
    """Loaded by transformers alone, with the loss of transformers over the validation text."""
    model = AutoModelForCausalLM.from_pretrained(finished.folder / "student")
    split = open_split(finished.folder / "tokens", "validation")
    context, end = model.config.n_positions, model.config.eos_token_id
    total = count = 0
    for start, stop in pairwise(split.document_starts.astype(int).tolist()):
        ids = split.read(start + 1, stop).tolist()  # without the end-of-text before it
        for first in range(0, len(ids), context - 1):
            block = torch.tensor([[end, *ids[first : first + context - 1]]])
            with torch.no_grad():
                mean = model(input_ids=block, labels=block).loss
            total, count = total + float(mean) * (block.shape[1] - 1), count + block.shape[1] - 1
    student = json.loads((finished.folder / "evaluation.json").read_text())["models"]["student"]
    assert count == student["perplexity"]["tokens_scored"]
    assert total / count == pytest.approx(student["validation_loss"], rel=1e-5)


def test_a_second_run_does_nothing(done):
    """If nothing changed no stage runs again, and every file keeps its content.

    The report alone is cheap enough to be written each time.
    """
    assert done.call("report").code == 0  # the copy lies elsewhere, which the report says
    before = snapshot(done.folder)
    outcome = done.call("run")
    after = snapshot(done.folder)
    assert outcome.code == 0
    assert outcome.err.count("is up to date") == 6
    contents = [
        {name: content for name, (_, content) in files.items()} for files in (before, after)
    ]
    assert contents[0] == contents[1]
    rewritten = {name for name, (time, _) in after.items() if time != before[name][0]}
    card = {"student/README.md", "student/measurements.json"}
    assert rewritten <= {".lock", "report.html", "report.manifest.json", *card}


@pytest.mark.e2e
def test_a_changed_key_reruns_the_stages_that_depend_on_it(done):
    """Another temperature trains a new student; what does not depend on it is unchanged."""
    before = snapshot(done.folder)
    outcome = done.call("run", "--set", "distillation.temperature=2")
    after = snapshot(done.folder)
    assert outcome.code == 0
    assert "because distillation.temperature: 1.0 -> 2.0" in outcome.err
    for name in ("tokens", "teacher", "student-init", "control"):
        assert before[f"{name}/manifest.json"] == after[f"{name}/manifest.json"]
    for name in ("student/model.safetensors", "evaluation.json"):
        assert before[name][1] != after[name][1]
    (kept,) = (done.folder / "replaced").glob("student-*")
    assert sha256(kept / "model.safetensors") != sha256(done.folder / "student/model.safetensors")
    assert (kept / "model.safetensors").read_bytes() == before["student/model.safetensors"][1]
    assert "temperature: 2.0" in (done.folder / "recipe.yaml").read_text(encoding="utf-8")


def test_a_missing_output_is_recreated(done):
    """The manifest beside a single file does not replace the file."""
    before = json.loads((done.folder / "evaluation.json").read_text(encoding="utf-8"))
    (done.folder / "evaluation.json").unlink()
    assert done.call("evaluate").code == 0
    after = json.loads((done.folder / "evaluation.json").read_text(encoding="utf-8"))
    for name in ("teacher", "student", "control"):
        losses = [result["models"][name]["validation_loss"] for result in (before, after)]
        assert losses[0] == losses[1]


def test_overwrite_keeps_no_old_output(done):
    """A stage named in --overwrite replaces its output for good."""
    overrides = ("--set", "student.layer_map=1", "--overwrite", "init")
    outcome = done.call("init", *overrides)
    assert outcome.code == 0
    assert not list((done.folder / "replaced").glob("student-init*"))
    config = json.loads((done.folder / "student-init/config.json").read_text(encoding="utf-8"))
    assert config["n_layer"] == 1


def test_the_manifest_says_how_layers_were_chosen(ready):
    """Scores, the layers kept, and the text they were measured on, which decides the student."""
    path = ready.folder / "student-init/manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    found = manifest["facts"]["importance"]
    assert found["by"] == "influence"
    assert len(found["scores"]) == 3
    assert found["kept"] == manifest["facts"]["layer_map"]
    assert found["tokens"] > 1_000
    assert set(manifest["inputs"]["sources"]) == {"teacher", "tokens"}
    outcome = ready.call("init", "--set", "student.importance.tokens=64")
    assert outcome.code == 0
    assert "because student.importance.tokens: 32768 -> 64" in outcome.err
    found = json.loads(path.read_text(encoding="utf-8"))["facts"]["importance"]
    assert found["tokens"] == 64


def test_a_student_is_reconstructed(ready):
    """Nearer to its teacher than the plain cut, by projections alone; the same for every seed, with
    its errors in the manifest."""
    folder = ready.folder / "student-init"
    plain = load_file(folder / "model.safetensors")
    settings = ("--set", "student.reconstruct=true", "--set", "seed=[0,1]")
    outcome = ready.call("init", *settings)
    assert outcome.code == 0, outcome.err
    assert outcome.err.count("init: fitting the student to its teacher on") == 1
    folders = [ready.folder / f"seed-{seed}" / "student-init" for seed in (0, 1)]
    one, other = (load_file(each / "model.safetensors") for each in folders)
    assert all(torch.equal(weight, other[name]) for name, weight in one.items())
    changed = {name for name, weight in one.items() if not torch.equal(weight, plain[name])}
    assert changed
    assert all(name.endswith("mlp.c_proj.weight") for name in changed)
    facts = json.loads((folders[0] / "manifest.json").read_text(encoding="utf-8"))["facts"]
    found = facts["reconstruction"]
    assert found["error_after"][-1] < found["error_before"][-1]
    outcome = ready.call("init", "--set", "student.reconstruct=true")
    assert "because student.reconstruct: False -> True" in outcome.err


def test_until_stops_after_the_named_stage(initialized):
    """`--until init` leaves an initial student and no trained one."""
    assert (initialized.folder / "student-init/manifest.json").is_file()
    assert not (initialized.folder / "student").exists()


@pytest.mark.e2e
def test_stages_run_one_by_one(ready):
    """Each stage's command runs that stage on the output of the previous one."""
    for stage, output in (
        ("distill", "student"),
        ("evaluate", "evaluation.json"),
        ("report", "report.html"),
    ):
        assert not (ready.folder / output).exists()
        assert ready.call(stage).code == 0
        assert (ready.folder / output).exists()


@pytest.mark.parametrize(
    ("stage", "missing"),
    [
        ("teacher", "prepare"),
        ("init", "prepare"),
        ("distill", "prepare"),
        ("evaluate", "distill"),
        ("report", "evaluate"),
    ],
)
def test_a_stage_without_its_input_names_the_stage_to_run(tmp_path, stage, missing):
    """The error names the stage that writes the missing input."""
    run = TinyRun(write_recipe(tmp_path), tmp_path / "run")
    outcome = run.call(stage)
    assert outcome.code == 5
    assert f"un the stage {missing} first (`stillhouse run` does)." in outcome.err


@pytest.mark.e2e
def test_without_a_control_only_the_student_is_trained(ready):
    """`control: none` trains one model, and the evaluation compares with no control."""
    assert ready.call("distill").code == 0
    assert ready.call("evaluate").code == 0
    result = json.loads((ready.folder / "evaluation.json").read_text(encoding="utf-8"))
    assert list(result["models"]) == ["teacher", "student"]
    assert result["comparison"]["loss_minus_control"] is None
    assert not (ready.folder / "control").exists()


@pytest.mark.e2e
def test_the_equal_time_control_takes_more_steps(ready):
    """Without a teacher a step is faster, so equal time allows more steps."""
    assert ready.call("distill", "--set", "distillation.control=both").code == 0

    def step_seconds(model: str) -> float:
        totals = [0.0, *(line["seconds"] for line in metrics_of(ready, model))]
        return statistics.median(after - before for before, after in pairwise(totals))

    steps = len(metrics_of(ready, "control_same_time"))
    assert steps == round(16 * step_seconds("student") / step_seconds("control"))
    assert (ready.folder / "control-same-time/model.safetensors").is_file()


def test_the_control_differs_from_the_student_only_by_the_teacher(finished):
    """The same tokens per step and learning rates, with the language modeling loss alone."""
    student, control = metrics_of(finished, "student"), metrics_of(finished, "control")
    for key in ("step", "tokens", "learning_rate"):
        assert [line[key] for line in student] == [line[key] for line in control]
    assert student[0]["language_modeling"] == pytest.approx(control[0]["loss"], rel=1e-3)
    assert "soft_target" in student[0]
    assert "soft_target" not in control[0]


@pytest.mark.e2e
def test_seeds_share_text_and_teacher_and_are_reported_together(ready):
    """Each seed has its own student; the evaluation of the run holds median and range."""
    outcome = ready.call("run", "--set", "seed=[0, 1]")
    assert outcome.code == 0, outcome.err
    students = [ready.folder / f"seed-{seed}/student/model.safetensors" for seed in (0, 1)]
    assert sha256(students[0]) != sha256(students[1])
    result = json.loads((ready.folder / "evaluation.json").read_text(encoding="utf-8"))
    losses = result["summary"]["student"]["validation_loss"]
    assert result["seeds"] == [0, 1]
    assert losses["median"] == pytest.approx(sum(losses["all"]) / 2)
    assert losses["min"] <= losses["median"] <= losses["max"]
    assert (ready.folder / "report.html").is_file()
    assert call("doctor", ready.folder).code == 0


def test_a_masked_recipe_runs_to_completion(tmp_path):
    """BERT trained here, DistilBERT from it: a masked loss, no perplexity, and a standard model."""
    recipe = write_recipe(tmp_path)
    text = recipe.read_text(encoding="utf-8")
    for old, new in (
        ("family: gpt2", "family: bert"),
        ("language_modeling: causal", "language_modeling: masked"),
        ("train: byte_bpe", "train: wordpiece"),
        ("max_tokens: 4096", "max_tokens: 1024"),
    ):
        text = text.replace(old, new)
    recipe.write_text(text, encoding="utf-8")
    run = TinyRun(recipe, tmp_path / "run")
    outcome = run.call("run")
    assert outcome.code == 0, outcome.err
    models = json.loads((run.folder / "evaluation.json").read_text(encoding="utf-8"))["models"]
    assert models["student"]["perplexity"] is None
    assert 0 < models["student"]["masked_loss"] < 10
    student = AutoModelForMaskedLM.from_pretrained(run.folder / "student")
    assert student.config.model_type == "distilbert"
    assert AutoTokenizer.from_pretrained(run.folder / "student").mask_token == "[MASK]"
