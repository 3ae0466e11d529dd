"""Commands about the packaged recipes, this machine, and finished runs."""

from pathlib import Path
from typing import Annotated

import typer

from stillhouse.cli.options import AsJson, print_json


def recipes(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Print this recipe.")] = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of a recipe, for editors.")
    ] = False,
) -> None:
    """List the packaged recipes, or print one to copy."""
    from stillhouse.recipe_file import recipe_names, recipe_schema, recipe_text

    if schema:
        print_json(recipe_schema())
        return
    if name is not None:
        print(recipe_text(name)[1], end="")
        return
    for recipe in recipe_names():
        first_line = recipe_text(recipe)[1].splitlines()[0].removeprefix("# ")
        print(f"{recipe:<36} {first_line}")


def doctor(
    run_dir: Annotated[
        Path | None, typer.Argument(metavar="[RUN_DIR]", help="Check this run instead.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Report what this machine can do, or which outputs of a run are intact."""
    from stillhouse.doctor import examine_machine, examine_run, print_findings

    findings = examine_machine() if run_dir is None else examine_run(run_dir)
    print_json(findings) if as_json else print_findings(findings)
    if any(finding["state"] == "damaged" for finding in findings):
        raise typer.Exit(5)
