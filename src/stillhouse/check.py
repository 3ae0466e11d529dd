"""What a recipe would make and cost, from configurations alone: no weights, no text, nothing
written.

Cost model. `training.work` counts what a token needs. Time is its multiply-adds over the hardware's
rate times an assumed utilization, energy is time times the stated watts. Both are estimates and say
so."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers import PretrainedConfig

from stillhouse.distillation.cache import cache_format
from stillhouse.distillation.distill import wanted_models
from stillhouse.families import count_parameters, empty_model
from stillhouse.machine import num_cores, processor_name
from stillhouse.objectives.chunks import CHUNK_BYTES
from stillhouse.objectives.language_model import LANGUAGE_MODELING_ALONE
from stillhouse.recipe import FinetuningRecipe, PretrainingRecipe, Recipe, recipe_part
from stillhouse.run_folder import RunFolder, read_manifest
from stillhouse.student.plan import StudentPlan
from stillhouse.training.device import micro_batch_sequences, pick_device, pick_precision
from stillhouse.training.floor import DTYPES, matmul_rate
from stillhouse.training.work import Work, count_work, planned_step
from stillhouse.validate import validate
from stillhouse.wording import counted, duration

if TYPE_CHECKING:
    from rich.console import Console

UTILIZATION = 0.4
LONG_STEP_SECONDS = 60.0


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


def check_recipe(
    name: str, recipe: Recipe, *, offline: bool, run: RunFolder | None = None
) -> dict[str, Any]:
    """Everything `stillhouse check` says, as plain values.

    Args:
        run: The run folder, where the text may be prepared already.

    Raises:
        RecipeError, ModelError, DataError, NetworkError: whatever would stop the run for reasons
            known by now.
    """
    models = validate(recipe, recipe.stages, offline=offline, run=run)
    result: dict[str, Any] = {"recipe": name, "seeds": recipe.seeds}
    result["teacher"] = _sizes(models.teacher)
    if models.student is not None:
        result |= _distillation_cost(recipe, models.student, models.teacher, run)
    result["tasks"] = {
        task: _task_models(recipe.finetuning[task], configs)
        for task, configs in models.tasks.items()
    }
    result["notes"] = models.notes
    return result


def _task_models(recipe: FinetuningRecipe, configs: Mapping[str, PretrainedConfig]) -> Any:
    return {
        "task": recipe_part(recipe.task),
        "models": {
            model: {**_sizes(configs[model]), "start": settings.start, "teacher": settings.teacher}
            for model, settings in recipe.models.items()
        },
    }


def _distillation_cost(
    recipe: Recipe, plan: StudentPlan, teacher: PretrainedConfig, run: RunFolder | None
) -> dict[str, Any]:
    """The student, and what training takes: of teacher, students and controls, for all seeds."""
    sizes = {"teacher": _sizes(teacher), "student": _sizes(plan.config)}
    step = planned_step(
        recipe.distillation.losses, recipe.tokens, recipe.distillation, pick_device()
    )
    work = count_work(step, plan.config, teacher if recipe.cache is None else None)
    tokens = _tokens_to_train(recipe.distillation, run)
    trainings = {"student": (work, tokens)}
    for control in wanted_models(recipe.distillation)[1:]:
        alone = planned_step(
            LANGUAGE_MODELING_ALONE, recipe.tokens, recipe.distillation, pick_device()
        )
        cost = work if control == "control_same_time" else count_work(alone, plan.config, None)
        trainings[control] = (cost, tokens)
    if not isinstance(recipe.teacher, str):
        training = recipe.teacher.training
        alone = planned_step(LANGUAGE_MODELING_ALONE, recipe.tokens, training, pick_device())
        trainings["teacher"] = (count_work(alone, teacher, None), _tokens_to_train(training, run))
    rate = _measured_rate() * UTILIZATION
    seconds = {
        name: None
        if number is None
        else number
        * sum(cost.multiply_adds.values())
        / rate
        * (1 if name == "teacher" else len(recipe.seeds))
        for name, (cost, number) in trainings.items()
    }
    return {
        "training_seconds": seconds,
        "step_seconds": recipe.distillation.tokens_per_step
        * sum(work.multiply_adds.values())
        / rate,
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


def _tokens_to_train(training: PretrainingRecipe, run: RunFolder | None) -> int | None:
    """Tokens that are read, where the recipe or a prepared run tells."""
    if training.max_tokens is not None:
        return training.max_tokens
    manifest = None if run is None else read_manifest(run.tokens)
    if manifest is None:
        return None
    return training.epochs * manifest.facts["splits"]["train"]["tokens"]


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
    for note in result["notes"]:
        console.print(f"note: {note}", markup=False, soft_wrap=True)


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
    console.print(f"a step takes about {duration(result['step_seconds'])} here", markup=False)
    if result["step_seconds"] > LONG_STEP_SECONDS:
        console.print("  lower distillation.tokens_per_step for shorter steps, and more of them")
    known = {name: each for name, each in result["training_seconds"].items() if each is not None}
    if known:
        parts = ", ".join(f"{name} {duration(each)}" for name, each in known.items())
        total = duration(sum(known.values()))
        seeds = counted(len(result["seeds"]), "seed")
        console.print(
            f"training here, {seeds}: about {total} ({parts}); tasks and evaluation come on top; "
            "power of this machine: unknown",
            markup=False,
            soft_wrap=True,
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
        f"{duration(span)}"
        f"{energy} ({estimate['source']})"
    )


def _megabytes(size: int | float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
