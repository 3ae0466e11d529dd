"""The model card of a task's model, its README.md."""

from typing import Any

import yaml

from stillhouse.finetuning.settings import FinetuningRecipe
from stillhouse.recipe import Recipe
from stillhouse.report import units
from stillhouse.report.card import where_it_comes_from
from stillhouse.report.markdown import block, license_note, markdown, source_name, text
from stillhouse.report.origin import hub_name_of, origin_of
from stillhouse.report.results import seeds_of
from stillhouse.report.task_page import (
    TaskResult,
    costs_table,
    outcome_of,
    scores_table,
    seeds_table,
)
from stillhouse.runs.manifest import read_manifest
from stillhouse.runs.paths import RunFolder
from stillhouse.wording import counted

# What a task may start from that the run itself makes.
MODELS_OF_A_RUN = ("teacher", "student", "student_init", "control")
INPUTS = {"question_answering": "questions.json", "token_classification": "sentences.jsonl"}
PIPELINE = "from transformers import pipeline\n\n"
# For each kind of task: what the hub calls it, what a model of it is, and its use in Python.
ABOUT = {
    "classification": (
        "text-classification",
        "A text classifier",
        PIPELINE + 'answer = pipeline("text-classification", model="path/to/this/folder")\n'
        'print(answer("A text."))',
    ),
    "regression": (
        "text-classification",
        "A model that gives a text, or a pair of texts, a number",
        PIPELINE + 'answer = pipeline("text-classification", model="path/to/this/folder", '
        'function_to_apply="none")\nprint(answer({"text": "A text.", "text_pair": "Another."}))',
    ),
    "question_answering": (
        "question-answering",
        "A model that finds the answer to a question in a passage",
        "import stillhouse\n\n"
        'model = stillhouse.load("path/to/this/folder")\n'
        'print(model.answer("Who wrote it?", "It was written by Ada."))',
    ),
    "token_classification": (
        "token-classification",
        "A tagger of entities",
        PIPELINE + 'answer = pipeline("token-classification", model="path/to/this/folder", '
        'aggregation_strategy="simple")\nprint(answer("Ada Lovelace lived in London."))',
    ),
    "embeddings": (
        "sentence-similarity",
        "A model of sentence vectors",
        "from sentence_transformers import SentenceTransformer\n\n"
        'model = SentenceTransformer("path/to/this/folder")\n'
        'print(model.similarity(*model.encode(["A sentence.", "Another one."])))',
    ),
}


def task_card(
    recipe: Recipe, name: str, task: TaskResult, seed: int, run: RunFolder, model: str
) -> str:
    """The card of one seed's model; its tables speak for all models and seeds of the task.

    Args:
        name: Of the whole run.
        run: The seed's.
    """
    settings = recipe.finetuning[task.name]
    scores = task.scores[recipe.seeds.index(seed)]
    outcome = outcome_of(recipe, [task])
    _, what, code = ABOUT[settings.task.kind]
    parts = [
        f"---\n{_front_matter(recipe, settings, model)}---\n",
        f"# {text(name)}: {text(task.name)}, {text(model)}\n",
        f"{what}, trained with Stillhouse. {outcome.title} {outcome.text}\n",
        "## Results\n",
        *_results(recipe, task),
        "## How it was made\n",
        _how_it_was_made(recipe, task.name, seed, run, model),
        "## How to use it\n",
        block("python", code),
        "With stillhouse, on the rows of a file:\n",
        block("bash", _predict(settings)),
        "## Limits and bias\n",
        "- A model inherits the errors and biases of what it starts from, of its teacher, and of "
        "the examples; it can make them stronger.\n"
        "- It was not tested for fairness, toxicity or truthfulness.\n"
        "- The results hold for the examples they were measured on; others were not measured.\n"
        f"{license_note(recipe)}",
        "## How it was measured\n",
        where_it_comes_from(recipe, name, scores),
    ]
    return "\n".join(parts)


def _front_matter(recipe: Recipe, settings: FinetuningRecipe, model: str) -> str:
    facts: dict[str, Any] = {"license": recipe.report.license} if recipe.report.license else {}
    start = _start(recipe, settings, model)
    if start is not None and (hub_name := hub_name_of(start)):
        facts["base_model"] = hub_name
    vectors = settings.task.kind == "embeddings"
    facts |= {
        "tags": ["stillhouse", *(["distillation"] if settings.models[model].teacher else [])],
        "pipeline_tag": ABOUT[settings.task.kind][0],
        "library_name": "sentence-transformers" if vectors else "transformers",
    }
    return yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)


def _start(recipe: Recipe, settings: FinetuningRecipe, model: str) -> str | None:
    """The folder or hub name that the model starts from; None for a model of the run itself."""
    start = settings.models[model].start
    if start == "teacher" and not recipe.trains_its_teacher:
        return recipe.named_model
    return None if start in MODELS_OF_A_RUN else start


def _results(recipe: Recipe, task: TaskResult) -> list[str]:
    several = len(recipe.seeds) > 1
    parts = [
        f"Medians of {seeds_of(recipe.seeds)}, smallest to largest, then each seed with its 95 % "
        "interval over the examples. "
        if several
        else "With the 95 % interval over the examples. One seed is no evidence of the spread "
        "between seeds. "
    ]
    if any(task.scores[0]["splits"][split]["gains"] for split in task.splits):
        parts[0] += "`A less B` is the difference on the same examples."
    parts[0] += "\n"
    for split in task.splits:
        parts += [f"On `{text(split)}`:\n", markdown(scores_table(task, split))]
        if several:
            parts.append(markdown(seeds_table(recipe, task, split)))
    if (costs := costs_table(recipe, task)) is not None:
        parts += ["Size and speed:\n", markdown(costs)]
    return parts


def _how_it_was_made(recipe: Recipe, task: str, seed: int, run: RunFolder, model: str) -> str:
    settings = recipe.finetuning[task]
    own, training = settings.models[model], settings.training
    start = _start(recipe, settings, model)
    facts = {
        "Started from": f"the run's {own.start}" if start is None else origin_of(start, "model"),
        "Layers taken from it": "all" if own.layer_map is None else _layers(own.layer_map),
        "Teacher": _teacher(settings, own.teacher),
        "Examples": _number_of(settings.data.num_train, settings.data.train),
        "Longest text": counted(settings.task.length, "token"),
        "Optimizer": (
            f"{training.optimizer.name}, learning rate {training.optimizer.learning_rate:g}, "
            f"{training.schedule.name} schedule, {training.examples_per_step:,} examples per step, "
            f"read {counted(training.epochs, 'time')}"
        ),
        "Seed": str(seed),
    }
    if own.teacher is not None:
        if (transfer := settings.data.transfer) is not None:
            facts["Texts without answers"] = _number_of(settings.data.num_transfer, transfer)
        weights = settings.losses.active().items()
        facts["Losses and weights"] = ", ".join(f"`{name}` {weight:g}" for name, weight in weights)
        facts["Temperature"] = f"{settings.temperature:g}"
    manifest = read_manifest(run.finetuned(task) / model)
    if manifest is not None and (tokens := manifest.facts["training"].get("tokens")):
        facts["Training tokens"] = units.tokens(tokens)
    return "".join(f"- {key}: {value}\n" for key, value in facts.items())


def _layers(layer_map: int | list[int]) -> str:
    if isinstance(layer_map, int):
        return f"{layer_map}, spread evenly"
    return f"{', '.join(map(str, layer_map))} (counted from 0)"


def _teacher(settings: FinetuningRecipe, teacher: str | None) -> str:
    if teacher is None:
        return "none"
    if teacher in settings.models:
        return f"`{text(teacher)}`, another model of the task"
    return origin_of(teacher, "model")


def _number_of(number: int | None, source: str) -> str:
    return f"{'all' if number is None else f'{number:,}'} of {source_name(source)}"


def _predict(settings: FinetuningRecipe) -> str:
    return (
        f"stillhouse predict path/to/this/folder --task {settings.task.kind} "
        f"--input {INPUTS.get(settings.task.kind, 'examples.jsonl')} --output answers.jsonl"
    )
