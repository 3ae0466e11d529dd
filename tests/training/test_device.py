"""Training's precision: bfloat16 where its products are faster here, not where a flag says so."""

import os
import subprocess
import sys

import pytest
import torch

from stillhouse.kernels import KernelTimes
from stillhouse.training import device
from stillhouse.training.device import has_bf16, pick_precision

CPU = torch.device("cpu")
FLAGGED = {"avx512_bf16": True}


@pytest.fixture(autouse=True)
def _asked_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    has_bf16.cache_clear()
    yield
    has_bf16.cache_clear()


@pytest.mark.parametrize(
    ("bf16_seconds", "expected"),
    [(0.5, "bf16"), (0.99, "fp32"), (1.0, "fp32"), (9.0, "fp32"), (None, "fp32")],
)
def test_auto_is_bf16_where_its_products_are_faster(monkeypatch, bf16_seconds, expected):
    """A CPU with the instructions and slow kernels trains in float32; so does a tie, and one where
    they are far slower (None)."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: FLAGGED)
    seconds = {"fp32": {device.ROWS: 1.0}}
    if bf16_seconds is not None:
        seconds["bf16"] = {device.ROWS: bf16_seconds}
    monkeypatch.setattr(device, "kernel_times", lambda *_: KernelTimes(seconds, 1))
    assert pick_precision("auto", CPU) == expected
    assert pick_precision("bf16", CPU) == "bf16"


def test_a_cpu_without_the_instructions_trains_in_float32(monkeypatch):
    """Without measuring: bfloat16 would be emulated."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert pick_precision("auto", CPU) == "fp32"


def test_asking_leaves_no_trace(monkeypatch):
    """No random generator moves: training's draws stay what they were."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: FLAGGED)
    before = torch.get_rng_state(), torch.get_num_threads()
    has_bf16(CPU)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.get_num_threads() == before[1]


@pytest.mark.e2e
def test_kernels_that_do_without_the_instructions_are_found_out():
    """The flag stays, oneDNN is limited to AVX2: a bfloat16 product is 20 times slower."""
    code = (
        "import torch; from stillhouse.training.device import pick_precision;"
        "print(pick_precision('auto', torch.device('cpu')))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"},
    )  # fmt: skip
    assert found.stdout.split() == ["fp32"]
