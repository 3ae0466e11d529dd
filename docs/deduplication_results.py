"""The tables of measured deduplication, from benchmarks/results/deduplication."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "deduplication"
NOTHING = "No run is recorded yet."
Result = Mapping[str, Any]


def deduplication_tables() -> str:
    """For each machine: what is found of planted copies, and the speed."""
    results = [json.loads(file.read_text("utf-8")) for file in sorted(RESULTS.glob("*.json"))]
    return "\n\n".join(map(tables_of, results)) or NOTHING


def tables_of(result: Result) -> str:
    """Markdown: recall and precision by edit rate, then MB/s by engine."""
    machine = result["machine"]
    origin = (
        f"One core of {machine['processor'].replace('(R)', '')}, seed {result['seed']}, commit "
        f"`{result['commit'][:12]}`: `{result['command']}`"
    )
    return "\n\n".join([_rates(result), _speeds(result), origin])


def _rates(result: Result) -> str:
    kinds: Mapping[str, Any] = result["quality"]
    edits = list(next(iter(next(iter(kinds.values()))["rates"].values())))
    heads = [f"{100 * float(edit):.0f} % edited" for edit in edits]
    lines = _head(["documents", "settings", *heads])
    for kind, own in kinds.items():
        title = f"{own['documents']:,} {kind}, {own['copies']:,} copies"
        for name, rates in own["rates"].items():
            cells = [f"{rates[edit]['recall']:.3f}, {_share(rates[edit])}" for edit in edits]
            lines.append(_row([title, f"{name}{_settings(result, name)}", *cells]))
            title = ""
    return "\n".join(lines)


def _share(rates: Mapping[str, Any]) -> str:
    return "none found" if rates["precision"] is None else f"{rates['precision']:.3f}"


def _settings(result: Result, name: str) -> str:
    own = result["settings"].get(name)
    if own is None:
        return ""
    return f" ({own['threshold']:g}, {own['run_words']} words)"


def _speeds(result: Result) -> str:
    signing, finding = result["speed"]["signing"], result["speed"]["finding"]
    lines = _head(["engine", "signing, MB/s", "finding, MB/s"])
    for name in signing:
        cells = [f"{each[name]['megabytes_per_second']:.1f}" for each in (signing, finding)]
        lines.append(_row([name, *cells]))
    return "\n".join(lines)


def _head(columns: Sequence[str]) -> list[str]:
    return [_row(columns), "|---" * len(columns) + "|"]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
