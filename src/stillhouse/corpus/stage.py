"""The stage prepare: the recipe's text -> corpus/ and tokens/."""

from typing import TYPE_CHECKING

from stillhouse.stages.stage import Stage

if TYPE_CHECKING:
    from stillhouse.runs.manifest import Inputs
    from stillhouse.stages.check import RecipeCheck
    from stillhouse.stages.context import StageContext


def check(check: "RecipeCheck") -> None:
    """The files that the sources name exist; hub datasets can be fetched."""
    if not check.runs("prepare"):
        return
    from stillhouse.data.documents import describe_sources
    from stillhouse.data.sources import check_access
    from stillhouse.errors import DataError
    from stillhouse.runs.manifest import read_manifest

    sources = check.recipe.text.sources
    try:
        describe_sources(check.recipe.text)
    except (OSError, ValueError) as error:  # an invalid path
        raise DataError(
            f"corpus.source {', '.join(sources)!r:.200} cannot be read "
            f"({getattr(error, 'strerror', None) or error})."
        ) from error
    if check.run is None or read_manifest(check.run.tokens) is None:
        for source in sources:
            check_access(source, "corpus.source", offline=check.offline)


def run(context: "StageContext") -> None:
    """Write corpus/ and tokens/, and warn of a teacher that hardly knows the text."""
    from stillhouse.corpus.prepare import prepare, prepare_inputs

    recipe = context.recipe
    if recipe.cleaning is not None:
        context.require(context.run.clean, "clean")
    tokenizer = context.models.start_folder if recipe.tokens.tokenizer == "teacher" else None

    def write_tokens(inputs: "Inputs") -> None:
        prepare(
            recipe,
            context.run,
            teacher_tokenizer=tokenizer,
            offline=context.offline,
            overwrite=context.overwrite,
            progress=context.reporter.say,
        )

    context.once(
        context.run.tokens,
        lambda: prepare_inputs(recipe, context.run, teacher_tokenizer=tokenizer),
        write_tokens,
    )


STAGE = Stage(
    "prepare",
    "Read the recipe's text, write corpus/ and tokens/.",
    outputs=lambda run: [run.tokens, run.corpus],
    run=run,
    check=check,
)
