"""`stillhouse verify`: every check of a recipe, as a table."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from stillhouse.families import load_model
from stillhouse.objectives.language_model import Teacher
from stillhouse.recipe import Recipe
from stillhouse.tokens.source import open_source, open_tokenizer
from stillhouse.tokens.tokenizer import special_tokens
from stillhouse.training.device import pick_device
from stillhouse.verification.checks import Check
from stillhouse.verification.language import LanguageCase, language_checks
from stillhouse.verification.scratch import prepare_scratch

TOKENS = 1024  # of the sequences looked at, about
FEWEST_SEQUENCES = 2


def verify_recipe(name: str, recipe: Recipe, *, offline: bool) -> dict[str, Any]:
    """Every check of the recipe, by what it trains. Writes to a temporary folder only.

    Raises:
        StillhouseError: the recipe, its teacher or its text cannot be used.
    """
    parts: dict[str, list[Check]] = {}
    if recipe.corpus is not None:
        with tempfile.TemporaryDirectory(prefix="stillhouse-verify-") as folder:
            case = language_case(recipe, Path(folder), offline=offline)
            parts["distillation"] = list(language_checks(case))
    checks = {part: [check.as_json() for check in found] for part, found in parts.items()}
    failed = sum(not check.passed for found in parts.values() for check in found)
    return {"recipe": name, "checks": checks, "failed": failed, "tables": parts}


def language_case(recipe: Recipe, folder: Path, *, offline: bool) -> LanguageCase:
    """The recipe's own stages on its first text, in this folder, and what is to be looked at."""
    small, pipeline = prepare_scratch(recipe, folder, offline=offline)
    run, device = pipeline.run, pick_device()
    family, student = load_model(run.student_init)
    teacher_family, teacher = load_model(pipeline.teacher_folder())
    for model in (student, teacher):
        model.to(device)  # pyright: ignore[reportArgumentType]
    tokenizer = open_tokenizer(run.tokens)
    special = special_tokens(tokenizer, small.tokens.language_modeling)
    source = open_source(run.tokens, small.tokens, "train")
    whole = source.num_sequences - 1  # the last sequence may end in padding
    number = min(whole, max(FEWEST_SEQUENCES, TOKENS // small.tokens.sequence_length))
    causal = small.tokens.language_modeling == "causal"
    begins = special.end_of_text if causal else special.cls
    if causal and small.tokens.attend_across_documents:
        begins = None
    pad = special.end_of_text if causal else special.pad
    assert pad is not None
    return LanguageCase(
        small,
        run,
        Teacher(teacher_family, teacher.requires_grad_(False)),
        family,
        student,
        source,
        np.arange(max(1, number)),
        begins,
        pad,
    )
