"""Model cards: the README.md in each student's folder, and in those of the models of tasks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from markupsafe import Markup

from stillhouse import __version__, units
from stillhouse.energy.account import as_json
from stillhouse.finetuning.settings import MODELS_OF_A_RUN, FinetuningRecipe
from stillhouse.models.hub import HUB_NAME
from stillhouse.models.special_ids import CONFIG, read_settings
from stillhouse.recipe import Recipe
from stillhouse.recipe_file import dump_recipe
from stillhouse.report import bias, text_parts, zero_shot
from stillhouse.report import energy as spent
from stillhouse.report import tasks as scored
from stillhouse.report.license import card_license
from stillhouse.report.outcome import summarize_results
from stillhouse.report.render import command_line, escape_markdown, model_name, render
from stillhouse.report.results import (
    CONTROLS,
    SeedResult,
    models_of,
    resampled,
    scored_text,
    seeds_of,
)
from stillhouse.report.tables import by_seed, comparison, metrics
from stillhouse.report.vocabulary import vocabulary_note
from stillhouse.runs.manifest import facts_of, read_manifest
from stillhouse.runs.paths import RunFolder
from stillhouse.tasks.metrics import metric_label
from stillhouse.teacher.settings import TeacherRecipe, TunedTeacherRecipe
from stillhouse.wording import counted

# Packaged weights: their names on the hub.
ON_THE_HUB = {
    "sample": None,
    "minilm": "sentence-transformers/all-MiniLM-L6-v2",
    "smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct",
}
# Types of students that transformers 4 has tested TensorFlow code for.
TENSORFLOW = ("gpt2", "bert", "distilbert", "roberta")
# Metrics that have another name on the hub.
HUB_METRICS: dict[str, str] = {
    "strict": "f1",
    "accuracy_norm": "accuracy",
    "last_token": "accuracy",
    "last_word": "accuracy",
    "matthews": "matthews_correlation",
    "pearson": "pearsonr",
    "spearman": "spearmanr",
}
# For each kind of task: the hub's name for it, a description, and a file of inputs.
KINDS = {
    "classification": ("text-classification", "A text classifier", "examples.jsonl"),
    "regression": (
        "text-classification",
        "A regression model for texts or pairs of texts",
        "examples.jsonl",
    ),
    "question_answering": (
        "question-answering",
        "An extractive question answering model",
        "questions.json",
    ),
    "token_classification": (
        "token-classification",
        "A named entity recognition model",
        "sentences.jsonl",
    ),
    "embeddings": ("sentence-similarity", "A sentence embedding model", "examples.jsonl"),
}


def model_card(
    recipe: Recipe, run: RunFolder, results: Sequence[SeedResult], result: SeedResult
) -> str:
    """The card of one seed's student; its table covers all seeds of the run."""
    name, outcome = model_name(recipe, run), summarize_results(recipe, results)
    causal = recipe.tokens.language_modeling == "causal"
    tag = "text-generation" if causal else "fill-mask"
    manifest = read_manifest(result.run.student_init)
    return _render(
        "card.md",
        recipe,
        name,
        result.evaluation,
        ModelCardData(
            **_origin_metadata(recipe, recipe.named_model),
            datasets=_hub_datasets(recipe.text.sources),
            metrics=["perplexity"] if causal else None,
            model_name=name,
            eval_results=_quality(recipe, result, tag),
            tags=["stillhouse", "distillation"],
            pipeline_tag=tag,
            library_name="transformers",
            **_emissions(recipe, result),
        ),
        results=results,
        result=result,
        outcome=outcome,
        causal=causal,
        teacher=_teacher(recipe),
        has_control=bool(set(CONTROLS) & set(models_of(results))),
        resampled=resampled(results),
        comparison=comparison(recipe, results),
        by_seed=by_seed(results),
        parts=text_parts.table_of(results),
        zero_shot=zero_shot.table_of(results),
        **bias.values_of(results, main_only=True),
        **spent.values_of(recipe, result),
        vocabulary=vocabulary_note(result),
        layers=_layers(manifest.facts["layer_map"] if manifest else _named_layers(recipe)),
        initial_weights=Path(recipe.student.weights).name,
        tensorflow=read_settings(result.run.student / CONFIG).get("model_type") in TENSORFLOW,
        sources=[source_name(source) for source in recipe.text.sources],
        cleaning=cleaning_counts(run),
        trained=result.value("student", "training.tokens"),
        scored_text=scored_text(recipe),
    )


def measurements(
    recipe: Recipe, results: Sequence[SeedResult], result: SeedResult
) -> dict[str, Any]:
    """What the numbers of a card come from, without the folders of this machine: the evaluation of
    each seed, and the energy and the training of this one."""
    manifest = read_manifest(result.run.student)
    return {
        "seed": result.seed,
        "evaluations": {str(each.seed): _published(each.evaluation) for each in results},
        "energy": as_json(recipe.energy, result.run),
        "facts": manifest.facts if manifest else {},
        "cleaning": cleaning_counts(result.run),
    }


def cleaning_counts(run: RunFolder) -> Mapping[str, Any]:
    """What the cleaning of the text read, left out and kept, without samples; empty where it was
    not cleaned."""
    facts = facts_of(run.clean)
    if not facts:
        return {}
    counts = ("documents_in", "bytes_in", "documents_out", "bytes_out", "reasons", "changed")
    left_out = {
        name: own["documents_in"] - own["documents_out"] for name, own in facts["steps"].items()
    }
    return {
        "read": {key: facts["read"][key] for key in ("documents", "bytes", "blank", "damaged")},
        "steps": {
            name: {key: own[key] for key in counts} | {"left_out": left_out[name]}
            for name, own in facts["steps"].items()
        },
        "text": facts["text"],
    }


def task_measurements(
    recipe: Recipe, task: scored.TaskResult, seed: int, run: RunFolder, model: str
) -> dict[str, Any]:
    """The same for the card of a task's model."""
    manifest = read_manifest(run.finetuned(task.name) / model)
    return {
        "seed": seed,
        "scores": dict(zip(map(str, recipe.seeds), task.scores, strict=True)),
        "facts": manifest.facts if manifest else {},
    }


def _published(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Without paths, and without the losses of each document, which are long."""
    models = {
        name: {key: value for key, value in own.items() if key != "path"}
        for name, own in evaluation["models"].items()
    }
    kept = {key: value for key, value in evaluation.items() if key != "validation_units"}
    return kept | {"models": models}


def _origin_metadata(recipe: Recipe, model: str | None) -> dict[str, Any]:
    """What the hub reads about the model that a card's own was made from, and the license. The hub
    has no relation for distilled models; it lists them below their base model as fine-tuned."""
    base = model and hub_name_of(model)
    stated = card_license(recipe, model or recipe.named_model)
    return {
        "license": stated and stated.identifier,
        "license_name": stated and stated.name,
        "license_link": stated and stated.link,
        "base_model": base,
        "base_model_relation": "finetune" if base else None,
    }


def _emissions(recipe: Recipe, result: SeedResult) -> dict[str, Any]:
    found = spent.emissions_metadata(recipe, result)
    return {} if found is None else {"co2_eq_emissions": found}


def task_card(
    recipe: Recipe, name: str, task: scored.TaskResult, seed: int, run: RunFolder, model: str
) -> str:
    """The card of one seed's model; its tables cover all models and seeds of the task.

    Args:
        name: Of the whole run.
        run: The seed's.
    """
    settings = recipe.finetuning[task.name]
    scores = task.scores[recipe.seeds.index(seed)]
    tag, description, inputs = KINDS[settings.task.kind]
    own, start = settings.models[model], _start(recipe, settings, model)
    manifest = read_manifest(run.finetuned(task.name) / model)
    embeds = settings.task.kind == "embeddings"
    return _render(
        "task_card.md",
        recipe,
        name,
        scores,
        ModelCardData(
            **_origin_metadata(recipe, start),
            datasets=_hub_datasets(list(settings.data.sources.values())),
            metrics=[_hub_metric(task.metric)],
            model_name=f"{name}-{task.name}-{model}",
            eval_results=_scores(task, settings, scores, model, tag),
            tags=["stillhouse", *(["distillation"] if own.teacher else [])],
            pipeline_tag=tag,
            library_name="sentence-transformers" if embeds else "transformers",
        ),
        task=task,
        settings=settings,
        model=model,
        seed=seed,
        outcome=scored.outcome_of(recipe, [task]),
        description=description,
        start=f"the run's {own.start}" if start is None else _origin(start, "model"),
        layers="all" if own.layer_map is None else _layers(own.layer_map),
        teacher=_task_teacher(settings, own.teacher),
        num_examples=_number_of(settings.data.num_train, settings.data.train),
        unlabeled=settings.data.unlabeled
        and _number_of(settings.data.num_unlabeled, settings.data.unlabeled),
        trained=manifest and manifest.facts["training"].get("tokens"),
        inputs=inputs,
        scored=scored,
    )


def _render(
    template: str,
    recipe: Recipe,
    name: str,
    measured: Mapping[str, Any],
    front_matter: ModelCardData,
    **values: Any,
) -> str:
    """A card with the front matter that the hub reads, and how to reproduce the model."""
    card = render(
        template,
        recipe=recipe,
        name=name,
        front_matter=Markup(front_matter.to_yaml()),
        license=front_matter.license,
        version=__version__,
        several=len(recipe.seeds) > 1,
        seeds=seeds_of(recipe.seeds),
        measured=measured,
        command=Markup(command_line("recipe.yaml", f"runs/{name}")),
        recipe_yaml=Markup(dump_recipe(recipe).rstrip()),
        **values,
    )
    return card.rstrip() + "\n"


def _quality(recipe: Recipe, result: SeedResult, tag: str) -> list[EvalResult]:
    """The student's quality on held-out text, for the hub's `model-index`."""
    found = []
    for metric in metrics(recipe):
        value = result.value("student", metric.key)
        if metric.group == "quality" and value is not None:
            is_perplexity = metric.unit is units.PERPLEXITY
            kind = "perplexity" if is_perplexity else str(metric.key).rpartition(".")[2]
            data = scored_text(recipe)
            found.append(EvalResult(tag, "text", data, kind, value, metric_name=metric.label))
    scored = (result.evaluation.get("zero_shot") or {"sets": {}})["sets"]
    for name, own in {**scored, **(result.evaluation.get("bias") or {})}.items():
        for metric, score in own["models"]["student"].items():
            if score["value"] is not None:
                kind, label = _hub_metric(metric), metric_label(metric)
                found.append(EvalResult(tag, name, name, kind, score["value"], metric_name=label))
    return found


def _scores(
    task: scored.TaskResult,
    settings: FinetuningRecipe,
    scores: Mapping[str, Any],
    model: str,
    tag: str,
) -> list[EvalResult]:
    """The scores of a task's model on each split, for the hub's `model-index`."""
    return [
        EvalResult(
            tag,
            settings.task.kind,
            task.name,
            _hub_metric(metric),
            found["value"],
            dataset_split=split,
            metric_name=task.label(metric),
        )
        for split, own in scores["splits"].items()
        for metric, found in own["models"].get(model, {}).items()
    ]


def _hub_metric(name: str) -> str:
    return HUB_METRICS.get(name, name)


def hub_name_of(model: str) -> str | None:
    """A model's name on the hub; None for a folder, and for the sample teacher."""
    if model in ON_THE_HUB:
        return ON_THE_HUB[model]
    if Path(model).exists() or model.startswith(".") or not HUB_NAME.fullmatch(model):
        return None
    return model


def source_name(source: str) -> Markup:
    """A hub or packaged source verbatim, of a path the last part: cards are published."""
    return Markup(f"`{source if '://' in source else Path(source).name}`".replace("\n", " "))


def _hub_datasets(sources: Sequence[str]) -> list[str] | None:
    """The names of hub datasets, without configuration and split."""
    hub = [source.removeprefix("hf://") for source in sources if source.startswith("hf://")]
    return list(dict.fromkeys(name.partition("#")[0].partition(":")[0] for name in hub)) or None


def _origin(model: str, kind: str) -> Markup:
    """A model as Markdown; `kind` describes a model without a name, such as `teacher`."""
    if hub_name := hub_name_of(model):
        return Markup(f"[{escape_markdown(hub_name)}](https://huggingface.co/{hub_name})")
    if model == "sample":
        return Markup("the sample teacher that comes with Stillhouse")
    return Markup(f"a {kind} from a local folder ({escape_markdown(Path(model).name)})")


def _teacher(recipe: Recipe) -> Markup:
    if isinstance(recipe.teacher, TeacherRecipe):
        layers = counted(recipe.teacher.num_layers, "layer")
        words = f"a {recipe.teacher.family} teacher of {layers}, trained for it on the same text"
        return escape_markdown(words)
    tuned = isinstance(recipe.teacher, TunedTeacherRecipe)
    ending = ", fine-tuned for it on the same text" if tuned else ""
    return _origin(recipe.named_model or "", "teacher") + ending


def _task_teacher(settings: FinetuningRecipe, teacher: str | None) -> Markup:
    if teacher is None:
        return Markup("none")
    if teacher in settings.models:
        return Markup(f"`{escape_markdown(teacher)}`, another model of the task")
    return _origin(teacher, "model")


def _start(recipe: Recipe, settings: FinetuningRecipe, model: str) -> str | None:
    """The folder or hub name that the model starts from; None for a model of the run itself."""
    start = settings.models[model].start
    if start == "teacher" and not recipe.trains_its_teacher:
        return recipe.named_model
    return None if start in MODELS_OF_A_RUN else start


def _named_layers(recipe: Recipe) -> list[int] | None:
    named = recipe.student.layer_map
    return named if isinstance(named, list) else None


def _layers(layer_map: int | Sequence[int] | None) -> str:
    if layer_map is None:
        return "see the recipe below"
    if isinstance(layer_map, int):
        return f"{layer_map}, spread evenly"
    return f"{', '.join(map(str, layer_map))} (counted from 0)"


def _number_of(number: int | None, source: str) -> Markup:
    return Markup(f"{'all' if number is None else f'{number:,}'} of {source_name(source)}")
