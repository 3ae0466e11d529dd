"""A text longer than a model's context, as windows that overlap."""

from collections.abc import Iterator


def windows(num_tokens: int, context: int) -> Iterator[tuple[int, int, int]]:
    """Where each window begins, where what is new in it begins, and where it ends: every token is
    new once, and but for the beginning of the text sees at least half a context before it."""
    start, seen = 0, 0
    while seen < num_tokens:
        end = min(start + context, num_tokens)
        yield start, seen, end
        start, seen = end - context // 2, end
