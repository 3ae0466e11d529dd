"""The roofline: the slower of computing and moving, at rates measured without side effects."""

import random

import pytest
import torch

from stillhouse.training.cost import Rates, Roofline, StepCost, measure_roofline

CPU = torch.device("cpu")
COST = StepCost(
    {"student_body": 3e6, "teacher_body": 1e6}, {"optimizer": 2e3, "gradients": 6e3},
    product=(64, 16, 64), precision="fp32",
)  # fmt: skip


@pytest.mark.parametrize(
    ("flops_per_second", "bytes_per_second", "tokens_per_second"),
    [(4e9, 80e6, 1000), (4e9, 8e6, 1000), (4e9, 4e6, 500), (1e9, 8e6, 250)],
)
def test_roofline_is_the_slower_of_compute_and_memory(
    flops_per_second, bytes_per_second, tokens_per_second
):
    """4 MFLOPs and 8 kB per token, over each rate; MFU is FLOP/s over the peak."""
    roofline = Roofline(COST, Rates(flops_per_second, bytes_per_second))
    assert roofline.tokens_per_second == pytest.approx(tokens_per_second)
    assert roofline.mfu(100.0) == pytest.approx(100 * 4e6 / flops_per_second)
    assert roofline.facts(100.0) == {
        "roofline_tokens_per_second": pytest.approx(tokens_per_second),
        "mfu": roofline.mfu(100.0),
    }


def test_roofline_as_text():
    """Both costs, both peaks, the precision, and the speed that follows."""
    assert str(Roofline(COST, Rates(4e9, 4e6))) == (
        "4.00 MFLOPs and 8.00 kB per token; peaks measured in fp32: 4.0 GFLOP/s and 0.0 GB/s; "
        "roofline 500 tokens/s"
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_measuring_does_not_change_random_state(precision):
    """Rates are positive, and no random generator has advanced."""
    before = torch.get_rng_state(), random.getstate()
    cost = StepCost(COST.flops, COST.bytes_moved, COST.product, precision)
    roofline = measure_roofline(cost, CPU)
    assert roofline.rates.flops_per_second > 1e6
    assert roofline.rates.bytes_per_second > 1e6
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
