"""Numbers formatted with their unit: 5.0 M, 11.2 MB, 1,234 tokens/s."""

from collections.abc import Callable
from dataclasses import dataclass

MINUS = "\N{MINUS SIGN}"
TIMES = "\N{MULTIPLICATION SIGN}"


def count(value: int | float) -> str:
    """82.1 M, 1.2 B, 45.3 k, 512."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "k")):
        if value >= size * 0.99995:
            return f"{value / (1e3 if letter == 'k' else size):.1f} {letter}"
    return f"{value:,.0f}"


def tokens(value: int | float) -> str:
    return f"{count(value)} tokens"


def size_bytes(value: int | float) -> str:
    """Decimal units, as disks and hubs count."""
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value:.0f} bytes"


def tokens_per_second(value: int | float) -> str:
    """At least three digits, so that ratios can be recomputed."""
    return f"{value:,.0f} tokens/s" if value >= 100 else f"{value:.3g} tokens/s"


def energy(value: int | float) -> str:
    """kWh as 403.2 kWh, 12.3 Wh, 0.0412 Wh."""
    return f"{value:,.1f} kWh" if value >= 1 else f"{1000 * value:.3g} Wh"


def joules(value: int | float) -> str:
    """12.3 kJ, 812 J."""
    return f"{value / 1000:,.1f} kJ" if value >= 1000 else f"{value:.3g} J"


def mass(value: int | float) -> str:
    """kg as 149.2 kg, 12.3 g."""
    return f"{value:,.1f} kg" if value >= 1 else f"{1000 * value:.3g} g"


def seconds(value: int | float) -> str:
    """0.8 s, 42 s, 12 min 5 s, 3 h 20 min."""
    if value < 10:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"


def short_time(value: int | float) -> str:
    """A duration as a single number: 0.8 s, 95 s, 12.1 min, 3.3 h."""
    if value < 100:
        return f"{value:.{1 if value < 10 else 0}f} s"
    return f"{value / 60:.1f} min" if value < 6000 else f"{value / 3600:,.1f} h"


def perplexity(value: int | float) -> str:
    """24.53, 231.2, 4,120; an untrained model's perplexity per word may need 1.32e+10."""
    if value >= 1e7:
        return f"{value:.2e}"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 100 else f"{value:.2f}"


def nats(value: int | float) -> str:
    return f"{value:.3f} nats"


def short_nats(value: int | float) -> str:
    """Three decimals, or an exponent for the huge loss of a diverged model."""
    return f"{value:.3f}" if value < 1_000 else f"{value:.1e}"


def signed(value: int | float, digits: int = 3) -> str:
    """Always with a sign; negative values have a typographic minus sign."""
    text = f"{abs(value):.{digits}f}"
    if not float(text):
        return text
    return ("+" if value > 0 else MINUS) + text


def percent(ratio: int | float) -> str:
    return f"{ratio:.0%}" if ratio < 10 else f"{ratio:,.0f}{TIMES}"


def times(ratio: int | float) -> str:
    return f"{ratio:,.0f}{TIMES}" if ratio >= 10 else f"{ratio:.2f}{TIMES}"


def between(low: float, high: float, show: Callable[[float], str]) -> str:
    """A range that states its unit once: 1,190 to 1,302 tokens/s."""
    first, last = show(low), show(high)
    start, _, unit = first.rpartition(" ")
    if start and last.endswith(f" {unit}"):
        first = start
    return f"{first} to {last}"


@dataclass(frozen=True)
class Unit:
    """How the values of one quantity are formatted.

    Attributes:
        show: A value with its unit.
        ratio: A value's ratio to a baseline; None where a ratio says nothing.
        short: A value for a narrow column; by default as `show`.
    """

    show: Callable[[float], str]
    ratio: Callable[[float], str] | None = None
    short: Callable[[float], str] | None = None


COUNT = Unit(count, percent)
SIZE = Unit(size_bytes, percent)
RATE = Unit(tokens_per_second, times, lambda rate: f"{rate:,.0f}/s")
NATS = Unit(nats, times, short_nats)
BITS = Unit(lambda value: f"{value:.3f} bits", times)
PERPLEXITY = Unit(perplexity, times)
SHARE = Unit(percent)
TOKENS = Unit(tokens, short=count)
SECONDS = Unit(seconds, short=short_time)
