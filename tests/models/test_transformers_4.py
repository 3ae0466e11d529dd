"""Model folders are the same models to transformers 4, in PyTorch and in TensorFlow."""

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny_models import EVERY_FAMILY
from transformers import AutoConfig, AutoModel, AutoTokenizer

from stillhouse.families.registry import FAMILIES
from stillhouse.models.folder_check import load_model_tokenizer
from stillhouse.models.load import load_model, save_model
from stillhouse.models.older_names import rotary_settings
from stillhouse.report.cards import TENSORFLOW
from stillhouse.report.render import _environment

FULL = {"rope_type": "default", "rope_theta": 1e6}
SLIDING = {"rope_type": "default", "rope_theta": 1e4}
LINEAR = {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0}
PARTIAL = {**FULL, "partial_rotary_factor": 0.25}


@pytest.mark.parametrize(
    ("model_type", "parameters", "names"),
    [
        ("gpt2", None, {}),
        ("llama", FULL, {"rope_theta": 1e6}),
        (
            "llama",
            LINEAR,
            {"rope_theta": 500.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        ),
        (
            "olmo2",
            LINEAR,
            {"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
        ),
        ("phi3", PARTIAL, {"rope_theta": 1e6, "partial_rotary_factor": 0.25}),
        ("gpt_neox", PARTIAL, {"rotary_emb_base": 1e6, "rotary_pct": 0.25}),
        (
            "gemma3_text",
            {"full_attention": {**LINEAR, "rope_theta": 1e6}, "sliding_attention": SLIDING},
            {
                "rope_theta": 1e6,
                "rope_local_base_freq": 1e4,
                "rope_scaling": {"rope_type": "linear", "factor": 2.0},
            },
        ),
        (
            "modernbert",
            {"full_attention": FULL, "sliding_attention": SLIDING},
            {"global_rope_theta": 1e6, "local_rope_theta": 1e4},
        ),
    ],
)
def test_rotary_positions_have_the_names_of_transformers_4(model_type, parameters, names):
    """As published models of these types have them."""
    settings = {"model_type": model_type, "rope_parameters": parameters}
    assert rotary_settings(settings) == names


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_both_names_are_one_configuration(family, tiny_model, tiny_tokenizer, tmp_path):
    model = tiny_model(family)
    save_model(model, tiny_tokenizer, tmp_path)
    found = AutoConfig.from_pretrained(tmp_path)
    expected = getattr(model.config, "rope_parameters", None)
    assert getattr(found, "rope_parameters", None) == expected
    named = json.loads((tmp_path / "config.json").read_text())
    assert named == named | rotary_settings(named)


def test_the_class_of_a_tokenizer_is_one_of_both(tiny_model, tiny_tokenizer, tmp_path):
    save_model(tiny_model("gpt2"), tiny_tokenizer, tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not {"backend", "is_local", "local_files_only"} & set(settings)
    found = AutoTokenizer.from_pretrained(tmp_path)
    assert found("w7 w8").input_ids == tiny_tokenizer("w7 w8").input_ids


@pytest.mark.parametrize(
    ("family", "inputs"),
    [
        ("bert", ["input_ids", "token_type_ids", "attention_mask"]),
        ("distilbert", ["input_ids", "attention_mask"]),
        ("roberta", ["input_ids", "attention_mask"]),
        ("modernbert", ["input_ids", "attention_mask"]),
    ],
)
def test_a_tokenizer_makes_the_inputs_that_its_model_takes(
    family, inputs, tiny_model, tiny_tokenizer, tmp_path
):
    """Of a pair too: without token types, BERT would read both texts as the first."""
    save_model(tiny_model(family), tiny_tokenizer, tmp_path)
    named = json.loads((tmp_path / "tokenizer_config.json").read_text())["model_input_names"]
    found = AutoTokenizer.from_pretrained(tmp_path)("w7 w8", "w9", return_tensors="pt")
    assert named == inputs
    assert set(found) == set(inputs)
    if "token_type_ids" in inputs:
        assert found["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1]]
    _, model = load_model(tmp_path)
    model(**found)


TEXT = "w5 w9 w20 w31 w44"
SCRIPT = """
import sys
from pathlib import Path

import numpy as np
import transformers
from transformers import AutoConfig, AutoModel, AutoTokenizer

folder = Path(sys.argv[1])
for own in sorted(path for path in folder.iterdir() if path.is_dir()):
    name, kind = AutoConfig.from_pretrained(own).architectures[0], sys.argv[2]
    inputs = AutoTokenizer.from_pretrained(own)("%s", return_tensors=kind)
    if kind == "tf":
        values = {}
        exec(sys.argv[3].replace("path/to/this/folder", str(own)), values)
        np.save(folder / f"{own.name}.npy", values["features"].numpy())
    else:
        model = getattr(transformers, name).from_pretrained(own, attn_implementation="eager")
        logits = model(**inputs).logits
        np.save(folder / f"{own.name}.npy", logits.detach().numpy())
""".replace("%s", TEXT)


@pytest.fixture(scope="module")
def other_python(tmp_path_factory):
    """make(*requirements): the Python of an environment of its own."""

    def make(*requirements):
        folder = tmp_path_factory.mktemp("environment")
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        python = folder / "bin" / "python"
        torch_version = metadata.version("torch").partition("+")[0]
        wanted = ["transformers<5", f"torch=={torch_version}", *requirements]
        subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], check=True)
        return python

    return make


def ids_of(folder: Path) -> torch.Tensor:
    return torch.tensor([load_model_tokenizer(folder)(TEXT).input_ids])


def outputs(python: Path, kind: str, folder: Path) -> dict[str, np.ndarray]:
    """What each model in `folder` computes there: logits in PyTorch (`pt`), the last hidden states
    in TensorFlow (`tf`)."""
    environment = {"TF_USE_LEGACY_KERAS": "1", "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"}
    template = _environment(True).get_template("card_macros.md")
    macros: Any = template.make_module({"tensorflow": True})
    snippet = (
        str(macros.features()).split("```python\n")[2].split("```")[0].replace("Some text.", TEXT)
    )
    subprocess.run([python, "-c", SCRIPT, folder, kind, snippet], check=True, env=environment)
    return {path.stem: np.load(path) for path in folder.glob("*.npy")}


@pytest.mark.slow
def test_every_family_is_the_same_model(other_python, tiny_model, tiny_tokenizer, tmp_path):
    """Rotary positions of any base, windows and norms. (Eager: its other attention leaves out the
    soft cap of Gemma 2.)"""
    expected = {}
    for family in FAMILIES:
        model = tiny_model(family)
        save_model(model, tiny_tokenizer, tmp_path / family)
        ids = ids_of(tmp_path / family)
        with torch.no_grad():
            expected[family] = model(input_ids=ids).logits.numpy()
    found = outputs(other_python(), "pt", tmp_path)
    assert set(found) == set(expected)
    for family, logits in expected.items():
        np.testing.assert_allclose(found[family], logits, atol=1e-4, err_msg=family)


@pytest.mark.slow
def test_the_features_of_a_card_are_those_of_tensorflow(
    other_python, tiny_model, tiny_tokenizer, tmp_path
):
    """By the card's own lines."""
    expected = {}
    for family in TENSORFLOW:
        save_model(tiny_model(family), tiny_tokenizer, tmp_path / family)
        if family == "gpt2":  # published GPT-2 has the other name of the same function
            config = tmp_path / family / "config.json"
            config.write_text(config.read_text().replace("gelu_pytorch_tanh", "gelu_new"))
        body = AutoModel.from_pretrained(tmp_path / family)
        with torch.no_grad():
            inputs = ids_of(tmp_path / family)
            expected[family] = body(input_ids=inputs).last_hidden_state.numpy()
    found = outputs(other_python("tensorflow-cpu", "tf-keras"), "tf", tmp_path)
    for family, features in expected.items():
        np.testing.assert_allclose(found[family], features, atol=1e-4, err_msg=family)
