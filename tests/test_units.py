"""Numbers as people read them."""

import pytest

from stillhouse import units


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (units.count(5_000_000), "5.0 M"),
        (units.count(999_990_000), "1.0 B"),
        (units.count(9_999), "9,999"),
        (units.size_bytes(11_240_000), "11.2 MB"),
        (units.tokens_per_second(1234.4), "1,234 tokens/s"),
        (units.tokens_per_second(28.14), "28.1 tokens/s"),
        (units.seconds(0.84), "0.8 s"),
        (units.seconds(754), "12 min 34 s"),
        (units.seconds(3600 * 26 + 61), "26 h 1 min"),
        (units.short_time(0.84), "0.8 s"),
        (units.short_time(82.4), "82 s"),
        (units.short_time(754), "12.6 min"),
        (units.short_time(3600 * 26 + 61), "26.0 h"),
        (units.perplexity(24.532), "24.53"),
        (units.perplexity(1.3159e10), "1.32e+10"),
        (units.signed(0.0312), "+0.031"),
        (units.signed(-0.0312), "\N{MINUS SIGN}0.031"),
        (units.signed(-0.0001), "0.000"),
        (units.between(1190.0, 1302.0, units.tokens_per_second), "1,190 to 1,302 tokens/s"),
        (units.between(900_000.0, 1_100_000.0, units.size_bytes), "900.0 kB to 1.1 MB"),
    ],
)
def test_numbers_stand_with_their_unit(shown, expected):
    assert shown == expected
