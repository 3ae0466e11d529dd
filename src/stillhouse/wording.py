"""Words around numbers and errors, for logs, messages and reports."""

from collections.abc import Sequence

MAX_NUMBERS = 5


def counted(number: int, noun: str, plural: str = "") -> str:
    """1 document, 2 documents, 1,234 entries (with `plural="entries"`)."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def first_line(error: Exception) -> str:
    """The first line of an error's message; of an empty one the error's name."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def numbered_rows(numbers: Sequence[int]) -> str:
    """2 rows (4, 17), 1,000 rows (1, 2, 3, 4, 5 and 995 more)."""
    more = len(numbers) - MAX_NUMBERS
    shown = ", ".join(map(str, numbers[:MAX_NUMBERS])) + (f" and {more:,} more" if more > 0 else "")
    return f"{counted(len(numbers), 'row')} ({shown})"


def duration(seconds: int | float) -> str:
    """0.03 s, 8 s, 12 min, 2 h 10 min, 3 d 4 h: two units at most, rounded to the smaller one."""
    if seconds < 59.5:
        return f"{float(f'{seconds:.1g}'):g} s" if seconds < 1 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(round(seconds / 3600), 24)
    return f"{days} d {hours} h" if hours else f"{days} d"
