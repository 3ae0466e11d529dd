"""Language modeling on a new corpus: a fine-tuned teacher, and its student."""

import json
import shutil

import pytest
import yaml
from safetensors.torch import load_file
from tests.pipeline.tiny_run import Outcome, TinyRun, call, sha256, write_recipe, write_text

from stillhouse.runs.manifest import read_manifest

pytestmark = pytest.mark.e2e

TRAINING = {"tokens_per_step": 256, "max_tokens": 5120, "precision": "fp32"}


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """A teacher of other text, with its tokenizer."""
    run = TinyRun(write_recipe(tmp_path_factory.mktemp("before")), tmp_path_factory.mktemp("old"))
    outcome = run.call("run", "--until", "teacher")
    assert outcome.code == 0, outcome.err
    return run.folder / "teacher"


@pytest.fixture
def tune(before, tmp_path):
    """tune(...): a run that fine-tunes that teacher on new text; the run and its outcome."""
    shutil.copytree(before, tmp_path / "start")
    text = write_text(tmp_path / "new.txt", seed=5)
    recipe = {
        "teacher": {
            "start": str(tmp_path / "start"),
            "training": TRAINING,
        },
        "corpus": {"source": str(text), "documents": "per_line", "validation_fraction": 0.1},
        "tokens": {"language_modeling": "causal", "tokenizer": "teacher", "sequence_length": 32},
        "student": {"layer_map": 2},
        "distillation": {"tokens_per_step": 256, "max_tokens": 4096, "precision": "fp32"},
        "evaluation": {"speed": False},
    }
    path = tmp_path / "tune.yaml"

    def run(*arguments, **changes) -> tuple[TinyRun, Outcome]:
        path.write_text(yaml.safe_dump(recipe | changes), encoding="utf-8")
        found = TinyRun(path, tmp_path / "run")
        return found, found.call("run", *arguments)

    return run


def test_a_teacher_is_fine_tuned_and_distilled_on_the_same_text(tune, tmp_path):
    """Its loss on the new text falls; student and control are initialized from it."""
    run, outcome = tune()
    assert outcome.code == 0, outcome.err
    folders = (tmp_path / "start", run.folder / "teacher")
    start, tuned = (load_file(folder / "model.safetensors") for folder in folders)
    assert not any((tuned[name] == value).all() for name, value in start.items())
    text = tmp_path / "new.txt"
    compared = call("compare", tmp_path / "start", run.folder / "teacher", "--text", text, "--json")
    losses = [each["perplexity"]["token"] for each in json.loads(compared.out)["models"].values()]
    assert losses[1] < 0.9 * losses[0]
    models = json.loads((run.folder / "evaluation.json").read_text())["models"]
    assert set(models) == {"teacher", "student", "control"}
    assert (
        "fine-tuned for it on the same text" in (run.folder / "student" / "README.md").read_text()
    )


def start_of(run: TinyRun) -> str:
    manifest = read_manifest(run.folder / "teacher")
    assert manifest is not None
    return manifest.inputs.sources["start"]


def test_the_teacher_is_retrained_only_if_its_start_changes(tune, tmp_path):
    """A copy of the same files elsewhere is the same start."""
    run, outcome = tune("--until", "teacher")
    assert outcome.code == 0, outcome.err
    made = sha256(run.folder / "teacher" / "model.safetensors")
    fingerprint = start_of(run)
    shutil.copytree(tmp_path / "start", tmp_path / "elsewhere")
    elsewhere = {"start": str(tmp_path / "elsewhere"), "training": TRAINING}
    _, outcome = tune("--until", "teacher", teacher=elsewhere)
    assert outcome.code == 0, outcome.err
    assert "teacher: teacher is up to date" in outcome.err
    config = tmp_path / "elsewhere" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"resid_pdrop": 0.5}))
    (tmp_path / "elsewhere" / "manifest.json").unlink()
    _, outcome = tune("--until", "teacher", teacher=elsewhere)
    assert outcome.code == 0, outcome.err
    assert start_of(run) != fingerprint
    assert sha256(run.folder / "teacher" / "model.safetensors") != made


def test_an_invalid_start_is_rejected(tune, tmp_path):
    """A folder without a model; sequences longer than the model's context."""
    _, outcome = tune(teacher={"start": str(tmp_path / "none")})
    assert outcome.code == 4
    assert str(tmp_path / "none") in outcome.err
    long = {"language_modeling": "causal", "tokenizer": "teacher", "sequence_length": 64}
    _, outcome = tune(tokens=long)
    assert outcome.code == 2
    assert "sequence_length is 64, but the teacher has 32 positions" in outcome.err
