"""The table of faults in docs/results/reliability.md, from the results in docs/reliability.json."""

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("reliability.json")


def fault_table() -> str:
    """Markdown: what was injected, what held, how often, and how many trials failed."""
    lines = ["| row | fault | what holds | trials | failed | commit |", "|---|---|---|---|---|---|"]
    lines += [_line(row) for row in json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]]
    return "\n".join(lines)


def _line(row: dict[str, Any]) -> str:
    wanted = "" if row["trials"] == row["wanted"] else f" of {row['wanted']:,}"
    return (
        f"| {row['row']} | {row['fault']} | {row['holds']} | {row['trials']:,}{wanted} | "
        f"{len(row['failures'])} | {row['commit'][:7]} |"
    )
