"""The model card of a run's student, each of its measured numbers a link to the measurement.

    python -m benchmarks.card RUN NAME

Each number of the measurements is
changed alone, the card is rendered again, and the numbers of the card that change come from
it; a ratio or a difference leads to the last of its two. Writes docs/results/model-cards/NAME.md,
and the measurements that it shows to NAME-measurements.md.
"""

import argparse
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stillhouse.errors import StillhouseError
from stillhouse.recipe import Recipe
from stillhouse.recipe_file import load_recipe
from stillhouse.report.cards import measurements, model_card, task_card, task_measurements
from stillhouse.report.render import model_name
from stillhouse.report.results import read_results
from stillhouse.report.tasks import read_tasks
from stillhouse.runs.manifest import MANIFEST, fingerprint
from stillhouse.runs.paths import RunFolder

PAGES = Path(__file__).parents[1] / "docs" / "results" / "model-cards"
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e-?\d+)?")
END = "## Reproducing"  # after it only the recipe
FACTORS = (1.3, 0.8, 1.01, 0.99, 2.0, 1.0001)  # the first that changes a number, not the sentences
Leaf = tuple[str | int, ...]


@dataclass(frozen=True)
class Source:
    """A card and its measurements as a function of the JSON files that they are made from."""

    files: Mapping[str, Any]
    render: Callable[[Mapping[str, Any]], tuple[str, dict[str, Any]]]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.card",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("name", help="of the pages")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--task", help="a task of the run, with --model")
    parser.add_argument("--model", help="a model of the task")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        try:
            _, recipe = load_recipe(str(options.run / "recipe.yaml"), options.set)
            model = (options.task, options.model)
            source = source_of(recipe, options.run, Path(folder), model)
        except StillhouseError as error:
            print(error, file=sys.stderr)
            return error.exit_code
        card, shown = linked(source, f"{options.name}-measurements.md")
    PAGES.mkdir(exist_ok=True)
    (PAGES / f"{options.name}.md").write_text(card, encoding="utf-8")
    page = measurement_page(options.name, shown)
    (PAGES / f"{options.name}-measurements.md").write_text(page, encoding="utf-8")
    return 0


def source_of(
    recipe: Recipe, folder: Path, copy: Path, model: tuple[str | None, str | None]
) -> Source:
    """The card of a run's first seed, or of a model of a task.

    Args:
        copy: An empty folder for the files that are changed.
        model: The task and the name of its model; None for the run's student.
    """
    run, (task, name) = RunFolder.at(folder), model
    seeds = run.of_seeds(recipe.seeds)
    first = seeds[0]
    for path in sorted(first.path.rglob(f"*{MANIFEST}")):
        target = copy / path.relative_to(first.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    own = RunFolder.at(copy)
    if task is None:
        results = read_results(recipe, seeds)
        manifest = own.student / MANIFEST
        files = {"evaluation": results[0].evaluation, "manifest": json.loads(manifest.read_text())}

        def render(files: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
            _write_manifest(manifest, files["manifest"])
            result = replace(results[0], run=own, evaluation=files["evaluation"])
            found = [result, *results[1:]]
            return model_card(recipe, run, found, result), measurements(recipe, found, result)

        return Source(files, render)
    return _task_source(recipe, run, seeds, own, task, name or "")


def _task_source(
    recipe: Recipe, run: RunFolder, seeds: list[RunFolder], own: RunFolder, task: str, model: str
) -> Source:
    (found,) = (each for each in read_tasks(recipe, seeds) if each.name == task)
    manifest = own.finetuned(task) / model / MANIFEST
    name, seed = model_name(recipe, run), recipe.seeds[0]

    def render(files: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        _write_manifest(manifest, files["manifest"])
        changed = replace(found, scores=[files["scores"], *found.scores[1:]])
        card = task_card(recipe, name, changed, seed, own, model)
        return card, task_measurements(recipe, changed, seed, own, model)

    return Source({"scores": found.scores[0], "manifest": json.loads(manifest.read_text())}, render)


def linked(source: Source, page: str) -> tuple[str, dict[str, Any]]:
    """The card with links to `page`, and the measurements that it shows, by path."""
    card, measured = source.render(source.files)
    text, rest = _body(card)
    spans = [match.span() for match in NUMBER.finditer(text)]
    before = dict(_leaves(measured))
    origin: dict[int, str] = {}
    for leaf, value in list(_leaves(source.files)):
        for factor in FACTORS:
            other, changed = source.render(_with(source.files, leaf, value, factor))
            if other == card:
                break  # it is not shown
            numbers = NUMBER.findall(_body(other)[0])
            if len(numbers) != len(spans):
                continue  # another sentence
            now = dict(_leaves(changed))
            moved = [path for path in before if now.get(path) != before[path]]
            for place, (span, number) in enumerate(zip(spans, numbers, strict=True)):
                if text[slice(*span)] != number and moved:
                    origin[place] = _dotted(moved[0])
            break
    pieces, at = [], 0
    for place, (start, end) in enumerate(spans):
        if place in origin:
            pieces += [text[at:start], f"[{text[start:end]}]({page}#{_anchor(origin[place])})"]
            at = end
    shown = {_dotted(path): value for path, value in before.items()}
    kept = {path: shown[path] for path in dict.fromkeys(origin.values())}
    return "".join([*pieces, text[at:], rest]), kept


def _body(card: str) -> tuple[str, str]:
    """A card without the front matter, and its end, which has no measurements."""
    text, end, rest = card.split("---\n", 2)[2].lstrip().partition(END)
    return text, end + rest


def measurement_page(name: str, shown: Mapping[str, Any]) -> str:
    """The measurements behind a card, each with an anchor."""
    lines = [
        f"# Measurements of {name}",
        "",
        f"What the numbers of [the card]({name}.md) come from: their paths in the student's "
        "`measurements.json`, and their values.",
        "",
        "| path | value |",
        "|---|---|",
        *(
            f'| <a id="{_anchor(path)}"></a>`{path}` | {json.dumps(value)} |'
            for path, value in sorted(shown.items())
        ),
    ]
    return "\n".join(lines) + "\n"


def _leaves(value: Any, path: Leaf = ()) -> Iterator[tuple[Leaf, float]]:
    """The numbers of nested mappings and lists."""
    if isinstance(value, dict):
        for key, own in value.items():
            yield from _leaves(own, (*path, key))
    elif isinstance(value, list):
        for place, own in enumerate(value):
            yield from _leaves(own, (*path, place))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path, value


def _with(files: Mapping[str, Any], leaf: Leaf, value: float, factor: float) -> dict[str, Any]:
    """The files with one number times a factor; counts stay whole."""
    changed = deepcopy(dict(files))
    holder: Any = changed
    for key in leaf[:-1]:
        holder = holder[key]
    holder[leaf[-1]] = int(value * factor) if isinstance(value, int) else value * factor
    return changed


def _write_manifest(path: Path, content: Mapping[str, Any]) -> None:
    """A manifest whose digest fits, as one that was written with these facts."""
    data = {key: own for key, own in content.items() if key != "digest"}
    path.write_text(json.dumps(data | {"digest": fingerprint(data)}), encoding="utf-8")


def _dotted(path: Leaf) -> str:
    return ".".join(map(str, path))


def _anchor(path: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", path.lower()).strip("-")


if __name__ == "__main__":
    sys.exit(main())
