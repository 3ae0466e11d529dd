"""Numbers as people read them: 5.0 M, 11.2 MB, 1,234 tokens/s; the unit always stands with them."""

from collections.abc import Callable

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
    """Three digits at least: ratios are read from them."""
    return f"{value:,.0f} tokens/s" if value >= 100 else f"{value:.3g} tokens/s"


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
    """One number, for a narrow column: 0.8 s, 95 s, 12.1 min, 3.3 h."""
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


def bits(value: int | float) -> str:
    return f"{value:.3f} bits"


def signed(value: int | float, digits: int = 3) -> str:
    """With a sign always, and a real minus sign."""
    text = f"{abs(value):.{digits}f}"
    if not float(text):
        return text
    return ("+" if value > 0 else MINUS) + text


def percent(ratio: int | float) -> str:
    return f"{ratio:.0%}" if ratio < 10 else f"{ratio:,.0f}{TIMES}"


def times(ratio: int | float) -> str:
    return f"{ratio:,.0f}{TIMES}" if ratio >= 10 else f"{ratio:.2f}{TIMES}"


def between(low: float, high: float, show: Callable[[float], str]) -> str:
    """A range with its unit once: 1,190 to 1,302 tokens/s."""
    first, last = show(low), show(high)
    start, _, unit = first.rpartition(" ")
    if start and last.endswith(f" {unit}"):
        first = start
    return f"{first} to {last}"
