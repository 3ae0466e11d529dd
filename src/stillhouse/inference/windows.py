"""Overlapping windows of a text that is longer than a model's context."""

from collections.abc import Iterator


def windows(num_tokens: int, context: int) -> Iterator[tuple[int, int, int]]:
    """The start, the first new token and the end of each window: every token is new once, and has
    at least half a context before it, except at the start of the text."""
    start, seen = 0, 0
    while seen < num_tokens:
        end = min(start + context, num_tokens)
        yield start, seen, end
        start, seen = end - context // 2, end
