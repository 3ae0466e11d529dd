"""The verdict on the teacher's worth, from each seed's student minus its control."""

import pytest

from stillhouse.report.outcome import judge


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([-0.03], "better"),
        ([0.03], "worse"),
        ([0.0004], "unclear"),
        ([-0.03, -0.01, -0.02], "better"),
        ([-0.03, -0.01, 0.02], "unclear"),
        ([-0.03, None], "unknown"),
    ],
)
def test_all_seeds_must_agree_before_anything_is_claimed(differences, verdict):
    assert judge(differences) == verdict
