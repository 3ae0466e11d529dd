"""A model's scores on a task, without a run: each metric with its confidence interval."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from stillhouse import terminal
from stillhouse.inference.load import load_for_task
from stillhouse.machine import describe_machine, library_versions, source_commit
from stillhouse.runs.manifest import sha256_of
from stillhouse.section import recipe_part
from stillhouse.tasks.metrics import format_score, metric_label, score_digits
from stillhouse.tasks.settings import TaskRecipe
from stillhouse.tasks.task import check_measurable
from stillhouse.tasks.text_classification import positive_label
from stillhouse.training.device import pick_device
from stillhouse.wording import counted, numbered_rows


def score_model(name: str, folder: Path, recipe: TaskRecipe, data: Path) -> dict[str, Any]:
    """The metrics of a task on a file of examples.

    Args:
        name: The model's name in the result.
        folder: The model.

    Raises:
        RecipeError: a model trained for another task, or with other labels.
        DataError: an unreadable row, with its file and number; examples on which a metric is
            undefined.
    """
    model = load_for_task(folder, recipe, pick_device())
    examples = model.task.read(data)
    check_measurable(model.task, examples, data)
    predictions, num_cut = model.predictions_and_cuts(examples)
    measures = model.task.metric_samples(predictions, examples)
    return {
        "model": name,
        "data": str(data),
        "data_sha256": sha256_of(data),
        "protocol": recipe_part(model.task.recipe),
        "machine": describe_machine(),
        "versions": library_versions(),
        "commit": source_commit(),
        "num_examples": len(examples),
        "blank_rows": model.task.blank_rows(data),
        "num_cut": num_cut,
        "positive_label": positive_label(model.task),
        "cut_after_tokens": model.task.text_length,
        "metrics": {name: asdict(measure.interval()) for name, measure in measures.items()},
    }


def print_scores(result: dict[str, Any]) -> None:
    """Print the scores on stdout."""
    rows = []
    for name, found in result["metrics"].items():
        numbers = [found[key] for key in ("value", "low", "high")]
        digits = score_digits(numbers)
        value, low, high = (format_score(number, digits) for number in numbers)
        rows.append([metric_label(name, result["positive_label"]), value, f"{low} to {high}"])
    examples = counted(result["num_examples"], "example")
    parts: list[terminal.Part] = [
        terminal.table(["", "value", "95 % interval"], rows),
        f"{result['model']} on {examples} of {result['data']}",
    ]
    if blank := result["blank_rows"]:
        parts.append(f"Skipped: {numbered_rows(blank)} without any field.")
    if result["num_cut"]:
        length = counted(result["cut_after_tokens"], "token")
        texts = counted(result["num_cut"], "text was", "texts were")
        parts.append(f"{texts} truncated to {length}.")
    terminal.show(*parts)
