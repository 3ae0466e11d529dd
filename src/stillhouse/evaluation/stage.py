"""The stage evaluate: teacher, student and controls -> evaluation.json."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from stillhouse.stages.stage import Stage

if TYPE_CHECKING:
    from stillhouse.runs.manifest import Inputs
    from stillhouse.stages.check import RecipeCheck
    from stillhouse.stages.context import StageContext


def check(check: "RecipeCheck") -> None:
    """The texts to score can be read, and the models have a perplexity."""
    if not check.runs("evaluate"):
        return
    from stillhouse.errors import DataError, RecipeError
    from stillhouse.evaluation.quality import read_text
    from stillhouse.families.registry import family_of

    if check.recipe.evaluation.zero_shot and check.recipe.tokens.language_modeling == "masked":
        raise RecipeError(
            "evaluation.zero_shot is for causal models; tokens.language_modeling is masked. Leave "
            "the key out, and fine-tune the models on tasks (`finetuning`)."
        )
    _check_data_sets(check)
    others = [name for name in check.recipe.evaluation.perplexity if name != "validation"]
    if others and family_of(check.teacher).language_modeling == "masked":
        raise RecipeError(
            f"evaluation.perplexity names {', '.join(others)}, but perplexity is a measure of "
            "causal models; of a masked one the loss on the validation split is measured. "
            "Leave the key out."
        )
    for name in others:
        if not read_text(Path(name)).split():
            raise DataError(f"{name} holds no words to score.")


def _check_data_sets(check: "RecipeCheck") -> None:
    """The data sets can be read, and a sample of them can be encoded."""
    from stillhouse.data.rows import check_file, path_of
    from stillhouse.data.sources import check_access, source_of
    from stillhouse.errors import RecipeError
    from stillhouse.evaluation.settings import data_sets_of
    from stillhouse.tasks.registry import make_task
    from stillhouse.tasks.zero_shot import LanguageModelTask, spread_sample

    for where, each in data_sets_of(check.recipe.evaluation).items():
        check_file(each.data, where)
        file = path_of(each.data, check.run.task_data if check.run else Path())
        task = make_task(each.task)
        assert isinstance(task, LanguageModelTask)
        is_remote = source_of(each.data).is_remote
        if is_remote and len(task.sources(file)) > 1:
            raise RecipeError(
                f"{where} is {each.data}, but the set is two files. Download both, and give the "
                "path of the first."
            )
        if is_remote and not file.exists():
            check_access(each.data, where, offline=check.offline)
        else:
            task = task.for_language_modeling(check.recipe.tokens.language_modeling)
            examples = task.read(file)[: each.num_examples]
            if check.tokenizer is not None:
                task.encode(spread_sample(examples), check.tokenizer)


def run(context: "StageContext") -> None:
    """Measure the models of a seed; after the last of several seeds, summarize them all."""
    from stillhouse.data.rows import fetch
    from stillhouse.evaluation.evaluate import evaluate, evaluate_inputs, summarize
    from stillhouse.evaluation.metrics.base import Cache
    from stillhouse.evaluation.settings import data_sets_of
    from stillhouse.evaluation.vocabulary import cost_of_vocabulary
    from stillhouse.runs.manifest import verify
    from stillhouse.runs.paths import RunFolder

    recipe, run, seeds = context.recipe, context.run, context.recipe.seeds
    outputs = {model: run.model(model) for model in recipe.distillation.models}
    for folder in outputs.values():
        context.require(folder, "distill")
    for where, each in data_sets_of(recipe.evaluation).items():
        copy = partial(fetch, each.data, run.task_data, where, context.reporter.say)
        context.ranks.on_rank0(partial(copy, offline=context.offline))
    teacher = context.models.teacher
    folders = {"teacher": teacher.folder, **outputs}

    def measure(inputs: "Inputs") -> None:
        for folder in (run.tokens, *outputs.values()):
            verify(folder)
        measured = context.shared.setdefault("measured", Cache())
        cut = recipe.student.vocabulary is not None and not recipe.trains_its_teacher
        whole = context.models.start_folder if cut else None
        if measured.vocabulary is None:
            measured.vocabulary = cost_of_vocabulary(recipe, run, whole, context.reporter)
        evaluate(recipe, run, folders, inputs, measured, context.reporter, whole_teacher=whole)

    context.once(
        run.evaluation,
        lambda: evaluate_inputs(recipe, run, teacher.fingerprint, outputs, context.seed),
        measure,
    )
    if len(seeds) > 1 and context.seed == seeds[-1]:
        whole = RunFolder.at(run.shared)
        context.ranks.on_rank0(lambda: summarize(recipe, whole, whole.of_seeds(seeds)))


STAGE = Stage(
    "evaluate",
    "Measure all models of a run into evaluation.json.",
    outputs=lambda run: [run.evaluation],
    run=run,
    check=check,
    needs=("distill",),
    per_seed=True,
)
