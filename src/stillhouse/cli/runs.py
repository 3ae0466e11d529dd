"""Commands that run a recipe or check one, list recipes, and examine this machine or a run."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import typer

from stillhouse.cli.options import (
    AsJson,
    Device,
    Offline,
    Overrides,
    Overwrite,
    RecipeName,
    RunDir,
    print_json,
)
from stillhouse.errors import OptionError, RecipeError


def quickstart(
    run_dir: RunDir = None,
    overrides: Overrides = None,
    overwrite: Overwrite = "",
    device: Device = None,
) -> None:
    """Distil the packaged teacher on this machine's own text.

    Needs no download. Writes student, control, table and report into the run folder, and prints the
    table."""
    _run_stages("quickstart", run_dir, overrides, overwrite, offline=True)


def run(
    recipe: RecipeName,
    run_dir: RunDir = None,
    overrides: Overrides = None,
    until: Annotated[
        str | None, typer.Option(metavar="STAGE", help="Stop after this stage.")
    ] = None,
    offline: Offline = False,
    overwrite: Overwrite = "",
    device: Device = None,
) -> None:
    """Run a recipe's stages in order, from text to report.

    Outputs that are up to date are left alone; re-running resumes where a run stopped. Writes the
    run folder: tokens, student, control,
    evaluation.json and report.html."""
    _run_stages(recipe, run_dir, overrides, overwrite, offline=offline, until=until)


def check(
    recipe: RecipeName,
    run_dir: RunDir = None,
    overrides: Overrides = None,
    offline: Offline = False,
    as_json: AsJson = False,
    device: Device = None,
) -> None:
    """Check a recipe, and estimate its models, time and memory.

    Reads configurations, task files and a part of the text; writes nothing.
    """
    from stillhouse.recipe_file import load_recipe

    name, parsed = load_recipe(recipe, overrides or [])  # before the imports that take seconds
    from stillhouse.check import check_recipe, print_check
    from stillhouse.runs.paths import RunFolder

    run = RunFolder.at(run_dir or Path("runs") / name)
    with _naming(recipe):
        result = check_recipe(name, parsed, offline=offline, run=run)
    print_json(result) if as_json else print_check(result)


def verify(
    recipe: RecipeName,
    overrides: Overrides = None,
    offline: Offline = False,
    as_json: AsJson = False,
) -> None:
    """Check a recipe's losses on its own teacher and text, against independent references.

    Reads the first documents; takes about a minute; writes to a temporary folder only. Exits with 1
    if a check fails.
    """
    from stillhouse.recipe_file import load_recipe

    name, parsed = load_recipe(recipe, overrides or [])  # before the imports that take seconds
    from stillhouse.verification.verify import print_checks, verify_recipe

    with _naming(recipe):
        result = verify_recipe(name, parsed, offline=offline)
    print_json(result) if as_json else print_checks(result)
    if result["failed"]:
        raise typer.Exit(1)


def stage_command(name: str) -> Callable[..., None]:
    """The command of one stage."""

    def command(
        recipe: RecipeName,
        run_dir: RunDir = None,
        overrides: Overrides = None,
        offline: Offline = False,
        overwrite: Overwrite = "",
        device: Device = None,
    ) -> None:
        _run_stages(recipe, run_dir, overrides, overwrite, offline=offline, only=name)

    return command


def clean(
    recipe: RecipeName,
    run_dir: RunDir = None,
    overrides: Overrides = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; by default one for each core.")
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Clean only part I of N (0/N to N-1/N), as one of several jobs; the command "
            "without it then finishes the work.",
        ),
    ] = None,
    offline: Offline = False,
    overwrite: Overwrite = "",
) -> None:
    overrides = [*(overrides or []), *([f"cleaning.workers={workers}"] if workers else [])]
    if shard is None:
        _run_stages(recipe, run_dir, overrides, overwrite, offline=offline, only="clean")
        return
    from stillhouse.recipe_file import load_recipe

    name, parsed = load_recipe(recipe, overrides)
    from stillhouse.cleaning.stage import run_share
    from stillhouse.runs.paths import RunFolder

    folder = RunFolder.at(run_dir or Path("runs") / name)
    with _naming(recipe):
        run_share(parsed, folder, shard, offline=offline)


@contextmanager
def _naming(recipe: str) -> Iterator[None]:
    """Errors in a recipe name its file, whether its parser or a stage finds them; those in options
    do not."""
    try:
        yield
    except OptionError:
        raise
    except RecipeError as error:
        raise RecipeError(f"{recipe}: {error}") from error


def _run_stages(
    recipe: str,
    run_dir: Path | None,
    overrides: list[str] | None,
    overwrite: str,
    *,
    offline: bool,
    only: str | None = None,
    until: str | None = None,
) -> None:
    from stillhouse.machine import sharing_cores
    from stillhouse.recipe_file import load_recipe

    name, parsed = load_recipe(recipe, overrides or [])
    from stillhouse.pipeline import Pipeline
    from stillhouse.runs.paths import RunFolder
    from stillhouse.stages.stage import stages_named, stages_until
    from stillhouse.training.progress import ConsoleReporter, QuietReporter
    from stillhouse.training.ranks import init_distributed

    stages = (only,) if only else stages_until(until)
    removed = stages_named(overwrite)
    folder = RunFolder.at(run_dir or Path("runs") / name)
    with sharing_cores(), init_distributed() as ranks:
        reporter = ConsoleReporter() if ranks.is_first else QuietReporter()
        pipeline = Pipeline(parsed, folder, reporter, ranks, offline, removed)
        with _naming(recipe):
            pipeline.run_stages(stages)
        if ranks.is_first and (text := pipeline.summary(stages)):
            print(text)


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


def watch(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Folder of a run.")],
    browser: Annotated[
        bool, typer.Option("--browser", help="Show a page in the browser instead.")
    ] = False,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Serve that page here, without opening a browser."),
    ] = None,
) -> None:
    """Watch a run: stage, steps, time left, speed and losses, until it ends.

    Reads the run folder only, from any terminal, before, during and after the run. Ctrl-C leaves
    the run alone. The page is served on this machine only.
    """
    with suppress(KeyboardInterrupt):
        if browser or port is not None:
            from stillhouse.watch.serve import serve

            serve(run_dir, port or 0, open_browser=browser)
        else:
            from stillhouse.watch.show import watch as show

            show(run_dir)


def compare_runs(
    folders: Annotated[
        list[Path], typer.Argument(metavar="RUN_DIR...", help="Folders of two or more runs.")
    ],
    as_json: AsJson = False,
) -> None:
    """Compare the students of several runs, and what their recipes do differently.

    Medians over seeds. Where two students were scored on the same text, the difference of their
    losses has its paired 95 % interval.
    """
    from stillhouse.report import runs_compared

    runs = runs_compared.read_runs(folders)
    found = runs_compared.compare_runs(runs)
    print_json(found) if as_json else runs_compared.print_comparison(runs, found)


def energy(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Folder of a run.")],
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """What a run took: energy, emissions and cost of each stage, and of generation.

    Power is measured by counters while a run runs (extra energy), or taken from energy.watts, which
    may be given afterwards, as emissions and prices may: --set energy.watts=65.
    """
    from stillhouse.energy.account import as_json as account_of
    from stillhouse.recipe_file import load_recipe
    from stillhouse.runs.paths import RunFolder

    run = RunFolder.at(run_dir)
    _, recipe = load_recipe(str(run.recipe), overrides or [])
    found = account_of(recipe.energy, run.of_seeds(recipe.seeds)[0])
    if as_json:
        print_json(found)
        return
    from stillhouse.report.energy import print_account

    print_account(recipe, found)


def push(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Folder of a finished run.")],
    name: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Model on the hub.")],
    seed: Annotated[
        int | None, typer.Option(help="Of several seeds the one to upload; by default the first.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what would be uploaded, without the network.")
    ] = False,
) -> None:
    """Upload a run's student to the Hugging Face hub.

    The model with its card, and measurements.json, where the card's numbers come from. A new
    repository is private unless --public is given.
    """
    from stillhouse.export import push as uploads
    from stillhouse.recipe_file import load_recipe
    from stillhouse.runs.paths import RunFolder

    uploads.check_name(name)
    run = RunFolder.at(run_dir)
    _, recipe = load_recipe(str(run.recipe), [])
    if seed is not None and seed not in recipe.seeds:
        raise OptionError(f"--seed is {seed}; the run has {', '.join(map(str, recipe.seeds))}.")
    runs = dict(zip(recipe.seeds, run.of_seeds(recipe.seeds), strict=True))
    own = runs[recipe.seeds[0] if seed is None else seed]
    files = uploads.files_of(own)
    if dry_run:
        uploads.print_files(files, name)
    else:
        print(uploads.push(own.student, files, name, public=public))


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
