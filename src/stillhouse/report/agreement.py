"""Agreement with the teacher by token frequency and by position, as tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from stillhouse import units
from stillhouse.report.results import SeedResult, label_of, models_of, spread
from stillhouse.report.tables import Cell, Table
from stillhouse.wording import counted

Kind = Literal["by_frequency", "by_position"]


@dataclass(frozen=True)
class AgreementTable:
    """A table with its title, and the models of its columns after the first."""

    title: str
    models: Sequence[str]
    table: Table


def agreement_tables(results: Sequence[SeedResult]) -> list[AgreementTable]:
    """Both tables, medians over the seeds; none for an evaluation that has no bins."""
    titles: dict[Kind, str] = {
        "by_frequency": "By how often the token occurs in the training text",
        "by_position": "By position in the sequence",
    }
    found = [_table(results, kind, title) for kind, title in titles.items()]
    return [each for each in found if each is not None]


def _table(results: Sequence[SeedResult], kind: Kind, title: str) -> AgreementTable | None:
    models = [model for model in models_of(results) if _bins(results[0], model, kind)]
    if not models:
        return None
    rows = [
        (
            _label(each, kind),
            [
                Cell(f"{each['tokens']:,}"),
                *(_cell(results, model, kind, each["low"]) for model in models),
            ],
        )
        for each in _bins(results[0], models[0], kind)
    ]
    columns = ["Tokens", *map(label_of, models)]
    return AgreementTable(title, ["", *models], Table(columns, rows))


def _bins(result: SeedResult, model: str, kind: Kind) -> list[Mapping[str, Any]]:
    entry = result.evaluation["models"].get(model) or {}
    return (entry.get("agreement") or {}).get(kind) or []


def _cell(results: Sequence[SeedResult], model: str, kind: Kind, low: int) -> Cell:
    own = [each for result in results for each in _bins(result, model, kind) if each["low"] == low]
    share, divergence = (spread([each[key] for each in own]) for key in ("top1_agreement", "kl"))
    if share is None or divergence is None:
        return Cell("not measured", is_missing=True)
    return Cell(f"{share.median:.1%}", [f"KL {units.nats(divergence.median)}"])


def _label(each: Mapping[str, Any], kind: Kind) -> str:
    low, high = each["low"], each["high"]
    last = None if high is None else high - 1
    if last is None:
        span = f"{low:,} and more"
    else:
        span = f"{low:,}" if low == last else f"{low:,} to {last:,}"
    if kind == "by_position":
        return span
    return "never" if last == 0 else f"{span} times" if last != 1 else counted(1, "time")
