"""Handmade results of a run: what the evaluation and the training would have left."""

import json
import math
from collections.abc import Mapping
from typing import Any

from stillhouse.recipe import Recipe
from stillhouse.recipe_file import parse_recipe
from stillhouse.runs.paths import RunFolder

RECIPE = """
seed: {seed}
teacher: {teacher}
corpus: {{source: sample}}
tokens: {{language_modeling: {kind}, sequence_length: 256}}
student: {{layer_map: [0, 2, 5]}}
report: {{model_name: tiny-still, license: apache-2.0}}
"""

# Loss, parameters, forward tokens/s.
FIGURES = {
    "teacher": (3.2, 5_000_000, 4_120.0),
    "student": (3.33, 3_012_000, 6_590.0),
    "control": (3.36, 3_012_000, 6_601.0),
    "control_same_time": (3.31, 3_012_000, 6_580.0),
}


def make_recipe(
    *, seed: str = "0", teacher: str = "openai-community/gpt2", kind: str = "causal"
) -> Recipe:
    return parse_recipe(RECIPE.format(seed=seed, teacher=teacher, kind=kind))


def make_model(name: str, loss: float | None, *, kind: str = "causal") -> dict[str, Any]:
    _, parameters, speed = FIGURES[name]
    causal = kind == "causal"
    perplexity = None
    if causal:
        token = math.exp(loss) if loss is not None and loss < 709 else None
        perplexity = {
            "token": token,
            "token_sliding": token and token * 0.97,
            "word": token and token**1.6,
            "bits_per_byte": loss and loss / 2.3,
            "tokens_scored": 51_200,
            "words": 39_000,
            "bytes": 230_000,
        }
    trained = {"tokens": 2_000_000, "seconds": 754.0, "steps": 488, "mfu": 0.41}
    return {
        "path": f"/home/someone/runs/<tiny>/{name}",
        "parameters": parameters,
        "body_parameters": parameters - 1_000_000,
        "size_bytes": parameters * 4 + 1200,
        "validation_loss": loss,
        "masked_loss": None if causal else loss,
        "perplexity": perplexity,
        "agreement": {"acceptance_rate": 0.71, "top1_agreement": 0.62},
        "speed": {
            "forward_tokens_per_second": speed,
            "generate_tokens_per_second": speed / 40 if causal else None,
            "ratio_to_first": {"forward": [speed / 4_200, speed / 4_000], "generate": None},
        },
        "peak_memory_bytes": 412_000_000,
        "training": None if name == "teacher" else trained,
    }


def make_intervals(losses: Mapping[str, float | None], width: float | None) -> dict[str, Any]:
    """Each difference to the student, give or take `width`; no ends where that is None."""
    found = {}
    for name, loss in losses.items():
        if name == "student":
            continue
        student = losses["student"]
        value = None if loss is None or student is None else student - loss
        ends = None if value is None or width is None else (value - width, value + width)
        found[name] = {
            "value": value,
            "low": ends[0] if ends else None,
            "high": ends[1] if ends else None,
            "unit": "documents",
            "units": 40 if ends else 4,
        }
    return found


def make_evaluation(
    losses: Mapping[str, float | None],
    *,
    seed: int = 0,
    kind: str = "causal",
    width: float | None = 0.004,
) -> dict[str, Any]:
    models = {name: make_model(name, loss, kind=kind) for name, loss in losses.items()}
    return {
        "schema": 2,
        "intervals": make_intervals(losses, width),
        "diverged": [name for name, loss in losses.items() if loss is None or loss > 9],
        "protocol": {
            "validation": "Every token of the validation split is scored, in blocks of 256.",
            "perplexity_block": 256,
            "stride": 128,
            "speed": "Median of 5 passes over 8 x 256 tokens after 2 warm-up passes.",
            "texts": {"validation": "the recipe's validation split, 51,200 tokens"},
        },
        "machine": {
            "processor": "AMD EPYC",
            "cores": 2,
            "threads": 2,
            "memory_bytes": 8_000_000_000,
            "gpus": [],
            "system": "Linux x86_64",
        },
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "commit": "abc123",
        "seed": seed,
        "models": models,
        "comparison": {},
        "samples": [
            {
                "prompt": 'If x < 3 & y > "4"',
                "continuations": {
                    name: f"then <b>{name}</b> says <script>alert(1)</script>" for name in models
                },
            }
        ]
        if kind == "causal"
        else [],
    }


def make_metrics(models: list[str], *, num_steps: int = 60, nan_at: int | None = None) -> str:
    lines = []
    for model in models:
        for step in range(1, num_steps + 1):
            wiggle = 0.06 * math.sin(step * 2.3) + 0.04 * math.sin(step * 7.1)
            shift = -0.03 if model == "student" else 0.0
            language = 3.3 + 5 * math.exp(-step / (num_steps / 12)) + wiggle + shift
            line: dict[str, Any] = {
                "model": model,
                "step": step,
                "loss": language,
                "grad_norm": 1.2 + abs(wiggle) * 8,
                "learning_rate": 5e-4 * min(1, step / 3) * (1 - step / (num_steps + 1)),
                "tokens": step * 4096,
                "tokens_per_second": (2600 if model == "student" else 4100) * (1 + wiggle),
                "seconds": step * 1.5,
                "skipped_steps": 0,
            }
            if model == "student":
                soft, cosine = 2.1 * math.exp(-step / 20) + 0.4 + wiggle, 0.3 - 0.002 * step
                line |= {"soft_target": soft, "hidden_cosine": cosine}
                line |= {"language_modeling": language, "loss": 5 * soft + 2 * language + cosine}
            if step == nan_at:
                line |= dict.fromkeys({"loss", "language_modeling"} & set(line))
            lines.append(json.dumps(line))
    return "\n".join(lines) + "\n"


def write_results(
    run: RunFolder,
    losses: Mapping[str, float | None],
    *,
    seed: int = 0,
    kind: str = "causal",
    **changes: Any,
) -> None:
    """`changes` are those of `make_evaluation`, or replace its keys."""
    run.student.mkdir(parents=True)
    width = changes.pop("width", 0.004)
    evaluation = make_evaluation(losses, seed=seed, kind=kind, width=width) | changes
    run.evaluation.write_text(json.dumps(evaluation), encoding="utf-8")
    run.metrics.write_text(make_metrics([name for name in losses if name != "teacher"]))
