"""Kernels are timed before they are used: a slow one is never taken; what was measured is kept."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from stillhouse import kernels
from stillhouse.generation import precision as int8
from stillhouse.kernels import FLOAT32, Kernel, Shape, kernel_times, measure_kernels

SHAPES = [Shape(256, 768, True, 2), Shape(768, 256, False, 2)]
PLACES = {"single row": 1, "some rows": 8, "prefill": 64}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "stillhouse" / "kernels"


def slowed(kernel: Kernel, at: int) -> Kernel:
    """The same product; at this number of rows it takes as long as float32's and a bit more."""

    def make(weight, bias):
        product = kernel.make(weight, bias)

        def multiply(inputs):
            if len(inputs) == at:
                F.linear(inputs.float(), weight, bias)
            return product(inputs)

        return multiply

    return Kernel(make, kernel.dtype, kernel.same_bits_as)


@contextmanager
def busy_process() -> Iterator[None]:
    """One other process that computes all the time."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


@contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def is_taken(found: kernels.KernelTimes, precision: int8.Precision) -> bool:
    speedups = int8.speedups(found, precision)
    return speedups is not None and min(speedups.values()) >= int8.FASTER


@pytest.mark.e2e
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ["bf16", "int8"])
@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_slow_kernel_is_never_taken_beside_a_busy_process(place, name, num_threads):
    """Slower than float32 in one place, whatever it gains in the others."""
    available = int8.kernels()
    if name not in available:
        pytest.skip(f"{name} is not exact on this machine")
    available[name] = slowed(available[name], PLACES[place])
    available.pop(int8.ONEDNN, None)
    with busy_process(), threads(num_threads):
        for _ in range(3):
            assert not is_taken(measure_kernels(SHAPES, available), name)


@pytest.mark.parametrize("place", PLACES)
def test_onednn_is_not_taken_where_it_is_slow(place):
    """Nor for fewer rows than those where it is slow. (It stands for a machine where it is fast
    elsewhere: FBGEMM's product, and float32's in addition at one number of rows.)"""
    if not int8.has_int8():
        pytest.skip("int8 is not exact on this machine")
    plain = int8.kernels()
    available = {
        "fp32": FLOAT32,
        "int8": slowed(slowed(plain["int8"], 8), 64),
        int8.ONEDNN: Kernel(
            slowed(slowed(plain["int8"], PLACES[place]), PLACES[place]).make, same_bits_as="int8"
        ),
    }
    rows = int8.onednn_rows(measure_kernels(SHAPES, available))
    assert rows is None or rows > PLACES[place]


def test_a_kernel_with_other_bits_is_left_out():
    """A fast product whose rounding differs would let requests change each other."""

    def make(weight, bias):
        return lambda inputs: F.linear(inputs, weight, bias) * (1 + 2**-20)

    available = {"fp32": FLOAT32, "other": Kernel(make, same_bits_as="fp32")}
    assert set(measure_kernels(SHAPES, available).seconds) == {"fp32"}


@pytest.mark.parametrize("seconds", [0.01, 0.3])
def test_a_reference_implementation_is_left_out_in_time(seconds):
    """As oneDNN's int8 product without AMX: a call of a fraction of the matrix tells enough."""

    def make(weight, bias):
        def multiply(inputs):
            time.sleep(seconds)
            return F.linear(inputs, weight, bias)

        return multiply

    started = time.perf_counter()
    found = measure_kernels(SHAPES, {"fp32": FLOAT32, "bf16": Kernel(make)})
    assert set(found.seconds) == {"fp32"}
    assert int8.speedups(found, "bf16") is None
    assert time.perf_counter() - started < 4 * seconds + 2


def test_times_grow_with_the_work():
    """Twice the layers take twice the time; more rows take longer."""
    once = measure_kernels(SHAPES, {"fp32": FLOAT32}).seconds["fp32"]
    twice = [Shape(each.num_inputs, each.num_outputs, each.is_transposed, 40) for each in SHAPES]
    many = measure_kernels(twice, {"fp32": FLOAT32}).seconds["fp32"]
    assert 5 < many[64] / once[64] < 80
    assert once[1] < once[64]


def test_measuring_leaves_no_trace():
    """No random generator moves, and threads are as many as before."""
    before = torch.get_rng_state(), torch.get_num_threads()
    measure_kernels(SHAPES, int8.kernels())
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.get_num_threads() == before[1]


def _known(cache) -> tuple[kernels.KernelTimes, Callable[[], kernels.KernelTimes]]:
    available = {"fp32": FLOAT32}
    return kernel_times(SHAPES, available), lambda: kernel_times(SHAPES, available)


def test_what_was_measured_is_remembered(cache):
    """The same times, to the digit, without measuring again."""
    first, again = _known(cache)
    assert len(list(cache.iterdir())) == 1
    assert again() == first


@pytest.mark.parametrize("what", ["processor", "threads", "torch", "shapes", "isa"])
def test_it_is_measured_again_when_the_machine_changes(cache, monkeypatch, what):
    """Another processor, number of threads, PyTorch, shape, or setting of the libraries."""
    _, again = _known(cache)
    if what == "processor":
        monkeypatch.setattr(kernels, "processor_name", lambda: "another")
    if what == "torch":
        monkeypatch.setattr(torch, "__version__", "9.9")
    if what == "isa":
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    if what == "shapes":
        kernel_times(SHAPES[:1], {"fp32": FLOAT32})
    with threads(2 if what == "threads" else 1):
        again()
    # With two threads beside other work it may have been interrupted, and is then not kept.
    assert len(list(cache.iterdir())) == 2 or what == "threads"


DAMAGES = {
    "empty": "",
    "cut": '{"key": {',
    "a list": "[]",
    "no float32": '{"key": KEY, "seconds": {}}',
    "text": '{"key": KEY, "seconds": {"fp32": {"1": "a", "8": 1, "64": 1}}}',
    "zero": '{"key": KEY, "seconds": {"fp32": {"1": 0, "8": 1, "64": 1}}}',
    "NaN": '{"key": KEY, "seconds": {"fp32": {"1": NaN, "8": 1, "64": 1}}}',
    "another machine": '{"key": {}, "seconds": {"fp32": {"1": 1, "8": 1, "64": 1}}}',
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_measured_again(cache, damage):
    """And written whole."""
    _, again = _known(cache)
    (file,) = cache.iterdir()
    key = json.loads(file.read_text())["key"]
    file.write_text(DAMAGES[damage].replace("KEY", json.dumps(key)))
    assert 0 < again().seconds["fp32"][64] < 1
    assert json.loads(file.read_text())["key"] == key


def test_a_cache_that_cannot_be_written_is_harmless(tmp_path, monkeypatch):
    """A file stands where the folder would."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert kernel_times(SHAPES, {"fp32": FLOAT32}).seconds["fp32"][1] > 0


@pytest.mark.e2e
@pytest.mark.parametrize("isa", ["AVX2", "AVX512"])
def test_int8_is_refused_where_its_sums_overflow(isa):
    """FBGEMM told to do without VNNI adds pairs in 16 bits: 12 instead of 768. It is found by
    trying, not by a flag."""
    code = "from stillhouse.generation.precision import has_int8; print(has_int8())"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={**os.environ, "FBGEMM_ENABLE_INSTRUCTIONS": isa},
    )  # fmt: skip
    assert found.stdout.split() == ["False"]
