"""The race of a budget's candidates as a table, from the manifest of the initial student."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from stillhouse import units
from stillhouse.report.results import SeedResult
from stillhouse.report.tables import NOT_FINITE, Cell, Table
from stillhouse.runs.manifest import facts_of

COLUMNS = [
    "Layers",
    "Feed-forward",
    "Heads",
    "Hidden size",
    "Parameters",
    "Loss after the cut",
    "KL after distillation",
    "Top-1 agreement",
]


@dataclass(frozen=True)
class RaceTable:
    """The candidates, those that were distilled first, and why the first one is the student."""

    reason: str
    tokens: int
    table: Table


def race_of(result: SeedResult) -> RaceTable | None:
    """The race of a run; None where the recipe has no budget."""
    race = facts_of(result.run.student_init).get("race")
    if race is None:
        return None
    by_name = {own["name"]: own for own in race["candidates"]}
    raced = race["ranking_after_distillation"]
    names = [*raced, *(name for name in race["ranking_after_cut"] if name not in raced)]
    rows = [(_label(name, race), _cells(by_name[name], race)) for name in names]
    columns = [*COLUMNS]
    if race.get("speed") is not None:
        columns.append(f"Decoding, {race['speed']['precision']}")
        for name, (_, cells) in zip(names, rows, strict=True):
            own = by_name[name]
            teacher = f"teacher {own['teacher_tokens_per_second']:,.1f} tokens/s"
            cells.append(Cell(f"{own['tokens_per_second']:,.1f} tokens/s", [teacher]))
    return RaceTable(race["reason"], race["tokens"], Table(columns, rows))


def _label(name: str, race: Mapping[str, Any]) -> str:
    return f"{name} (student)" if name == race["winner"] else name


def _cells(own: Mapping[str, Any], race: Mapping[str, Any]) -> list[Cell]:
    heads, kv_heads = own["num_heads"], own["num_key_value_heads"]
    return [
        Cell(f"{own['layers']}"),
        Cell(f"{own['feed_forward_size']:,}"),
        Cell(f"{heads}" if heads == kv_heads else f"{heads}, {kv_heads} of keys and values"),
        Cell(f"{own['hidden_size']:,}"),
        Cell(units.count(own["parameters"])),
        _figure(own, "loss", units.nats, _place(own, race["ranking_after_cut"])),
        _figure(own, "kl", units.nats, _place(own, race["ranking_after_distillation"])),
        _figure(own, "top1_agreement", lambda share: f"{share:.1%}", ""),
    ]


def _place(own: Mapping[str, Any], ranking: list[str]) -> str:
    return f"number {ranking.index(own['name']) + 1}" if own["name"] in ranking else ""


def _figure(own: Mapping[str, Any], key: str, show: Callable[[float], str], note: str) -> Cell:
    if key not in own:
        return Cell("not distilled", is_missing=True)
    if own[key] is None:
        return Cell(NOT_FINITE, is_missing=True)
    return Cell(show(own[key]), [note] if note else [])
