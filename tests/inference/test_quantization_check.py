"""A lower precision is used if it keeps the quality, and float32 otherwise."""

import re
import shutil
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F  # noqa: N812
from transformers import GPT2Config, GPT2LMHeadModel

import stillhouse
from stillhouse.errors import ModelError, RecipeError
from stillhouse.inference import quantization as precision
from stillhouse.inference.quantization import Int8Linear, has_int8, load_at_precision
from stillhouse.kernels import FLOAT32, Kernel
from stillhouse.models.hub import resolve_folder
from stillhouse.models.load import save_model
from stillhouse.tokens.tokenizer_training import train_tokenizer

needs_int8 = pytest.mark.skipif(not has_int8(), reason="int8 is not exact on this machine")

PROMPT = "def __init__(self"


@pytest.fixture(scope="module")
def fragile(tmp_path_factory):
    """The sample teacher with one enormous weight in each row: int8 rounds the others to zero.
    (The weight is at an input that is zero, so the outputs of the model do not change.)"""
    folder = tmp_path_factory.mktemp("fragile") / "model"
    shutil.copytree(resolve_folder("sample", offline=True), folder)
    weights = load_file(folder / "model.safetensors")
    for layer in range(6):
        prefix = f"transformer.h.{layer}"
        weights[f"{prefix}.ln_2.weight"][0] = 0
        weights[f"{prefix}.ln_2.bias"][0] = 0
        weights[f"{prefix}.mlp.c_fc.weight"][0] = 500.0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """One layer of GPT-2's width: its matrices are large enough for int8 to be faster."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=257, n_layer=1, n_positions=256, bos_token_id=0, eos_token_id=0)
    folder = tmp_path_factory.mktemp("wide") / "model"
    tokenizer = train_tokenizer("byte_bpe", 257, iter([""]), "causal")
    save_model(GPT2LMHeadModel(config).eval(), tokenizer, folder)
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def slower_than_float32(weight, bias):
    """An int8 product that is slower than float32's."""
    product = Int8Linear(weight, bias)

    def multiply(inputs):
        F.linear(inputs, weight, bias)
        return product(inputs)

    return multiply


@pytest.mark.e2e
@needs_int8
@pytest.mark.e2e
def test_auto_chooses_int8_if_it_is_faster_and_gives_the_reason(wide):
    """In one line: the speeds, and the loss of quality. (In its own process: checking the
    types of a call, as tests do, takes longer than the product of a single row.)"""
    command = [sys.executable, "-m", "stillhouse", "generate", str(wide), "--precision", "auto"]
    command += ["--prompt", "a", "--max-new-tokens", "2", "--offline"]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    line = (
        r"precision: int8 \((\d+\.\d)x float32 at 1 row, (\d+\.\d)x at 8 rows, "
        r"(\d+\.\d)x at 64 rows; "
        r"perplexity [+-]0\.\d %(; speeds measured beside other work)?\)$"
    )
    speeds = re.search(line, found.stderr, re.MULTILINE)
    assert speeds is not None, found.stderr
    assert min(map(float, speeds.groups()[:3])) >= 1.1


@pytest.mark.e2e
@needs_int8
def test_auto_keeps_float32_if_int8_is_slower(wide, monkeypatch):
    """With the figure; int8 by name is used, and reported as slower."""
    slow = {"fp32": FLOAT32, "int8": Kernel(slower_than_float32)}
    monkeypatch.setattr(precision, "kernels", lambda: slow)
    found = load_at_precision(wide, "auto")
    assert found.precision == "fp32"
    assert re.search(r"rejected: int8 \d\.\dx float32 at 1 row", str(found))
    asked = load_at_precision(wide, "int8")
    assert asked.precision == "int8"
    assert "no faster than float32 on this machine" in str(asked)


@pytest.mark.e2e
@needs_int8
def test_int8_generates_the_text_of_float32():
    """The perplexity changes by less than a percent, and the first tokens are the same."""
    found = load_at_precision("sample", "int8", offline=True)
    assert found.precision == "int8", str(found)
    assert abs(found.change) < 0.01
    plain = stillhouse.load("sample", offline=True)
    asked = {"greedy": True, "max_new_tokens": 4}
    assert found.model.generate(PROMPT, **asked) == plain.generate(PROMPT, **asked)
    assert found.model.num_parameters == plain.model.num_parameters()


@pytest.mark.e2e
@needs_int8
def test_a_model_that_loses_quality_keeps_float32(fragile, monkeypatch):
    """Auto keeps float32 weights and reports the loss; int8 by name raises."""
    monkeypatch.setattr(precision, "FASTER", 0.0)  # speed is not what it is about
    found = load_at_precision(fragile, "auto")
    assert (found.precision, found.change) == ("fp32", 0.0)
    assert re.search(r"rejected: int8 perplexity \+\d+\.\d %", str(found))
    asked = {"greedy": True, "max_new_tokens": 8}
    plain = stillhouse.load(fragile)
    assert found.model.generate(PROMPT, **asked) == plain.generate(PROMPT, **asked)
    with pytest.raises(ModelError, match=r"In int8 the perplexity of .* changes by \d+.*1% is al"):
        load_at_precision(fragile, "int8")


@pytest.mark.e2e
@needs_int8
def test_int8_is_loaded_in_a_second_of_cpu_time():
    """Choosing, checking and converting the sample teacher; oneDNN's reference kernel took it
    about forty."""
    started = time.process_time()
    load_at_precision("sample", "int8", offline=True)
    assert time.process_time() - started < 2


@pytest.mark.e2e
def test_bf16_by_name_is_used():
    """The weights are bfloat16, and text is generated."""
    found = load_at_precision("sample", "bf16", offline=True)
    assert found.precision == "bf16"
    assert abs(found.change) < 0.01
    assert found.model.model.dtype == torch.bfloat16
    assert len(found.model.generate(PROMPT, greedy=True, max_new_tokens=8)) == 1


def test_an_unknown_precision_names_the_choices():
    with pytest.raises(RecipeError, match="precision is fp8; choose from auto, fp32, bf16, int8"):
        load_at_precision("sample", "fp8", offline=True)


@pytest.mark.parametrize("wanted", ["bf16", "int8"])
def test_a_lower_precision_is_refused_on_a_gpu(wanted):
    """Its speed and quality are measured on the CPU. (The meta device stands for a GPU.)"""
    with pytest.raises(RecipeError, match=f"--precision {wanted} is for CPUs.*--device cpu"):
        load_at_precision("sample", wanted, offline=True, device=torch.device("meta"))


def test_auto_is_float32_on_a_gpu():
    found = load_at_precision("sample", "auto", offline=True, device=torch.device("meta"))
    assert str(found) == "fp32 (lower precisions are for CPUs)"
    assert found.model.model.device.type == "meta"


@pytest.mark.e2e
@pytest.mark.parametrize("wanted", ["bf16", pytest.param("int8", marks=needs_int8)])
def test_a_real_encoder_keeps_its_embeddings_in_lower_precision(wanted):
    """Embeddings keep their direction, and the change is reported."""
    found = load_at_precision("minilm", wanted, offline=True)
    assert found.precision == wanted
    assert 0 < found.change < 0.01
    assert found.measured == "outputs"
    texts = ["A cat sleeps.", "The sea was rough that night.", "Taxes are due in April."]
    cosines = (found.model.embed(texts) * stillhouse.load("minilm").embed(texts)).sum(1)
    assert cosines.min() > 0.995


@pytest.mark.e2e
def test_auto_measures_encoders_too():
    """Every speed that decides is given, and the speeds bear the decision out. (In a process of its
    own, as above.)"""
    script = (
        "from stillhouse.inference.quantization import load_at_precision\n"
        "print(load_at_precision('minilm', 'auto', offline=True))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    speeds = r"(\d+\.\d)x float32 at 8 rows, (\d+\.\d)x at 64 rows"
    if used := re.match(rf"(?:int8|bf16) \({speeds}; outputs \+0\.\d %", done.stdout):
        assert min(map(float, used.groups())) >= 1.1
    else:
        assert done.stdout.startswith("fp32 (rejected: "), done.stdout + done.stderr
        for rejected in re.findall(speeds, done.stdout):
            assert min(map(float, rejected)) <= 1.1
