"""What a run took: energy, emissions and cost of each stage, from the manifests; energy of
generation, and when a student has paid for its distillation.

    kWh = watts * hours / 1000        kg = kWh * kg_per_kwh        cost = devices * hours * price

This is the calculator of 2019 (Lacoste et al., arXiv:1910.09700), without overhead of a data
center: eight GPUs of 300 W for 168 hours at 0.37 kg per kWh are 149.2 kg, as DistilGPT2's card
says.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillhouse.energy.settings import EnergyRecipe
from stillhouse.errors import RecipeError
from stillhouse.extras import require
from stillhouse.runs.manifest import read_manifest
from stillhouse.runs.paths import RunFolder
from stillhouse.runs.power import JOULES_PER_KWH

UNKNOWN = "unknown"


@dataclass(frozen=True)
class StageEnergy:
    """The time of a stage, and the energy that it took; None where its power is unknown.

    `is_student`: it is a part of what the student took; controls and models of tasks are not.
    """

    name: str
    seconds: float
    kind: str
    watts: float | None
    source: str
    devices: int
    is_student: bool

    @property
    def kwh(self) -> float | None:
        return None if self.watts is None else kwh_of(self.watts, self.seconds / 3600)

    def cost(self, recipe: EnergyRecipe) -> float | None:
        """In the recipe's currency; None without a price."""
        price = recipe.price_per_hour
        return None if price is None else self.devices * self.seconds / 3600 * price


def kwh_of(watts: float, hours: float, devices: int = 1) -> float:
    """Energy of some devices of this power."""
    return watts * hours * devices / 1000


def factor_of(recipe: EnergyRecipe) -> tuple[float, str] | None:
    """kg of CO2 equivalents per kWh, and their source; None where the recipe gives neither.

    Raises:
        RecipeError: no such country, or the extra is not installed.
    """
    if recipe.kg_per_kwh is not None:
        return recipe.kg_per_kwh, "energy.kg_per_kwh of the recipe"
    if recipe.country is None:
        return None
    require("energy", purpose="energy.country")
    from codecarbon.input import DataSource

    table = DataSource().get_global_energy_mix_data()
    if recipe.country not in table:
        raise RecipeError(
            f"energy.country is {recipe.country}, of which codecarbon has no figure. Give "
            "energy.kg_per_kwh instead."
        )
    grams = table[recipe.country]["carbon_intensity"]
    return grams / 1000, f"mean of {recipe.country} in codecarbon's table"


def stages_of_run(recipe: EnergyRecipe, run: RunFolder) -> list[StageEnergy]:
    """The stages of a seed's run that are there, in order. Power that no manifest has is that of
    the recipe, which may have been given afterwards, or unknown."""
    outputs = {
        "prepare": run.tokens,
        "teacher": run.teacher,
        "teacher's outputs": run.teacher_cache,
        "race": run.race,
        "init": run.student_init,
        "distill": run.student,
        "control": run.control,
        "control, same time": run.control_same_time,
        "evaluate": run.evaluation,
    }
    for path in sorted((run.path / "finetuned").glob("*/*")):
        if path.is_dir():
            outputs[f"finetune {path.parent.name}, {path.name}"] = path
    return [found for name, path in outputs.items() if (found := _of_output(recipe, name, path))]


def _of_output(recipe: EnergyRecipe, name: str, path: Path) -> StageEnergy | None:
    manifest = read_manifest(path)
    if manifest is None:
        return None
    power = manifest.power or {"kind": UNKNOWN, "watts": None, "source": "not recorded"}
    devices = power.get("devices", 1)
    if power["watts"] is None and recipe.watts is not None:
        given = recipe.watts * devices
        power = {"kind": "estimated", "watts": given, "source": "energy.watts, given afterwards"}
    training = manifest.facts.get("training") or {}
    return StageEnergy(
        name,
        training.get("seconds") or manifest.seconds,
        power["kind"],
        power["watts"],
        power["source"],
        devices,
        not name.startswith(("control", "evaluate", "finetune")),
    )


def total_kwh(stages: Sequence[StageEnergy]) -> float | None:
    """Of all stages; None where that of one is unknown."""
    found = [each.kwh for each in stages]
    return None if not found or None in found else sum(each or 0.0 for each in found)


@dataclass(frozen=True)
class Generation:
    """Joules of 1,000 generated tokens, and after how many a student has saved what it took; None
    where it saves nothing."""

    teacher: float
    student: float
    kind: str
    paid_after: float | None


def generation_of(run: RunFolder, stages: Sequence[StageEnergy]) -> Generation | None:
    """Energy of generation, from the throughput and the power of the stage evaluate; None where
    either is unknown."""
    power = next((each for each in stages if each.name == "evaluate"), None)
    if power is None or power.watts is None:
        return None
    models = json.loads(run.evaluation.read_text(encoding="utf-8"))["models"]
    speeds = [models[name].get("speed") or {} for name in ("teacher", "student")]
    rates = [rate for each in speeds if (rate := each.get("generate_tokens_per_second"))]
    if len(rates) < 2:
        return None
    teacher, student = (1000 * power.watts / rate for rate in rates)
    spent = total_kwh([each for each in stages if each.is_student])
    saved = (teacher - student) / 1000
    paid_after = None if spent is None or saved <= 0 else spent * JOULES_PER_KWH / saved
    return Generation(teacher, student, power.kind, paid_after)


def as_json(recipe: EnergyRecipe, run: RunFolder) -> dict[str, Any]:
    """Everything above as plain values, for one seed."""
    stages, factor = stages_of_run(recipe, run), factor_of(recipe)
    generation = generation_of(run, stages)
    return {
        "stages": [dict(_stage(recipe, each, factor)) for each in stages],
        "total": _total(recipe, stages, factor),
        "student": _total(recipe, [each for each in stages if each.is_student], factor),
        "kg_per_kwh": factor and {"value": factor[0], "source": factor[1]},
        "currency": recipe.currency,
        "generation": generation
        and {
            "joules_per_1000_tokens": {
                "teacher": generation.teacher,
                "student": generation.student,
            },
            "kind": generation.kind,
            "paid_after_tokens": generation.paid_after,
        },
    }


def _stage(
    recipe: EnergyRecipe, stage: StageEnergy, factor: tuple[float, str] | None
) -> Iterator[tuple[str, Any]]:
    yield from vars(stage).items()
    yield "kwh", stage.kwh
    yield "kg_co2", _kg(stage.kwh, factor)
    yield "cost", stage.cost(recipe)


def _total(
    recipe: EnergyRecipe, stages: Sequence[StageEnergy], factor: tuple[float, str] | None
) -> Mapping[str, Any]:
    energy = total_kwh(stages)
    costs = [each.cost(recipe) for each in stages]
    kinds = {each.kind for each in stages}
    return {
        "seconds": sum(each.seconds for each in stages),
        "kind": UNKNOWN if energy is None else "measured" if kinds == {"measured"} else "estimated",
        "kwh": energy,
        "kg_co2": _kg(energy, factor),
        "cost": None if None in costs else sum(each or 0.0 for each in costs),
    }


def _kg(kwh: float | None, factor: tuple[float, str] | None) -> float | None:
    return None if kwh is None or factor is None else kwh * factor[0]
