"""What a run took: the table of its stages, and sentences for page and card."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich.text import Text

from stillhouse import terminal, units
from stillhouse.energy.account import as_json
from stillhouse.recipe import Recipe
from stillhouse.report.results import SeedResult
from stillhouse.report.tables import Cell, Table
from stillhouse.wording import duration

UNKNOWN = "unknown"


def values_of(recipe: Recipe, result: SeedResult) -> dict[str, Any]:
    """What the templates of page and card show of one seed."""
    account = as_json(recipe.energy, result.run)
    return {"energy": table_of(recipe, account), "energy_notes": sentences(account)}


def table_of(recipe: Recipe, account: Mapping[str, Any]) -> Table | None:
    """The stages of a run; None where nothing but their time is known."""
    shown = [*account["stages"], {"name": "total", **account["total"]}]
    if not any(each[key] is not None for each in shown for key in ("kwh", "cost")):
        return None
    columns: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "Time": lambda each: duration(each["seconds"]),
        "Energy": lambda each: _known(each["kwh"], units.energy),
    }
    if account["kg_per_kwh"] is not None:
        columns["CO2 equivalents"] = lambda each: _known(each["kg_co2"], units.mass)
    if recipe.energy.price_per_hour is not None:
        currency = recipe.energy.currency
        columns["Cost"] = lambda each: _known(
            each["cost"], lambda value: f"{value:,.2f} {currency}"
        )
    rows = [
        (str(each["name"]), [_cell(column(each)) for column in columns.values()]) for each in shown
    ]
    return Table([*columns], rows)


def sentences(account: Mapping[str, Any]) -> list[str]:
    """Where the figures come from, what generation takes, and when the student has paid."""
    return list(_sentences(account))


def _sentences(account: Mapping[str, Any]) -> Iterator[str]:
    sources = dict.fromkeys((each["kind"], each["source"]) for each in account["stages"])
    shown = "; ".join(f"{kind} ({source})" for kind, source in sources)
    yield f"Energy: {shown or 'unknown (no stage of the run is there)'}."
    if account["kg_per_kwh"] is not None:
        factor = account["kg_per_kwh"]
        yield f"Emissions: {factor['value']:g} kg of CO2 equivalents per kWh ({factor['source']})."
    if (generation := account["generation"]) is not None:
        joules = generation["joules_per_1000_tokens"]
        yield (
            f"Generating 1,000 tokens, one stream in float32, takes "
            f"{units.joules(joules['teacher'])} with the teacher and "
            f"{units.joules(joules['student'])} with the student ({generation['kind']} power of "
            "the stage evaluate)."
        )
        if (paid := generation["paid_after_tokens"]) is not None:
            yield f"The student has saved what it took after {units.tokens(paid)}."
        else:
            yield "Whether the student saves what it took is unknown, or it saves nothing."


def print_account(recipe: Recipe, account: Mapping[str, Any]) -> None:
    """Print the account on stdout."""
    parts: list[terminal.Part] = []
    if (table := table_of(recipe, account)) is not None:
        rows = [[label, *(cell.text for cell in cells)] for label, cells in table.rows]
        parts.append(terminal.table(["", *table.columns], rows))
    terminal.show(*parts, *map(Text, sentences(account)))


def emissions_metadata(recipe: Recipe, result: SeedResult) -> Mapping[str, Any] | None:
    """`co2_eq_emissions` of a card for the hub, in grams; None where they are unknown.

    Source: Hugging Face, "Displaying carbon emissions for your model".
    """
    account = as_json(recipe.energy, result.run)
    kg = account["student"]["kg_co2"]
    if kg is None:
        return None
    machine = result.evaluation.get("machine") or {}
    hardware = ", ".join(machine.get("gpus") or ()) or machine.get("processor")
    return {
        "emissions": round(1000 * kg, 3),
        "source": f"{account['student']['kind']} by Stillhouse",
        "training_type": "distillation",
        **({"geographical_location": recipe.energy.country} if recipe.energy.country else {}),
        **({"hardware_used": hardware} if hardware else {}),
    }


def _known(value: float | None, show: Callable[[float], str]) -> str:
    return UNKNOWN if value is None else show(value)


def _cell(text: str) -> Cell:
    return Cell(text, is_missing=text == UNKNOWN)
