"""What a student lost of its teacher, beside a control and a random student of the same shape."""

import copy
from collections.abc import Mapping
from typing import Any

import torch

from stillhouse import terminal
from stillhouse.errors import DataError, ModelError
from stillhouse.inference.load import language_model
from stillhouse.inference.loaded import LoadedModel
from stillhouse.inspection.lost import Comparison, compare, num_passes
from stillhouse.inspection.text import PackedText, read_text
from stillhouse.inspection.tokens import NUM_TOKENS
from stillhouse.inspection.units import (
    Neuron,
    down_projections,
    load_language_model,
    norms_written_by,
    num_units,
)
from stillhouse.student.calibration import check_source
from stillhouse.training.progress import Reporter
from stillhouse.wording import counted

SEED = 0  # of the random student


def random_student(student: LoadedModel) -> LoadedModel:
    """A model of a student's configuration with the weights of a new model."""
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        model = type(student.model)(copy.deepcopy(student.model.config)).eval()
    model.num_tokens = student.num_ids  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
    model.to(student.model.device)  # pyright: ignore[reportArgumentType]
    return language_model(model, student.tokenizer)


def check_same_tokens(one: LoadedModel, other: LoadedModel, names: tuple[str, str]) -> None:
    """Refuse models whose positions cannot be compared.

    Raises:
        ModelError: a causal and a masked model.
        DataError: another tokenizer.
    """
    if one.family.language_modeling != other.family.language_modeling:
        raise ModelError(
            f"{names[0]} does {one.family.language_modeling} language modeling, {names[1]} "
            f"{other.family.language_modeling}: their hidden states cannot be compared."
        )
    ours, theirs = one.token_ids, other.token_ids
    differ = [token for token in theirs if ours.get(token) != theirs[token]]
    if differ or len(ours) != len(theirs):
        raise DataError(
            f"{names[0]} and {names[1]} have different tokenizers: {len(differ):,} tokens of the "
            f"second have another id in the first, or none. Give models of one tokenizer."
        )


def inspect_student(
    names: Mapping[str, str], source: str, num_tokens: int, reporter: Reporter, *, offline: bool
) -> dict[str, Any]:
    """Compare a student, a control if there is one, and a random student with a teacher.

    Args:
        names: Of the models: student, teacher and perhaps control.

    Raises:
        ModelError, DataError: models or text that cannot be compared.
    """
    check_source(source, "--text", offline=offline)
    models = {role: load_language_model(name, offline=offline) for role, name in names.items()}
    teacher = models.pop("teacher")
    for role, model in models.items():
        check_same_tokens(model, teacher, (names[role], names["teacher"]))
    models["random"] = random_student(models["student"])
    shortest = min(
        [*models.values(), teacher],
        key=lambda each: each.family.num_positions(each.model.config),
    )
    text = read_text(shortest, source, num_tokens, reporter, offline=offline)
    _check_length(text, max(each.model.config.hidden_size for each in models.values()), source)
    found = {}
    for role, model in models.items():
        reporter.start(role, 0, num_passes(model, teacher) * 2 * text.input_ids.numel())
        done = 0

        def tick(tokens: int) -> None:
            nonlocal done
            done += tokens
            reporter.step(done, {})

        try:
            found[role] = compare(model, teacher, text, tick)
        finally:
            reporter.finish()
    return {
        **names,
        "text": source,
        "tokens": text.num_counted,
        "layers": _layers(found),
        "units_lost_most": _lost_most(teacher, models["student"], found["student"]),
        "correlations": {
            role: [[round(each, 4) for each in layer] for layer in own.correlations.tolist()]
            for role, own in found.items()
        },
    }


def _check_length(text: PackedText, hidden_size: int, source: str) -> None:
    """Refuse a text on whose first half a linear map would fit noise.

    Raises:
        DataError: fewer tokens in each half than twice the hidden size.
    """
    fewest = 4 * hidden_size
    if text.num_counted < fewest:
        raise DataError(
            f"--text {source} gives {text.num_counted:,} tokens; a linear map from {hidden_size:,} "
            f"channels needs {fewest:,}, half of them to test. Raise --tokens, or give a longer "
            "text."
        )


def _layers(found: Mapping[str, Comparison]) -> list[dict[str, Any]]:
    """Of each teacher layer and model the best layer with its R^2, and the median correlation of
    units."""
    return [
        {
            "layer": layer,
            **{
                role: {
                    "r2": float(own.r2[:, layer].max()),
                    "best_layer": int(own.r2[:, layer].argmax()),
                    "correlation": float(own.correlations[layer].median()),
                }
                for role, own in found.items()
            },
        }
        for layer in range(found["student"].r2.shape[1])
    ]


def _lost_most(
    teacher: LoadedModel, student: LoadedModel, found: Comparison
) -> list[dict[str, Any]]:
    """The teacher's neurons of which most is missing: the largest standard deviation of what a
    neuron writes that no student neuron predicts, sqrt(1 - r^2) * its spread * |what it writes at
    activation 1|."""
    norms = torch.stack([norms_written_by(each) for each in down_projections(teacher)])
    kept = found.correlations.clamp(0, 1)
    lost = (1 - kept.square()).sqrt() * found.spread * norms.detach().cpu()
    size, width = num_units(student)[1], lost.shape[1]
    rows = []
    for place in lost.flatten().topk(min(NUM_TOKENS, lost.numel())).indices.tolist():
        layer, number = divmod(place, width)
        nearest = divmod(int(found.nearest[layer, number]), size)
        rows.append(
            {
                "neuron": str(Neuron(layer, number)),
                "nearest": str(Neuron(*nearest)),
                "correlation": round(float(found.correlations[layer, number]), 4),
                "lost": round(float(lost[layer, number]), 4),
            }
        )
    return rows


def print_student(found: dict[str, Any]) -> None:
    """Print layers and units on stdout."""
    roles = [role for role in ("student", "control", "random") if role in found["layers"][0]]
    rows = [
        [
            str(row["layer"]),
            *(f"{row[role]['r2']:.3f} ({row[role]['best_layer']})" for role in roles),
            *(f"{row[role]['correlation']:.2f}" for role in roles),
        ]
        for row in found["layers"]
    ]
    columns = ["layer", *(f"R2 {role}" for role in roles), *(f"r {role}" for role in roles)]
    title = (
        f"layers of {found['teacher']} on {counted(found['tokens'], 'token')}: held-out R2 of the "
        "best layer (its number), median correlation r of units"
    )
    units = [
        [row["neuron"], row["nearest"], f"{row['correlation']:.2f}", f"{row['lost']:.3g}"]
        for row in found["units_lost_most"]
    ]
    terminal.show(
        terminal.table(columns, rows, title=title),
        terminal.table(
            ["neuron", "nearest of the student", "correlation", "lost"],
            units,
            title="neurons of which most is missing",
        ),
    )
