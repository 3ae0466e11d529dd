"""The stage clean: the recipe's text -> clean/ and cleaning.html, where the recipe cleans it."""

import re
import sys
from typing import TYPE_CHECKING

from stillhouse.stages.stage import Stage

if TYPE_CHECKING:
    from stillhouse.recipe import Recipe
    from stillhouse.runs.manifest import Inputs
    from stillhouse.runs.paths import RunFolder
    from stillhouse.stages.check import RecipeCheck
    from stillhouse.stages.context import StageContext


def applies(recipe: "Recipe") -> bool:
    return recipe.cleaning is not None


def check(check: "RecipeCheck") -> None:
    """What the steps need is installed, and the files that they name exist."""
    recipe = check.recipe.cleaning
    if not check.runs("clean") or recipe is None:
        return
    from stillhouse.cleaning.job import named_files
    from stillhouse.cleaning.steps import STEPS
    from stillhouse.extras import require

    for name in recipe.steps():
        if modules := STEPS[name].modules:
            require("text", *modules, purpose=f"cleaning.{name}")
    if recipe.executor == "ray":
        require("ray", "ray", purpose="cleaning.executor ray")
    named_files(recipe)


def run_share(recipe: "Recipe", run: "RunFolder", share: str, *, offline: bool) -> None:
    """Clean one of several shares of the text, without the lock of the run, which others clean at
    the same time.

    Args:
        share: Its number and theirs, such as 3/10; the first is 0.

    Raises:
        OptionError: no such share.
        RecipeError: the recipe does not clean its text.
    """
    from stillhouse.cleaning.clean import clean_share
    from stillhouse.cleaning.job import Cleaning
    from stillhouse.errors import OptionError, RecipeError
    from stillhouse.runs.atomic import explained_os_errors
    from stillhouse.stages.check import RecipeCheck

    found = re.fullmatch(r"(\d+)/(\d+)", share)
    if found is None or not int(found[1]) < int(found[2]):
        raise OptionError(f"--shard {share}: give I/N with I from 0 to N - 1, such as 0/8.")
    if recipe.cleaning is None:
        raise RecipeError("The recipe does not clean its text: it has no section `cleaning`.")
    check(RecipeCheck(recipe, ["clean"], offline, run))
    cleaning = Cleaning.of(run.clean, recipe.text, recipe.cleaning, offline=offline)
    with explained_os_errors(run.clean):
        clean_share(
            cleaning, int(found[1]), int(found[2]), lambda line: print(line, file=sys.stderr)
        )


def run(context: "StageContext") -> None:
    """Write clean/ and its report."""
    from stillhouse.cleaning.clean import clean
    from stillhouse.cleaning.job import Cleaning

    recipe = context.recipe
    assert recipe.cleaning is not None
    cleaning = Cleaning.of(context.run.clean, recipe.text, recipe.cleaning, offline=context.offline)

    def say(sentence: str) -> None:
        context.reporter.say(f"clean: {sentence}")

    def work(inputs: "Inputs") -> None:
        clean(cleaning, say, overwrite=context.overwrite)

    context.once(context.run.clean, lambda: cleaning.inputs, work)
    context.ranks.on_rank0(lambda: finish(context))


def finish(context: "StageContext") -> None:
    """Remove what a finished folder was made from, and say where its report is."""
    from stillhouse.cleaning.clean import remove_work
    from stillhouse.report.cleaning import write_cleaning_report

    remove_work(context.run.clean)
    if context.run.clean in context.written or not context.run.cleaning_report.exists():
        write_cleaning_report(context.recipe, context.run)
        context.reporter.say(f"clean: {context.run.cleaning_report}")


STAGE = Stage(
    "clean",
    "Clean the recipe's text: filters, deduplication. Writes clean/ and its report.",
    outputs=lambda run: [run.clean, run.cleaning_report],
    run=run,
    check=check,
    applies=applies,
)
