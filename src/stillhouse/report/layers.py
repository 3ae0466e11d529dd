"""The importance of a teacher's layers as a bar chart, in the report and as a file."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from stillhouse.errors import DataError
from stillhouse.report.render import render
from stillhouse.report.results import SeedResult
from stillhouse.report.svg import BarChart
from stillhouse.runs.atomic import write_atomic
from stillhouse.runs.manifest import facts_of
from stillhouse.wording import counted

TITLES = {
    "influence": "Block influence of the teacher's layers",
    "greedy": "Distance from the teacher without each of its layers, in nats",
}
STYLE = (
    "text{font:12px sans-serif;fill:#6a6258}.grid{stroke:#ded7ca}.axis{stroke:#6a6258}"
    ".student{fill:#a8480f}.teacher{fill:#b5ac9f}"
)


def layer_charts(result: SeedResult) -> list[BarChart]:
    """The scores for wide and for narrow screens; none where the recipe names the layers."""
    found = facts_of(result.run.student_init).get("importance")
    if found is None:
        return []
    wide = layer_chart(found)
    return [wide, replace(wide, width=390, identifier="layers-narrow")]


def layer_chart(importance: Mapping[str, Any]) -> BarChart:
    """The score of each layer; those kept are marked."""
    kept, scores = importance["kept"], importance["scores"]
    description = (
        f"Kept {counted(len(kept), 'layer')} of {len(scores)}: {', '.join(map(str, kept))}. "
        f"Measured on {counted(importance['tokens'], 'token')}."
    )
    title = TITLES[importance["by"]]
    return BarChart(title, description, scores, kept, "layer", identifier="layers")


def write_layer_chart(importance: Mapping[str, Any], target: Path) -> None:
    """Write the chart as an SVG file.

    Raises:
        DataError: `target` cannot be written.
    """
    svg = render("bars.svg", chart=layer_chart(importance), style=STYLE)
    try:
        write_atomic(target, svg.strip().encode() + b"\n")
    except OSError as error:
        raise DataError(f"{target} cannot be written ({error.strerror}).") from error
