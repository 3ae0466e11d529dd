"""The table of docs/reference/exit-codes.md, from the exceptions of the package."""

import inspect

from stillhouse import errors


def exit_code_table() -> str:
    """One row for each kind of error, in the order of the codes."""
    rows = ["| exit code | error | when |", "|---|---|---|"]
    kinds = [
        kind
        for _, kind in inspect.getmembers(errors, inspect.isclass)
        if kind not in (errors.StillhouseError, errors.Stopped)
    ]
    kinds.sort(key=lambda kind: (kind.exit_code, len(kind.__mro__)))
    rows += [f"| {kind.exit_code} | `{kind.__name__}` | {_first(kind)} |" for kind in kinds]
    rows.append(f"| 130, 143 | `Stopped` | SIGINT, SIGTERM: {_first(errors.Stopped)} |")
    return "\n".join(rows)


def _first(kind: type[errors.StillhouseError]) -> str:
    return " ".join((kind.__doc__ or "").split())
