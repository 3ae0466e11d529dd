"""Words around numbers, for logs, errors and reports."""


def counted(number: int, noun: str, plural: str = "") -> str:
    """1 document, 2 documents, 1,234 entries (with `plural="entries"`)."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
