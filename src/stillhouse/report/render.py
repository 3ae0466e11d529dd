"""Templates of the report: HTML pages without scripts or outside resources, and Markdown cards.

Every value is escaped: in HTML by Jinja2, in Markdown by `escape_markdown`.
"""

import shlex
from collections.abc import Mapping
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from stillhouse import units
from stillhouse.recipe import Recipe
from stillhouse.report.results import label_of
from stillhouse.runs.paths import RunFolder
from stillhouse.wording import counted


def render(template: str, **values: Any) -> str:
    """A template of `report/templates` as text."""
    return _environment(template.endswith(".md")).get_template(template).render(values)


@cache
def _environment(is_markdown: bool) -> Environment:
    environment = Environment(
        loader=PackageLoader("stillhouse.report"),
        autoescape=True,
        finalize=escape_markdown if is_markdown else None,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "counted": counted,
        "label": label_of,
        "plain": plain,
        "tokens": units.tokens,
        "words": words,
    }
    return environment


def escape_markdown(value: Any) -> Any:
    """Text that Markdown shows verbatim: no tags, no table cells, no line breaks."""
    if hasattr(value, "__html__"):
        return value
    escaped = str(value).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
    return Markup(" ".join(escaped.split()))


def words(key: str) -> str:
    """A key as words: perplexity_block -> Perplexity block, memory_bytes -> Memory."""
    text = key.removesuffix("_bytes").replace("_", " ")
    return "GPUs" if text == "gpus" else text[:1].upper() + text[1:]


def plain(key: str, value: Any) -> str:
    """A fact as one line of text; unset values of a mapping are omitted."""
    if key.endswith("_bytes") and isinstance(value, (int, float)):
        return units.size_bytes(value)
    if isinstance(value, Mapping):
        given = {name: plain(str(name), each) for name, each in value.items() if each is not None}
        return "; ".join(f"{words(str(name))}: {each}" for name, each in given.items() if each)
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    return "unknown" if value is None else str(value)


def model_name(recipe: Recipe, run: RunFolder) -> str:
    """The name in the recipe, or the run folder's."""
    return recipe.report.model_name or run.shared.resolve().name


def command_line(recipe_file: str, run_dir: str) -> str:
    """The command that reproduces this run."""
    return f"stillhouse run {shlex.quote(recipe_file)} --run-dir {shlex.quote(run_dir)}"
