"""What a recipe would make and cost, from configurations alone: no weights, no text, nothing
written.

Cost model. `training.work` counts what a token needs. Time is its multiply-adds over the hardware's
rate times an assumed utilization, energy is time times the stated watts. Both are estimates and say
so."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PretrainedConfig

from stillhouse.data.hub import HUB_PREFIX
from stillhouse.distillation.cache import cache_format
from stillhouse.errors import DataError, RecipeError
from stillhouse.families import (
    check_folder,
    check_sequence_length,
    count_parameters,
    empty_model,
    family_named,
    load_config,
    resolve_folder,
)
from stillhouse.finetuning.examples import check_task_data
from stillhouse.finetuning.fitting import fitted
from stillhouse.machine import num_cores, processor_name
from stillhouse.objectives.chunks import CHUNK_BYTES
from stillhouse.objectives.relation_term import check_relation
from stillhouse.recipe import (
    FinetuningRecipe,
    PretrainingRecipe,
    Recipe,
    TeacherRecipe,
    TrainedTokenizer,
    recipe_part,
)
from stillhouse.student.plan import StudentPlan, plan_student
from stillhouse.tokens.source import check_vocabulary
from stillhouse.tokens.tokenizer import load_tokenizer, num_ids, special_tokens
from stillhouse.training.device import micro_batch_sequences, pick_device, pick_precision
from stillhouse.training.floor import DTYPES, matmul_rate
from stillhouse.training.work import Work, count_work, planned_step

if TYPE_CHECKING:
    from rich.console import Console

UTILIZATION = 0.4
TRAINED_HERE_IDS = {"end_of_text": 0, "pad": 1, "cls": 0, "sep": 2}


@dataclass(frozen=True)
class Hardware:
    """A machine to estimate for: multiply-adds per second at full rate, and its power."""

    name: str
    multiply_adds_per_second: float
    watts: float | None
    source: str


REFERENCE_HARDWARE = (
    Hardware(
        "8 x V100 16 GB",
        8 * 62.5e12,
        8 * 300.0,
        "125 TFLOP/s fp16 and 300 W each, vendor's figures",
    ),
    Hardware("1 x H200", 494.5e12, 700.0, "989 TFLOP/s bf16 and 700 W, vendor's figures"),
)


def check_recipe(name: str, recipe: Recipe, *, offline: bool) -> dict[str, Any]:
    """Everything `stillhouse check` says, as plain values.

    Raises:
        RecipeError, ModelError, DataError: whatever would stop the run for reasons known by now.
    """
    teacher = _teacher_config(recipe, offline=offline)
    result: dict[str, Any] = {"recipe": name, "seeds": recipe.seeds, "teacher": _sizes(teacher)}
    student = teacher
    if recipe.corpus is not None:
        plan = _student_plan(recipe, teacher)
        student = plan.config
        result |= _distillation_cost(recipe, plan, teacher)
    starts = {"teacher": teacher, **dict.fromkeys(("student", "student_init", "control"), student)}
    result["tasks"] = {
        task: _task_models(task, settings, starts, offline=offline)
        for task, settings in recipe.finetuning.items()
    }
    return result


def _task_models(
    name: str, recipe: FinetuningRecipe, starts: Mapping[str, PretrainedConfig], *, offline: bool
) -> dict[str, Any]:
    """What a task's models are; data on this disk must be there."""
    for key, source in recipe.data.sources.items():
        if not source.startswith(HUB_PREFIX) and not Path(source).is_file():
            raise DataError(f"finetuning.{name}.data.{key}: there is no file {source}.")

    def config(model: str) -> PretrainedConfig:
        if model in starts:
            return starts[model]
        return _checked(model, offline, head=False)[0]

    teachers = {
        model.teacher: config(model.teacher)
        for model in recipe.models.values()
        if model.teacher is not None and model.teacher not in recipe.models
    }
    begun = {model: config(settings.start) for model, settings in recipe.models.items()}
    found = fitted(name, recipe, begun, teachers)
    sources = recipe.data.sources
    if not any(source.startswith(HUB_PREFIX) for source in sources.values()):
        paths = {key: Path(source) for key, source in sources.items()}
        check_task_data(name, recipe, teachers, paths)
    return {
        "task": recipe_part(recipe.task),
        "models": {
            model: {**_sizes(found[model]), "start": settings.start, "teacher": settings.teacher}
            for model, settings in recipe.models.items()
        },
    }


def _student_plan(recipe: Recipe, teacher: PretrainedConfig) -> StudentPlan:
    check_sequence_length(recipe.tokens, teacher)
    plan = plan_student(teacher, recipe.student)
    check_relation(recipe.distillation.losses.relation, plan.config, teacher)
    unknown = [part for part in recipe.student.freeze if part not in plan.family.embeddings]
    if unknown:
        raise RecipeError(
            f"student.freeze names {unknown}, which a {plan.family.model_type} student does not "
            "have."
        )
    return plan


def _distillation_cost(
    recipe: Recipe, plan: StudentPlan, teacher: PretrainedConfig
) -> dict[str, Any]:
    """The student, and what its training takes."""
    sizes = {"teacher": _sizes(teacher), "student": _sizes(plan.config)}
    step = planned_step(
        recipe.distillation.losses, recipe.tokens, recipe.distillation, pick_device()
    )
    work = count_work(step, plan.config, teacher if recipe.cache is None else None)
    tokens = _tokens_to_train(recipe.distillation)
    return {
        "student": {
            **sizes["student"],
            "layer_map": plan.layer_map,
            "family": plan.family.model_type,
        },
        "ratio": {
            "parameters": sizes["student"]["parameters"] / sizes["teacher"]["parameters"],
            "body_parameters": sizes["student"]["body_parameters"]
            / sizes["teacher"]["body_parameters"],
        },
        "tokens": tokens,
        "step": _step_memory(recipe, sizes, plan.config),
        "teacher_cache": _cache_cost(recipe, teacher, count_work(step, plan.config, teacher)),
        "multiply_adds_per_token": work.multiply_adds,
        "bytes_moved_per_token": work.bytes_moved,
        "estimates": [
            _estimate(hardware, sum(work.multiply_adds.values()), tokens)
            for hardware in _hardware()
        ],
        "assumed_utilization": UTILIZATION,
    }


def _teacher_config(recipe: Recipe, *, offline: bool) -> PretrainedConfig:
    if isinstance(recipe.teacher, TeacherRecipe):
        chosen, ids = recipe.tokens.tokenizer, dict(TRAINED_HERE_IDS)
        size = chosen.vocabulary_size if isinstance(chosen, TrainedTokenizer) else 0
        if isinstance(chosen, str):
            tokenizer = load_tokenizer(Path(chosen))
            special = special_tokens(tokenizer, recipe.tokens.language_modeling)
            size = num_ids(tokenizer)
            ids = {key: value for key, value in asdict(special).items() if isinstance(value, int)}
        scratch = family_named(recipe.teacher.family).scratch_config
        assert scratch is not None
        return scratch(recipe.teacher, size, recipe.tokens.sequence_length, ids)
    assert recipe.named_model is not None
    config, folder = _checked(recipe.named_model, offline, head=recipe.corpus is not None)
    named = recipe.tokens.tokenizer
    if isinstance(named, TrainedTokenizer):
        raise RecipeError(
            "tokens.tokenizer trains a new vocabulary, but the teacher already has one, and its "
            "student must read "
            "the same tokens. Set tokens.tokenizer to teacher."
        )
    try:
        tokenizer = load_tokenizer(folder if named == "teacher" else Path(named))
    except DataError:
        if named != "teacher":
            raise
    else:
        check_vocabulary(tokenizer, config.vocab_size, f"the teacher in {folder}")
    return config


def _checked(name: str, offline: bool, *, head: bool) -> tuple[PretrainedConfig, Path]:
    """The configuration and folder of a model; its weights may yet be fetched."""
    folder = resolve_folder(name, offline=offline, weights=False)
    check_folder(folder, needs_weights=False, head=head)
    return load_config(folder), folder


def _sizes(config: PretrainedConfig) -> dict[str, Any]:
    total, body = count_parameters(empty_model(config))
    return {
        "model_type": config.model_type,
        "parameters": total,
        "body_parameters": body,
        "size_bytes": 4 * total,
        "num_layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "vocabulary_size": config.vocab_size,
    }


def _tokens_to_train(training: PretrainingRecipe) -> int | None:
    """Tokens the student will read, where the recipe alone tells."""
    return training.max_tokens


def _cache_cost(recipe: Recipe, teacher: PretrainedConfig, live: Work) -> dict[str, Any] | None:
    """What writing the teacher cache costs, once for each token of the text; None without one."""
    if recipe.cache is None:
        return None
    layout = cache_format(recipe, teacher, recipe.tokens.sequence_length)
    passes = [live.multiply_adds[f"teacher_{part}"] for part in ("body", "head")]
    return {"bytes_per_row": layout.bytes_per_row, "multiply_adds_per_token": sum(passes)}


def _step_memory(
    recipe: Recipe, sizes: dict[str, dict[str, Any]], student: PretrainedConfig
) -> dict[str, Any]:
    """Bytes of one training step: weights, gradients, optimizer, activations, one chunk of
    logits."""
    device = pick_device()
    precision = pick_precision(recipe.distillation.precision, device)
    length = recipe.tokens.sequence_length
    wanted = recipe.distillation.micro_batch_tokens
    tokens = micro_batch_sequences(wanted, device, length) * length
    # Per token and layer about 16 hidden-size activations are kept for backward, plus attention
    # inputs.
    width = 2 if precision == "bf16" else 4
    activations = tokens * student.num_hidden_layers * 20 * student.hidden_size * width
    teacher_bytes = sizes["teacher"]["parameters"] * width if recipe.cache is None else 0
    learned = 16 * sizes["student"]["parameters"]
    chunk = CHUNK_BYTES[device.type]
    return {
        "tokens_per_step": recipe.distillation.tokens_per_step,
        "micro_batch_tokens": tokens,
        "precision": precision,
        "memory_bytes": learned + teacher_bytes + activations + chunk,
        "student_bytes": learned,
        "teacher_bytes": teacher_bytes,
        "activation_bytes": activations,
        "logits_bytes": chunk,
    }


def _hardware() -> list[Hardware]:
    here = f"this machine ({processor_name()}, {num_cores()} cores)"
    return [
        Hardware(here, _measured_rate(), None, "matrix product measured now"),
        *REFERENCE_HARDWARE,
    ]


def _measured_rate() -> float:
    """Multiply-adds per second of a matrix product here, in the precision training would use."""
    device = pick_device()
    dtype = DTYPES[pick_precision("auto", device)]
    return matmul_rate((1024, 768, 3072), dtype, device)


def _estimate(hardware: Hardware, per_token: int | float, tokens: int | None) -> dict[str, Any]:
    seconds_per_token = per_token / (hardware.multiply_adds_per_second * UTILIZATION)
    seconds = None if tokens is None else tokens * seconds_per_token
    joules = None if seconds is None or hardware.watts is None else seconds * hardware.watts
    return {
        "hardware": hardware.name,
        "source": hardware.source,
        "tokens_per_second": 1 / seconds_per_token,
        "seconds": seconds,
        "seconds_per_billion_tokens": 1e9 * seconds_per_token,
        "watts": hardware.watts,
        "joules": joules,
    }


def print_check(result: dict[str, Any]) -> None:
    """The check as a page for people, on stdout."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    console.print(f"{result['recipe']} is valid", markup=False)
    if "student" in result:
        _print_distillation(console, result)
    for name, task in result["tasks"].items():
        title = f"{name}: {task['task']['kind']}"
        table = Table("", "starts from", "taught by", "layers", "parameters", title=title)
        for model, facts in task["models"].items():
            size = f"{facts['parameters'] / 1e6:.1f} M"
            table.add_row(
                model, facts["start"], facts["teacher"] or "", str(facts["num_layers"]), size
            )
        console.print(table)


def _print_distillation(console: "Console", result: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table("", "teacher", "student", "ratio")
    teacher, student, ratio = result["teacher"], result["student"], result["ratio"]
    rows = {"parameters": "parameters", "body_parameters": "without the head"}
    for key, label in rows.items():
        table.add_row(
            label, f"{teacher[key] / 1e6:.1f} M", f"{student[key] / 1e6:.1f} M", f"{ratio[key]:.0%}"
        )
    table.add_row(
        "size in float32", _megabytes(teacher["size_bytes"]), _megabytes(student["size_bytes"]), ""
    )
    table.add_row("layers", str(teacher["num_layers"]), str(student["num_layers"]), "")
    table.add_row("architecture", teacher["model_type"], student["model_type"], "")
    console.print(table)
    step = result["step"]
    console.print(f"layer map: {student['layer_map']}", markup=False)
    console.print(
        f"a step: {step['tokens_per_step']:,} tokens in micro-batches of "
        f"{step['micro_batch_tokens']:,}, "
        f"{step['precision']}, about {_megabytes(step['memory_bytes'])} of memory"
    )
    tokens = result["tokens"]
    console.print(f"tokens: {tokens:,}" if tokens else "tokens: known once the text is prepared")
    if cache := result["teacher_cache"]:
        console.print(
            f"teacher cache: {cache['bytes_per_row']} bytes a row; writing it takes "
            f"{cache['multiply_adds_per_token'] / 1e6:,.1f} M multiply-adds a token, once, which "
            "the figures below leave out"
        )
    for estimate in result["estimates"]:
        console.print(f"on {_estimate_line(estimate)}", markup=False, soft_wrap=True)
    console.print(f"Estimates assume {result['assumed_utilization']:.0%} of the stated rate.")


def _estimate_line(estimate: dict[str, Any]) -> str:
    seconds = estimate["seconds"]
    span = estimate["seconds_per_billion_tokens"] if seconds is None else seconds
    energy = "" if estimate["joules"] is None else f", {estimate['joules'] / 3.6e6:.2g} kWh"
    what = "a billion tokens" if seconds is None else "training"
    return (
        f"{estimate['hardware']}: about {estimate['tokens_per_second']:,.0f} tokens/s, {what} in "
        f"{_duration(span)}"
        f"{energy} ({estimate['source']})"
    )


def _duration(seconds: int | float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"


def _megabytes(size: int | float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
