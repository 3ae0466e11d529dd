"""The page that says what each step of cleaning did to the text: clean/ -> cleaning.html."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stillhouse import units
from stillhouse.recipe import Recipe
from stillhouse.recipe_file import dump_recipe
from stillhouse.report.render import model_name, render
from stillhouse.report.svg import BarChart
from stillhouse.report.tables import Cell, Table
from stillhouse.runs.manifest import Inputs, commit_file, read_manifest
from stillhouse.runs.paths import RunFolder
from stillhouse.wording import counted

MOST_LANGUAGES = 20


@dataclass(frozen=True)
class Outcome:
    """What the head of the page says."""

    title: str
    text: str
    verdict: str = ""


def write_cleaning_report(recipe: Recipe, run: RunFolder) -> None:
    """Write `run.cleaning_report` from the manifest of `run.clean`.

    Raises:
        RunError: the manifest is damaged.
    """
    manifest = read_manifest(run.clean)
    assert manifest is not None
    facts = manifest.facts
    page = render(
        "cleaning.html",
        name=model_name(recipe, run),
        outcome=outcome(facts),
        facts=facts,
        changed={name: own for name, own in facts["steps"].items() if own["changed"]},
        steps=steps_table(facts["steps"]),
        lengths=lengths_chart(facts["text"]["lengths"]),
        languages=languages_table(facts["text"]),
        groups=groups_tables(facts["repeats"]),
        recipe_yaml=dump_recipe(recipe),
        versions=manifest.versions,
    )
    inputs = Inputs("cleaning report", {}, {"clean": manifest.fingerprint})
    commit_file(run.cleaning_report, page.encode(), inputs)


def outcome(facts: Mapping[str, Any]) -> Outcome:
    """How much of the text is left."""
    read, text = facts["read"], facts["text"]
    kept = text["documents"] / read["documents"]
    damaged = sum(read["damaged"].values())
    sentences = [
        f"{units.size_bytes(text['bytes'])} of text in {counted(text['words'], 'word')}, from "
        f"{units.size_bytes(read['bytes'])} that were read."
    ]
    if read["blank"]:
        sentences.append(f"{counted(read['blank'], 'blank document')} left out.")
    if damaged:
        sentences.append(f"{damaged:,} times something could not be read; see Reading.")
    return Outcome(
        f"{counted(text['documents'], 'document')} of {read['documents']:,} "
        f"{'is' if text['documents'] == 1 else 'are'} left ({kept:.1%})",
        " ".join(sentences),
    )


def steps_table(steps: Mapping[str, Mapping[str, Any]]) -> Table:
    """A row for each step, in the order in which they ran."""
    return Table(
        ["Documents in", "Left out", "Changed", "Text in", "Text out", "Speed, one core"],
        [(name, _cells(own)) for name, own in steps.items()],
    )


def _cells(own: Mapping[str, Any]) -> list[Cell]:
    documents, left_out = own["documents_in"], own["documents_in"] - own["documents_out"]
    share = [f"{left_out / documents:.1%}"] if documents else []
    speed = own["bytes_in"] / own["seconds"] / 1e6 if own["seconds"] else None
    rate = "" if speed is None else f"{speed:,.1f}" if speed < 100 else f"{speed:,.0f}"
    return [
        Cell(f"{documents:,}"),
        Cell(f"{left_out:,}", share),
        Cell(f"{own['changed']:,}"),
        Cell(units.size_bytes(own["bytes_in"])),
        Cell(units.size_bytes(own["bytes_out"])),
        Cell(f"{rate} MB/s") if rate else Cell("", is_missing=True),
    ]


def lengths_chart(lengths: Mapping[str, int]) -> BarChart | None:
    """Documents by their number of words, in classes of powers of two."""
    if not lengths:
        return None
    classes = range(min(map(int, lengths)), max(map(int, lengths)) + 1)
    values = [float(lengths.get(str(number), 0)) for number in classes]
    return BarChart(
        "Documents by length",
        f"Number of documents by their number of words, from {2 ** classes[0]:,} up",
        values,
        marked=range(len(values)),
        x_label="words, each class up to twice as many",
        identifier="lengths",
        labels=[units.count(2**number).replace(" ", "") for number in classes],
    )


def languages_table(text: Mapping[str, Any]) -> Table | None:
    """Documents by language, where a step has found it."""
    languages = text["languages"]
    if {*languages} <= {"unknown"}:
        return None
    return Table(
        ["Documents", "Share"],
        [
            (code, [Cell(f"{number:,}"), Cell(f"{number / text['documents']:.1%}")])
            for code, number in [*languages.items()][:MOST_LANGUAGES]
        ],
    )


def groups_tables(repeats: Mapping[str, Mapping[str, Any]]) -> dict[str, Table]:
    """For each step that compares documents, how many groups have which size."""
    return {
        name: Table(
            ["Groups", "Removed"],
            [
                (
                    f"{int(size):,} alike",
                    [Cell(f"{number:,}"), Cell(f"{number * (int(size) - 1):,}")],
                )
                for size, number in own["group_sizes"].items()
            ],
        )
        for name, own in repeats.items()
        if own["group_sizes"]
    }
