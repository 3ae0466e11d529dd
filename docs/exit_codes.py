"""The table of docs/reference/exit-codes.md, from the exceptions of the package."""

from collections.abc import Iterator

from stillhouse import errors


def exit_code_table() -> str:
    """One row for each kind of error, in the order of the codes."""
    rows = ["| exit code | error | when |", "|---|---|---|"]
    found = sorted(_below(errors.StillhouseError), key=lambda kind: kind.exit_code)
    rows += [
        f"| {kind.exit_code} | `{kind.__name__}` | {_first(kind)} |"
        for kind in found
        if kind is not errors.Stopped
    ]
    rows.append(f"| 130, 143 | `Stopped` | SIGINT, SIGTERM: {_first(errors.Stopped)} |")
    return "\n".join(rows)


def _below(kind: type[errors.StillhouseError]) -> Iterator[type[errors.StillhouseError]]:
    for each in kind.__subclasses__():
        yield each
        yield from _below(each)


def _first(kind: type[errors.StillhouseError]) -> str:
    return " ".join((kind.__doc__ or "").split())
