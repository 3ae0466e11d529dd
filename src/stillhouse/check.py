"""What a recipe would make and cost: from configurations, a part of the text and the examples of
tasks; no weights are read, and nothing is written.

Cost model: `training.cost` counts the FLOPs of a token. On this machine time is FLOPs over the
rates that `estimate` measures; elsewhere FLOPs over the hardware's peak times an assumed
utilization, and energy is time times the stated watts. Both are labeled as estimates."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig, PreTrainedTokenizerFast

from stillhouse import terminal, units
from stillhouse.data.rows import path_of
from stillhouse.distillation.cache import cache_format
from stillhouse.estimate.language import (
    DataSetSize,
    LanguagePlan,
    Part,
    data_set_size,
    language_parts,
    text_size,
)
from stillhouse.estimate.speeds import MeasuredSpeeds
from stillhouse.estimate.tasks import TaskPlan, task_parts
from stillhouse.evaluation.settings import data_sets_of
from stillhouse.finetuning.models import CheckedTask
from stillhouse.finetuning.settings import FinetuningRecipe
from stillhouse.machine import num_cores, processor_name
from stillhouse.models.folder_check import load_model_tokenizer
from stillhouse.models.load import count_parameters, empty_model
from stillhouse.models.vocabulary import with_vocabulary_size
from stillhouse.objectives.chunks import CHUNK_BYTES
from stillhouse.recipe import Recipe
from stillhouse.runs.paths import RunFolder
from stillhouse.section import recipe_part
from stillhouse.stages.check import RecipeCheck, check_stages
from stillhouse.stages.stage import stages_of
from stillhouse.student.plan import StudentPlan
from stillhouse.training.cost import DTYPES, StepShape, forward_flops, matmul_rate
from stillhouse.training.device import micro_batch_sequences, pick_device, pick_precision
from stillhouse.training.engine import LONG_STEP_SECONDS
from stillhouse.training.settings import PretrainingRecipe
from stillhouse.wording import counted, duration

UTILIZATION = 0.4  # assumed of hardware that is not here
NOT_FETCHED = "its examples are on the hub, and not fetched yet"


@dataclass(frozen=True)
class Hardware:
    """A machine to estimate for: peak FLOP/s, the share of them that training reaches (MFU), and
    watts."""

    name: str
    flops_per_second: float
    watts: float | None
    source: str
    utilization: float = UTILIZATION


REFERENCE_HARDWARE = (
    Hardware(
        "8 x V100 16 GB",
        8 * 125e12,
        8 * 300.0,
        "125 TFLOP/s fp16 and 300 W each, vendor's figures",
    ),
    Hardware("1 x H200", 989e12, 700.0, "989 TFLOP/s bf16 and 700 W, vendor's figures"),
)


def check_recipe(
    name: str, recipe: Recipe, *, offline: bool, run: RunFolder | None = None
) -> dict[str, Any]:
    """The result of `stillhouse check` as plain values.

    Args:
        run: The run folder, where the text may be prepared already.

    Raises:
        RecipeError, ModelError, DataError, NetworkError: whatever would stop the run for reasons
            known by now.
    """
    checked = check_stages(RecipeCheck(recipe, stages_of(recipe), offline, run))
    tasks: dict[str, CheckedTask] = checked.tasks or {}
    result = {"recipe": name, "seeds": recipe.seeds, "teacher": _sizes(checked.teacher)}
    tokenizer = checked.tokenizer
    speeds = MeasuredSpeeds()
    parts: list[Part] = []
    notes = [note for own in tasks.values() if own.examples for note in own.examples.notes]
    for task, own in tasks.items():
        parts += _task_parts(recipe, task, own, tokenizer, speeds)
    if checked.student is not None:
        text = text_size(recipe, run, tokenizer, offline=offline)
        sets, unknown = data_set_sizes(checked)
        student, number = checked.student.config, len(checked.candidates)
        teacher = with_vocabulary_size(checked.teacher, student.vocab_size)
        plan = LanguagePlan(recipe, teacher, student, text, tokenizer, sets, number)
        *trainings, evaluation = language_parts(plan, speeds)
        result |= _distillation_cost(plan, checked.student, trainings, result["teacher"])
        result |= {"race": _race(checked)} if checked.candidates else {}
        parts = [*trainings, *parts, evaluation, *unknown]
        notes += _trainings_below_one_step(plan)
    return result | {
        "tasks": {
            task: _task_models(recipe.finetuning[task], own.models) for task, own in tasks.items()
        },
        "time": _time(recipe, parts),
        "notes": notes,
    }


def data_set_sizes(checked: RecipeCheck) -> tuple[dict[str, DataSetSize], list[Part]]:
    """The sizes of the data sets that models are scored on, and a part for each that is not fetched
    yet."""
    found: dict[str, DataSetSize] = {}
    unknown = []
    language_modeling = checked.recipe.tokens.language_modeling
    for key, each in data_sets_of(checked.recipe.evaluation).items():
        name = key.removeprefix("evaluation.").removesuffix(".data")
        file = path_of(each.data, checked.run.task_data if checked.run else Path())
        if not file.exists():
            unknown.append(Part(name, None, NOT_FETCHED))
        elif checked.tokenizer is not None:
            found[name] = data_set_size(each, file, checked.tokenizer, language_modeling)
    return found, unknown


def _task_parts(
    recipe: Recipe,
    name: str,
    checked: CheckedTask,
    tokenizer: PreTrainedTokenizerFast | None,
    speeds: MeasuredSpeeds,
) -> list[Part]:
    settings = recipe.finetuning[name]
    if checked.examples is None:
        return [Part(name, None, NOT_FETCHED)]
    starts = [model.start for model in settings.models.values() if model.start in checked.folders]
    tokenizer = load_model_tokenizer(checked.folders[starts[0]]) if starts else tokenizer
    if tokenizer is None:
        return [Part(name, None, "its tokenizer is trained by the run")]
    plan = TaskPlan(
        name,
        settings,
        checked.models,
        checked.teachers,
        checked.examples,
        tokenizer,
        len(recipe.seeds),
    )
    return task_parts(plan, speeds)


def _time(recipe: Recipe, parts: Sequence[Part]) -> dict[str, Any]:
    """Seconds of all parts that are known, and the names of those that are not."""
    unknown = {part.name: part.reason for part in parts if part.seconds is None}
    if recipe.corpus is not None:
        unknown |= {"preparing the text": "it depends on the text's files"}
    if pick_device().type == "cuda" and recipe.distillation.compile is not False:
        unknown |= {"compilation": "it depends on the compiler's caches; it is once per training"}
    return {
        "parts": [asdict(part) for part in parts],
        "seconds": sum(part.seconds or 0 for part in parts),
        "not_estimated": unknown,
    }


def _task_models(recipe: FinetuningRecipe, configs: Mapping[str, PretrainedConfig]) -> Any:
    return {
        "task": recipe_part(recipe.task),
        "models": {
            model: {**_sizes(configs[model]), "start": settings.start, "teacher": settings.teacher}
            for model, settings in recipe.models.items()
        },
    }


def _distillation_cost(
    plan: LanguagePlan, student: StudentPlan, parts: Sequence[Part], whole: dict[str, Any]
) -> dict[str, Any]:
    """The student, and what its training needs and takes; `whole` are the sizes of the teacher with
    all of its tokens."""
    recipe, training = plan.recipe, plan.distillation()
    sizes = {"teacher": _sizes(plan.teacher), "student": _sizes(plan.student)}
    cost, tokens = training.cost(), plan.tokens_to_train(recipe.distillation)
    per_token = cost.flops_per_token
    named = {part.name: part for part in parts}
    step_seconds = named["student"].step_seconds
    assert step_seconds is not None
    reached = per_token * recipe.distillation.tokens_per_step / step_seconds
    return {
        "training_seconds": {
            name: part.seconds
            for name, part in named.items()
            if name not in ("teacher cache", "init", "race")
        },
        "step_seconds": step_seconds,
        "student": {
            **sizes["student"],
            "layer_map": None if student.choice else student.layer_map,
            "layers_by": student.choice and student.choice.by,
            "family": student.family.model_type,
        },
        "ratio": {
            "parameters": sizes["student"]["parameters"] / whole["parameters"],
            "body_parameters": sizes["student"]["body_parameters"] / whole["body_parameters"],
        },
        "losses": {
            name: recipe_part(term) for name, term in recipe.distillation.losses.active().items()
        },
        "hidden_projection": plan.distillation().projection,
        "temperature": recipe.distillation.temperature,
        "tokens": tokens,
        "step": _step_memory(recipe, sizes, plan.student, plan.distillation().projection),
        "teacher_cache": _cache_cost(recipe, plan.teacher, training.step()),
        "flops_per_token": cost.flops,
        "bytes_moved_per_token": cost.bytes_moved,
        "estimates": [
            _estimate(hardware, per_token, tokens)
            for hardware in _hardware(reached, recipe.energy.watts)
        ],
        "assumed_utilization": UTILIZATION,
    }


def _race(checked: RecipeCheck) -> dict[str, Any]:
    """The candidates of a budget, how many of them are distilled on how many tokens, and where it
    is a speed, that of the teacher."""
    budget, candidates = checked.recipe.student.budget, checked.candidates
    assert budget is not None
    race, speed = budget.race, None
    if checked.times is not None:
        speed = {
            "tokens_per_second": budget.tokens_per_second,
            "teacher_tokens_per_second": 1 / checked.times.of([checked.teacher])[0],
            **checked.times.precision_facts,
        }
    return {
        "speed": speed,
        "candidates": [
            {"name": own.name, **own.shape, "parameters": own.num_parameters} for own in candidates
        ],
        "finalists": min(race.finalists, len(candidates)),
        "tokens": race.tokens,
    }


def _trainings_below_one_step(plan: LanguagePlan) -> list[str]:
    sections: dict[str, PretrainingRecipe] = {"distillation": plan.recipe.distillation}
    if not isinstance(plan.recipe.teacher, str):
        sections["teacher.training"] = plan.recipe.teacher.training
    notes = [
        f"{section} trains on {tokens:,} tokens, less than one step of {recipe.tokens_per_step:,}; "
        f"lower {section}.tokens_per_step for more steps"
        for section, recipe in sections.items()
        if (tokens := plan.tokens_to_train(recipe)) is not None and tokens < recipe.tokens_per_step
    ]
    budget, per_step = plan.recipe.student.budget, plan.recipe.distillation.tokens_per_step
    if budget is not None and budget.race.tokens < per_step:
        notes.append(
            f"student.budget.race.tokens is {budget.race.tokens:,}, less than one step of "
            f"{per_step:,}; raise it, or lower distillation.tokens_per_step"
        )
    return notes


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


def _cache_cost(
    recipe: Recipe, teacher: PretrainedConfig, step: StepShape
) -> dict[str, Any] | None:
    """What writing the teacher cache costs, once for each token of the text; None without one."""
    if recipe.cache is None:
        return None
    layout = cache_format(recipe, teacher, recipe.tokens.sequence_length)
    return {
        "bytes_per_row": layout.bytes_per_row,
        "flops_per_token": forward_flops(step, teacher),
    }


def _step_memory(
    recipe: Recipe, sizes: dict[str, dict[str, Any]], student: PretrainedConfig, projection: int
) -> dict[str, Any]:
    """Bytes of one training step: weights, gradients, optimizer, activations, one chunk of
    logits."""
    device = pick_device()
    training, length = recipe.distillation, recipe.tokens.sequence_length
    precision = pick_precision(training.precision, device)
    tokens = micro_batch_sequences(training.micro_batch_tokens, device, length) * length
    tokens = min(tokens, training.tokens_per_step)
    # Per token and layer about 16 hidden-size activations are kept for backward, plus attention
    # inputs.
    width = 2 if precision == "bf16" else 4
    activations = tokens * student.num_hidden_layers * 20 * student.hidden_size * width
    teacher_bytes = sizes["teacher"]["parameters"] * width if recipe.cache is None else 0
    learned = 16 * (sizes["student"]["parameters"] + projection)
    chunk = CHUNK_BYTES[device.type]
    return {
        "tokens_per_step": training.tokens_per_step,
        "micro_batch_tokens": tokens,
        "precision": precision,
        "memory_bytes": learned + teacher_bytes + activations + chunk,
        "student_bytes": learned,
        "teacher_bytes": teacher_bytes,
        "activation_bytes": activations,
        "logits_bytes": chunk,
    }


def _hardware(reached: float, watts: float | None) -> list[Hardware]:
    """Where training may run; `reached` is its FLOP/s on this machine, `watts` its power."""
    device = pick_device()
    rate = matmul_rate((1024, 768, 3072), DTYPES[pick_precision("auto", device)], device)
    here = f"this machine ({processor_name()}, {num_cores()} cores)"
    source = f"a step timed now, at {reached / rate:.0%} of the speed of a matrix product"
    return [Hardware(here, rate, watts, source, reached / rate), *REFERENCE_HARDWARE]


def _estimate(hardware: Hardware, per_token: int | float, tokens: int | None) -> dict[str, Any]:
    seconds_per_token = per_token / (hardware.flops_per_second * hardware.utilization)
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
    """Print the result as tables, on stdout."""
    parts: list[terminal.Part] = [f"{result['recipe']} is valid"]
    if "student" in result:
        parts += _distillation_parts(result)
    for name, task in result["tasks"].items():
        rows = [
            [
                model,
                facts["start"],
                facts["teacher"] or "",
                str(facts["num_layers"]),
                units.count(facts["parameters"]),
            ]
            for model, facts in task["models"].items()
        ]
        columns = ["", "starts from", "teacher", "layers", "parameters"]
        title = f"{name}: {task['task']['kind']}"
        parts.append(terminal.table(columns, rows, title=title, wrap=True))
    parts += [f"note: {note}" for note in result["notes"]]
    terminal.show(*parts, *_time_parts(result))


def _race_line(race: dict[str, Any]) -> str:
    """How many candidates there are, and of what size and depth."""
    sizes, layers = ([own[key] for own in race["candidates"]] for key in ("parameters", "layers"))
    depth = f"{min(layers)} to {max(layers)}" if len({*layers}) > 1 else f"{layers[0]}"
    what, timed = f"up to {max(sizes):,} parameters", ""
    if speed := race["speed"]:
        what = f"about {speed['tokens_per_second']:,.1f} tokens/s"
        timed = (
            f"; decoding, the teacher has {speed['teacher_tokens_per_second']:,.1f} tokens/s (one "
            f"sequence, {speed['precision']}: {speed['reason']}), and each candidate is timed "
            "beside it after the cut"
        )
    return (
        f"race: {counted(len(sizes), 'candidate')} of {what} and {depth} layers, the first of them "
        f"in the table; the {race['finalists']} best after the cut are distilled on "
        f"{race['tokens']:,} tokens each{timed}"
    )


def _layer_map(student: dict[str, Any]) -> str:
    if student["layer_map"] is not None:
        return f"layer map: {student['layer_map']}"
    by = "by influence" if student["layers_by"] == "influence" else "greedily"
    return f"layer map: {counted(student['num_layers'], 'layer')}, chosen {by} at init"


def _time_parts(result: dict[str, Any]) -> list[terminal.Part]:
    """The parts of the run, those with long steps, and those that are unknown."""
    found, rows, lines = result["time"], [], []
    for part in found["parts"]:
        number, seconds = part["num_steps"], part["step_seconds"] or 0
        rows.append(
            [
                part["name"],
                "?" if part["seconds"] is None else duration(part["seconds"]),
                "" if number is None else f"{number:,} of {duration(seconds)}",
            ]
        )
        if seconds > LONG_STEP_SECONDS:
            steps = "" if number is None else f"{counted(number, 'step')}, "
            lines.append(
                f"{part['name']}: {steps}each about {duration(seconds)}; lower {part['setting']} "
                "for shorter steps, and more of them"
            )
    rows.append(["total", duration(found["seconds"]), ""])
    title = f"run on this machine, {counted(len(result['seeds']), 'seed')}"
    unknown = [f"not estimated: {name}: {why}" for name, why in found["not_estimated"].items()]
    return [terminal.table(["", "time here", "steps"], rows, title=title), *lines, *unknown]


def _distillation_parts(result: dict[str, Any]) -> list[terminal.Part]:
    """The sizes of the models, then a step, the tokens, the cache, and the time elsewhere."""
    teacher, student, ratio = result["teacher"], result["student"], result["ratio"]
    shown = {
        "parameters": ("parameters", units.count),
        "body_parameters": ("without the head", units.count),
        "size_bytes": ("size in float32", units.size_bytes),
        "num_layers": ("layers", str),
        "hidden_size": ("hidden size", str),
        "vocabulary_size": ("vocabulary", "{:,}".format),
        "model_type": ("architecture", str),
    }
    rows = [
        [label, show(teacher[key]), show(student[key]), f"{ratio[key]:.0%}" if key in ratio else ""]
        for key, (label, show) in shown.items()
    ]
    step, tokens = result["step"], result["tokens"]
    losses = [
        f"{name} ({', '.join(f'{key} {value}' for key, value in term.items())})"
        for name, term in result["losses"].items()
    ]
    lines = [
        _race_line(result["race"]) if "race" in result else _layer_map(student),
        f"losses: {', '.join(losses)}; temperature {result['temperature']}",
        f"a step: {step['tokens_per_step']:,} tokens in micro-batches of "
        f"{step['micro_batch_tokens']:,}, {step['precision']}, about "
        f"{units.size_bytes(step['memory_bytes'])} of memory",
        f"a step takes about {duration(result['step_seconds'])} here",
        "power of this machine: unknown",
        f"tokens: {tokens:,}" if tokens else "tokens: known once the text is prepared",
    ]
    if number := result["hidden_projection"]:
        lines.append(
            f"hidden states are compared through a learned projection of {number:,} parameters, "
            "which the saved student does not have"
        )
    if cache := result["teacher_cache"]:
        lines.append(
            f"teacher cache: {cache['bytes_per_row']} bytes a row; writing it takes "
            f"{cache['flops_per_token'] / 1e6:,.1f} MFLOPs per token of all the text, once, "
            "which the figures below leave out"
        )
    own, *others = result["estimates"]
    others = [each for each in others if (each["seconds"] or 1) >= 1]  # no news of a short run
    shown_estimates, assumed = [own, *others], f"{result['assumed_utilization']:.0%}"
    return [
        terminal.table(["", "teacher", "student", "ratio"], rows),
        *lines,
        *(f"on {_estimate_line(estimate)}" for estimate in shown_estimates),
        *([f"On other machines {assumed} of the rate is assumed."] if others else []),
    ]


def _estimate_line(estimate: dict[str, Any]) -> str:
    span, what = estimate["seconds"], "training"
    if span is None:
        span, what = estimate["seconds_per_billion_tokens"], "a billion tokens"
    energy = "" if estimate["joules"] is None else f", {estimate['joules'] / 3.6e6:.2g} kWh"
    return (
        f"{estimate['hardware']}: about {estimate['tokens_per_second']:,.0f} tokens/s, {what} in "
        f"{duration(span)}{energy} ({estimate['source']})"
    )
