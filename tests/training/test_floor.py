"""The floor: the slower of multiplying and moving, at rates measured without a trace."""

import random

import pytest
import torch

from stillhouse.training.floor import Floor, Rates, measure_floor
from stillhouse.training.work import Work

CPU = torch.device("cpu")
WORK = Work(
    {"student_body": 3e6, "teacher_body": 1e6}, {"optimizer": 2e3, "gradients": 6e3},
    product=(64, 16, 64), precision="fp32",
)  # fmt: skip


@pytest.mark.parametrize(
    ("multiply_adds_per_second", "bytes_per_second", "tokens_per_second"),
    [(4e9, 80e6, 1000), (4e9, 8e6, 1000), (4e9, 4e6, 500), (1e9, 8e6, 250)],
)
def test_the_slower_of_the_two_is_the_floor(
    multiply_adds_per_second, bytes_per_second, tokens_per_second
):
    """4 M multiply-adds and 8 kB a token, over each rate; half that speed is half the floor."""
    floor = Floor(WORK, Rates(multiply_adds_per_second, bytes_per_second))
    assert floor.tokens_per_second == pytest.approx(tokens_per_second)
    assert floor.share(tokens_per_second / 2) == pytest.approx(0.5)
    assert floor.facts(tokens_per_second / 4) == {
        "floor_tokens_per_second": pytest.approx(tokens_per_second),
        "floor_share": pytest.approx(0.25),
    }


def test_the_floor_in_words():
    """Both counts, both rates, the precision, and what follows."""
    assert str(Floor(WORK, Rates(4e9, 4e6))) == (
        "a token needs 4.00 M multiply-adds and moves 8.00 kB; measured here in fp32: "
        "4.0 G multiply-adds/s and 0.0 GB/s; so the floor is 500 tokens/s"
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_measuring_leaves_no_trace(precision):
    """Rates are found, and no random generator has moved: training goes on as without."""
    before = torch.get_rng_state(), random.getstate()
    work = Work(WORK.multiply_adds, WORK.bytes_moved, WORK.product, precision)
    floor = measure_floor(work, CPU)
    assert floor.rates.multiply_adds_per_second > 1e6
    assert floor.rates.bytes_per_second > 1e6
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
