"""The stage report: evaluation.json, scores.json and metrics.jsonl -> report.html."""

from typing import TYPE_CHECKING

from stillhouse.stages.stage import Stage

if TYPE_CHECKING:
    from stillhouse.stages.check import RecipeCheck
    from stillhouse.stages.context import StageContext


def check(check: "RecipeCheck") -> None:
    """The license is one that the teacher's allows, and the emissions of the country are known."""
    from stillhouse.report.license import check_license

    check_license(check.recipe)
    if check.recipe.energy.country is not None:
        from stillhouse.energy.account import factor_of

        factor_of(check.recipe.energy)


def run(context: "StageContext") -> None:
    """Write the report and the model cards, which are quick enough to be written each time."""
    from stillhouse.report.write import write_report

    recipe, run = context.recipe, context.run
    runs = run.of_seeds(recipe.seeds)
    context.ranks.on_rank0(lambda: write_report(recipe, run, runs))
    context.reporter.say(f"report: {run.report}")


STAGE = Stage(
    "report",
    "Write report.html and the student's model card.\n\nReads evaluation.json and metrics.jsonl.",
    outputs=lambda run: [run.report],
    run=run,
    check=check,
    applies=lambda recipe: True,
)
