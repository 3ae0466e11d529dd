"""The command line: one command per stage, and those that use a student.

Results go to stdout, progress and errors to stderr. Each command imports what it needs when it
runs, so that `--help` answers at once."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from stillhouse.cli import inspection, models, runs, serving, text
from stillhouse.stages.stage import STAGES, stage_named


class Commands(TyperGroup):
    """The commands; an unknown option gets the same kind of suggestion as an unknown command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        with _suggesting():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        with _suggesting():
            return super().invoke(ctx)


@contextmanager
def _suggesting() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if options := getattr(error, "possibilities", None):
            nearest = ", ".join(repr(option) for option in sorted(options))
            error.message += f". Did you mean {nearest}?"  # pyright: ignore[reportAttributeAccessIssue]
            error.possibilities = None  # pyright: ignore[reportAttributeAccessIssue]
        raise


app = typer.Typer(
    cls=Commands,
    name="stillhouse",
    help="Distil a language model into a smaller, faster one, and measure what it kept.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def _main(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        from stillhouse import __version__

        print(__version__)
        raise typer.Exit


for _command in (runs.quickstart, runs.run, runs.check, runs.verify):
    app.command()(_command)
for _name in STAGES:
    _command = runs.clean if _name == "clean" else runs.stage_command(_name)
    app.command(_name, help=stage_named(_name).help)(_command)
for _command in (
    text.links,
    models.importance,
    models.compare,
    models.score,
    models.predict,
    models.generate,
    serving.serve,
    serving.write,
    models.export,
    models.features,
    inspection.inspect,
    inspection.inspect_text,
    inspection.inspect_student,
    models.detect,
    models.fit_detector,
    runs.recipes,
    runs.watch,
    runs.compare_runs,
    runs.energy,
    runs.push,
    runs.doctor,
):
    app.command()(_command)
