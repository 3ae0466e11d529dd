"""A model's scores on a task, without a run: by the task's own metrics with their confidence
intervals, or by EleutherAI's lm-evaluation-harness (extra `lm-eval`), in this process.
"""

import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from stillhouse import terminal
from stillhouse.data.rows import PACKAGED
from stillhouse.errors import DataError, ModelError, RecipeError
from stillhouse.extras import require
from stillhouse.families.registry import family_of
from stillhouse.inference.load import load_for_task
from stillhouse.inference.quantization import load_at_precision
from stillhouse.inference.task_model import TaskModel, task_model
from stillhouse.machine import describe_machine, library_versions, source_commit
from stillhouse.models.folder_check import load_config, load_model_tokenizer
from stillhouse.models.hub import resolve_folder
from stillhouse.models.load import load_model
from stillhouse.recipe_file import parse_task
from stillhouse.runs.manifest import sha256_of
from stillhouse.section import recipe_part
from stillhouse.tasks.bias_sets import find_sets
from stillhouse.tasks.metrics import format_score, metric_label, score_digits
from stillhouse.tasks.registry import task_of_model
from stillhouse.tasks.settings import TaskRecipe
from stillhouse.tasks.task import check_measurable
from stillhouse.training.device import pick_device
from stillhouse.wording import counted, numbered_rows


def score_model(
    name: str, folder: Path, recipe: TaskRecipe, data: Path, *, precision: str = "fp32"
) -> dict[str, Any]:
    """The metrics of a task on a file of examples.

    Args:
        name: The model's name in the result.
        folder: The model.
        precision: See `load_at_precision`.

    Raises:
        ModelError: a precision in which the model changes by more than one percent.
        RecipeError: a model trained for another task, or with other labels.
        DataError: an unreadable row, with its file and number; examples on which a metric is
            undefined.
    """
    model, precision_text = _load(folder, recipe, precision)
    examples = model.task.read(data)
    check_measurable(model.task, examples, data)
    predictions, num_cut = model.predictions_and_cuts(examples)
    measures = model.task.metric_samples(predictions, examples)
    return {
        "model": name,
        "data": str(data),
        "data_sha256": sha256_of(data),
        "protocol": recipe_part(model.task.recipe),
        "precision": precision_text,
        "machine": describe_machine(),
        "versions": library_versions(),
        "commit": source_commit(),
        "num_examples": len(examples),
        "blank_rows": model.task.blank_rows(data),
        "num_cut": num_cut,
        "positive_label": model.task.positive_label,
        "cut_after_tokens": model.task.text_length,
        "metrics": {name: measure.interval().as_json() for name, measure in measures.items()},
    }


def score_bias(name: str, folder: Path, data: Path | None) -> list[dict[str, Any]]:
    """The scores of a language model on the packaged templates, and on the published sets in a
    folder.

    Raises:
        DataError: there is no set in the folder, or one cannot be read.
        ModelError: no language model.
    """
    sets = [("templates", PACKAGED["templates"])] + ([] if data is None else find_sets(data))
    return [score_model(name, folder, parse_task(task), file) for task, file in sets]


def _load(folder: Path, recipe: TaskRecipe, precision: str) -> tuple[TaskModel, str]:
    """The model for the task, and its precision with the reason."""
    if precision == "fp32":
        return load_for_task(folder, recipe, pick_device()), precision
    task = task_of_model(folder, recipe)
    found = load_at_precision(folder, precision, offline=True, device=pick_device())
    return task_model(found.model.model, found.model.tokenizer, task), str(found)


def print_scores(result: dict[str, Any]) -> None:
    """Print the scores on stdout."""
    rows = []
    for name, found in result["metrics"].items():
        numbers = [found[key] for key in ("value", "low", "high")]
        if None in numbers:
            rows.append([metric_label(name, result["positive_label"]), "not finite", ""])
            continue
        digits = score_digits(numbers)
        value, low, high = (format_score(number, digits) for number in numbers)
        rows.append([metric_label(name, result["positive_label"]), value, f"{low} to {high}"])
    examples = counted(result["num_examples"], "example")
    parts: list[terminal.Part] = [
        terminal.table(["", "value", "95 % interval"], rows),
        f"{result['model']} on {examples} of {result['data']}",
    ]
    if result["precision"] != "fp32":
        parts.append(f"Precision: {result['precision']}.")
    if blank := result["blank_rows"]:
        parts.append(f"Skipped: {numbered_rows(blank)} without any field.")
    if result["num_cut"]:
        length = counted(result["cut_after_tokens"], "token")
        texts = counted(result["num_cut"], "text was", "texts were")
        parts.append(f"{texts} truncated to {length}.")
    terminal.show(*parts)


BATCH = {"cpu": 8, "cuda": 64}


def score_by_harness(
    name: str, tasks: Sequence[str], *, task_folder: Path | None, offline: bool
) -> dict[str, Any]:
    """Scores of a causal language model on tasks of the harness.

    Args:
        tasks: Names of the harness's tasks, or of those in `task_folder`.
        task_folder: Task definitions (YAML) that replace the harness's own, such as those on local
            files.

    Raises:
        RecipeError: the harness is not installed, or it has no such task.
        ModelError: no causal language model.
        DataError: a task whose data cannot be read.
    """
    if offline:
        os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    evaluate, hf_model, task_manager = _harness()
    if task_folder is not None and not task_folder.is_dir():
        raise DataError(f"There is no folder of tasks {task_folder}.")
    folder = resolve_folder(name, offline=offline)
    family = family_of(load_config(folder))
    if family.language_modeling != "causal":
        raise ModelError(
            f"The harness scores causal language models; the one in {folder} is a "
            f"{family.model_type}."
        )
    tokenizer = load_model_tokenizer(folder)
    _, model = load_model(folder, tokenizer)
    device = pick_device()
    model.to(device)  # pyright: ignore[reportArgumentType]
    manager = _find_tasks(task_manager, tasks, task_folder)
    loaded = hf_model(
        pretrained=model,
        tokenizer=tokenizer,
        backend="causal",
        batch_size=BATCH[device.type],
        max_length=family.num_positions(model.config),
    )
    try:
        with redirect_stdout(sys.stderr):  # stdout has only the result
            found = evaluate(
                model=loaded, tasks=list(tasks), task_manager=manager, log_samples=False
            )
    except Exception as error:  # of many libraries: a hub that is not reached, a column not there
        raise DataError(
            f"The harness could not run {', '.join(tasks)}: {error}. Its data come from the hub, "
            "or from files that the definitions of --lm-eval-folder name; --task with --data reads "
            "your own file."
        ) from error
    return {
        "model": name,
        "harness": found["versions"],
        "results": found["results"],
        "num_examples": {task: each["effective"] for task, each in found["n-samples"].items()},
        "machine": describe_machine(),
        "versions": library_versions(),
        "commit": source_commit(),
    }


def _find_tasks(task_manager: Any, tasks: Sequence[str], folder: Path | None) -> Any:
    """The harness's manager of tasks, after it was asked for these."""
    manager = task_manager(
        include_path=None if folder is None else str(folder),
        include_defaults=folder is None,
    )
    if unknown := sorted(set(tasks) - set(manager.all_tasks)):
        known = ", ".join(sorted(manager.all_tasks)[:10])
        raise RecipeError(f"The harness has no task {unknown[0]!r}. It has {known or 'none'}, ...")
    return manager


def _harness() -> tuple[Any, Any, Any]:
    """The functions that run tasks, wrap a model, and find tasks."""
    require("lm-eval")
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    return simple_evaluate, HFLM, TaskManager


def print_harness(result: dict[str, Any]) -> None:
    """Print the scores on stdout."""
    rows = []
    for task, found in result["results"].items():
        number = f"{result['num_examples'].get(task, 0):,}"
        for key, value in found.items():
            metric, _, _ = key.partition(",")
            if isinstance(value, float) and not metric.endswith("_stderr"):
                error = found.get(key.replace(metric, f"{metric}_stderr", 1))
                shown = f"{error:.4f}" if isinstance(error, (int, float)) else ""
                rows.append([task, metric, f"{value:.4f}", shown, number])
    terminal.show(terminal.table(["task", "metric", "value", "standard error", "examples"], rows))
