"""The table of docs/concepts/teacher-cache.md, from benchmarks/results/cache.json."""

import json
from pathlib import Path

FILE = Path(__file__).parents[1] / "benchmarks" / "results" / "cache.json"


def cache_table() -> str:
    """How near the gradient from a cache is to that of the whole distribution, by its size."""
    rows = ["| cache | bytes per position | cosine | norm, relative |", "|---|---|---|---|"]
    for each in json.loads(FILE.read_text(encoding="utf-8"))["bias"]:
        name = f"`{each['kind']}`, {each['size']} tokens"
        cells = (name, each["bytes_per_row"], f"{each['cosine']:.4f}", f"{each['norm']:.3f}")
        rows.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(rows)
