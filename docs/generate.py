"""Writes the pages of PAGES from the code, and the tables of TABLES into their pages. With --check
it only reports pages that are out of date."""

import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer
from api import integrations, model_methods, package_functions
from bias_results import bias_table
from cache_results import cache_table
from cards import cards, leaderboard
from cleaning_results import (
    extraction_table,
    language_table,
    projection_table,
    reading_table,
    runs_table,
    scaling_line,
    step_speed_table,
    worst_table,
)
from deduplication_results import deduplication_tables
from detect_results import detect_table, roc_picture, single_table
from exit_codes import exit_code_table
from laws import law_table
from losses import loss_list
from multilingual_results import multilingual_table
from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from site_index import decision_list, llms_page
from speed import serving_table, speed_table
from words import NAMES, PHRASES, renamed_table

from families import decoder_table, encoder_table, law_list
from faults import fault_table
from real_teacher import real_teacher_summary, real_teacher_table
from stillhouse.cli import app
from stillhouse.data.formats import SUFFIXES
from stillhouse.distillation.settings import PRESETS
from stillhouse.extras import EXTRAS, install_command
from stillhouse.families.settings import FAMILY_NAMES
from stillhouse.objectives.settings import LossesRecipe
from stillhouse.recipe import Recipe
from stillhouse.recipe_file import recipe_names, recipe_text

DOCS = Path(__file__).parent


def cli_page() -> str:
    """Every command with its arguments and options."""
    group = typer.main.get_command(app)
    lines = [
        "# The command line",
        "",
        "Every command with its arguments and options, generated from the code by `make docs`.",
        "",
    ]
    for name, command in group.commands.items():  # pyright: ignore[reportAttributeAccessIssue]
        context = typer.Context(command, info_name=f"stillhouse {name}")
        lines += [f"## `stillhouse {name}`", "", command.help or "", ""]
        lines += ["```", *command.get_usage(context).splitlines(), "```", ""]
        rows = [parameter.get_help_record(context) for parameter in command.get_params(context)]
        kept = [row for row in rows if row and "--help" not in row[0]]
        if kept:
            lines += ["| | |", "|---|---|"]
            lines += [f"| `{_cell(names)}` | {_cell(text)} |" for names, text in kept]
            lines.append("")
    return "\n".join(lines)


def recipe_page() -> str:
    """Every key of a recipe with its type and default, and the packaged recipes."""
    lines = [
        "# The recipe",
        "",
        "Every key of a recipe with its type and default, generated from the code by `make docs`.",
        "Unknown keys are rejected.",
        "`stillhouse recipes --schema` prints the JSON schema, for editors.",
        "",
        "| key | type | default | |",
        "|---|---|---|---|",
        *_rows(Recipe, ""),
        "",
        "## Presets of `distillation`",
        "",
        *(f"- `{name}`: `{values}`" for name, values in PRESETS.items()),
        "",
        "## Packaged recipes",
        "",
    ]
    lines += [
        f"- `{name}`: {recipe_text(name)[1].splitlines()[0].removeprefix('# ')}"
        for name in recipe_names()
    ]
    return "\n".join(lines) + "\n"


def _rows(
    section: type[BaseModel],
    prefix: str,
    in_force: BaseModel | None = None,
    above: Sequence[str] = (),
) -> list[str]:
    """The keys of a section.

    Args:
        in_force: The value of a section that a recipe leaves out, which a preset may have filled.
        above: Rows of the form of the section that is listed above; parts that both have are not
            repeated.
    """
    rows: list[str] = []
    for name, field in section.model_fields.items():
        inner = _sections(field.annotation)
        key = f"{prefix}{name}"
        by_name = getattr(field.annotation, "__origin__", None) is dict and bool(inner)
        others = ["by name"] if by_name else _other_types(field.annotation)
        default = field.get_default(call_default_factory=True, validated_data={})
        if in_force is not None and not inner:
            default = getattr(in_force, name)
        shown = (
            ""
            if default is PydanticUndefined or isinstance(default, BaseModel)
            else f"`{_plain(default)}`"
        )
        if not inner or others:
            kind, text = _cell(", ".join(others) or "value"), _cell(field.description or "")
            rows.append(f"| `{key}` | {kind} | {shown} | {text} |")
        form: list[str] = []
        for each in inner:
            known = default if isinstance(default, each) else None
            part = each, f"{key}.NAME." if by_name else f"{key}.", known
            is_above = {*_rows(*part)} <= {*above}
            if not each.model_fields:
                form = [f"| `{key}` | section | | {_cell(field.description or '')} |"]
            else:
                form = [f"| `{key}.*` | | | As above. |"] if is_above else _rows(*part, form)
            rows += form
    return rows


def _plain(default: Any) -> Any:
    """A default as a recipe would write it, without the keys that equal their own default."""
    if isinstance(default, BaseModel):
        return default.model_dump(exclude_defaults=True)
    if isinstance(default, dict):
        return {name: _plain(value) for name, value in default.items()}
    return default


def _sections(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [found for part in getattr(annotation, "__args__", ()) for found in _sections(part)]


def _other_types(annotation: Any) -> list[str]:
    """Readable names of the plain types and literal values in an annotation."""
    if isinstance(annotation, type) and not hasattr(annotation, "__args__"):
        plain = not issubclass(annotation, (BaseModel, type(None)))
        return [annotation.__name__] if plain else []
    if isinstance(annotation, (str, bool, int)):
        return [repr(annotation) if isinstance(annotation, bool) else str(annotation)]
    origin = getattr(annotation, "__origin__", None)
    inner = [name for part in getattr(annotation, "__args__", ()) for name in _other_types(part)]
    if origin is dict:
        return [f"mapping to {' or '.join(_other_types(annotation.__args__[-1]))}"]
    if origin in (list, tuple):
        return [f"{origin.__name__} of {' or '.join(dict.fromkeys(inner))}"]
    return list(dict.fromkeys(inner))


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def format_table() -> str:
    """The file formats, and what a corpus and tasks make of each."""
    lines = ["| suffix | corpus | tasks, `score`, `predict` |", "|---|---|---|"]
    for format in dict.fromkeys(SUFFIXES.values()):
        suffixes = " ".join(f"`{suffix}`" for suffix in format.suffixes)
        lines.append(f"| {suffixes} | {_cell(format.documents)} | {_cell(format.rows)} |")
    return "\n".join(lines)


def extras_table() -> str:
    """The optional dependencies: what each is for, and the command that installs it."""
    rows = [f"| {extra.purpose} | `{install_command(name)}` |" for name, extra in EXTRAS.items()]
    return "\n".join(["| for | install |", "|---|---|", *rows])


def losses_and_families() -> str:
    """The names of the losses and of the families, in sentences."""
    lists = {"Losses": LossesRecipe.model_fields, "Families": FAMILY_NAMES}
    text = " ".join(
        f"{title}: {', '.join(f'`{name}`' for name in names)}." for title, names in lists.items()
    )
    return textwrap.fill(text, 130)


TABLES = (
    ("README.md", "real teacher", real_teacher_summary),
    ("README.md", "speed", lambda: speed_table("benchmarks/results")),
    ("README.md", "losses", losses_and_families),
    ("docs/concepts/objectives.md", "losses", loss_list),
    ("docs/concepts/teacher-cache.md", "cache", cache_table),
    ("docs/contributing/decisions/README.md", "decisions", decision_list),
    ("docs/guides/bias.md", "bias", bias_table),
    ("docs/guides/corpus.md", "throughput", step_speed_table),
    ("docs/guides/corpus.md", "runs", runs_table),
    ("docs/guides/corpus.md", "scaling", scaling_line),
    ("docs/guides/corpus.md", "projection", projection_table),
    ("docs/guides/corpus.md", "extraction", extraction_table),
    ("docs/guides/corpus.md", "worst pages", worst_table),
    ("docs/guides/corpus.md", "languages", language_table),
    ("docs/guides/corpus.md", "reading", reading_table),
    ("docs/guides/corpus.md", "deduplication", deduplication_tables),
    ("docs/guides/corpus.md", "multilingual", multilingual_table),
    ("docs/guides/cutting.md", "real teacher", real_teacher_table),
    ("docs/guides/data.md", "formats", format_table),
    ("docs/concepts/correctness.md", "laws", law_table),
    ("docs/reference/families.md", "laws", law_list),
    ("docs/reference/families.md", "decoders", decoder_table),
    ("docs/reference/families.md", "encoders", encoder_table),
    ("docs/contributing/renamed.md", "names", lambda: renamed_table(NAMES)),
    ("docs/contributing/renamed.md", "phrases", lambda: renamed_table(PHRASES)),
    ("docs/results/reliability.md", "faults", fault_table),
    ("docs/start/quickstart.md", "extras", extras_table),
    ("docs/results/cards.md", "cards", cards),
    ("docs/results/cards.md", "leaderboard", leaderboard),
    ("docs/results/speed.md", "training", lambda: speed_table("../../benchmarks/results")),
    ("docs/results/speed.md", "serving", serving_table),
    ("docs/reference/api.md", "functions", package_functions),
    ("docs/reference/api.md", "models", model_methods),
    ("docs/reference/api.md", "integrations", integrations),
    ("docs/reference/exit-codes.md", "codes", exit_code_table),
    ("docs/guides/detect.md", "rates", detect_table),
    ("docs/guides/detect.md", "single features", single_table),
)


def with_table(text: str, name: str, table: str) -> str:
    """The text of a page with a fresh table between the two marks of that name.

    Raises:
        ValueError: The text lacks one of the marks.
    """
    begin, end = f"<!-- begin of {name}, by make docs -->", f"<!-- end of {name} -->"
    if begin not in text or end not in text:
        raise ValueError(f"There is no {begin} ... {end} on the page.")
    before, after = text.partition(begin)[0], text.partition(end)[2]
    return f"{before}{begin}\n{table}\n{end}{after}"


def main() -> None:
    reference = DOCS / "reference"
    pages = {reference / "cli.md": cli_page(), reference / "recipe.md": recipe_page()}
    for name, mark, table in TABLES:
        page = DOCS.parent / name
        text = pages.get(page) or page.read_text(encoding="utf-8")
        pages[page] = with_table(text, mark, table())
    pages[DOCS / "llms.txt"] = llms_page(pages)
    pages[DOCS / "pages" / "detect-roc.svg"] = roc_picture()
    if "--check" in sys.argv:
        stale = [
            str(page)
            for page, text in pages.items()
            if not page.exists() or page.read_text() != text
        ]
        if stale:
            sys.exit(f"{', '.join(stale)} is out of date; run `make docs`.")
        return
    for page, text in pages.items():
        page.write_text(text)


if __name__ == "__main__":
    main()
