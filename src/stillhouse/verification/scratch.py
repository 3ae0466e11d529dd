"""A small run of a recipe in a folder of its own: its own stages, on the first of its own text.

A teacher that the recipe trains is trained for a few steps here: the checks do not depend on how
good it is.
"""

import json
from pathlib import Path

from stillhouse.data.documents import read_documents
from stillhouse.pipeline import Options, Pipeline
from stillhouse.recipe import Recipe
from stillhouse.runs.paths import RunFolder
from stillhouse.teacher.settings import TeacherRecipe
from stillhouse.training.progress import QuietReporter

DOCUMENT_CHARACTERS = 8_000  # of each document, so that several share a sequence
SEQUENCES = 12  # about so many of training text
CHARACTERS_PER_TOKEN = 6  # more than tokenizers need, so that there is enough
FEWEST_DOCUMENTS = 6


def prepare_scratch(recipe: Recipe, folder: Path, *, offline: bool) -> tuple[Recipe, Pipeline]:
    """Tokens, teacher and initial student of the recipe's first text, in `folder`.

    Returns:
        The recipe as it was run, and its pipeline.
    """
    text = folder / "text.jsonl"
    write_first_documents(recipe, text, offline=offline)
    small = small_recipe(recipe, text)
    run = RunFolder.at(folder / "run")
    pipeline = Pipeline(small, run, QuietReporter(), Options(offline=offline))
    pipeline.run_stages(["prepare", "teacher", "init"])
    return small, pipeline


def write_first_documents(recipe: Recipe, target: Path, *, offline: bool) -> None:
    """The beginnings of the recipe's first documents, as JSON lines."""
    assert recipe.corpus is not None
    wanted = SEQUENCES * CHARACTERS_PER_TOKEN * recipe.tokens.sequence_length
    room = max(DOCUMENT_CHARACTERS, wanted // FEWEST_DOCUMENTS)
    written, documents = 0, 0
    with target.open("w", encoding="utf-8") as file:
        for piece in read_documents(recipe.corpus, offline=offline):
            if not piece.starts_document:
                continue
            if written >= wanted and documents >= FEWEST_DOCUMENTS:
                break
            beginning = piece.text[:room]
            file.write(json.dumps({"id": piece.document_id, "text": beginning}) + "\n")
            written, documents = written + len(beginning), documents + 1


def small_recipe(recipe: Recipe, text: Path) -> Recipe:
    """The recipe on this text alone, for one seed and without tasks; a teacher that it trains is
    trained for two steps."""
    assert recipe.corpus is not None
    corpus = recipe.corpus.model_copy(
        update={"source": str(text), "text_field": "text", "validation_fraction": 0.3}
    )
    changes: dict[str, object] = {"corpus": corpus, "seed": recipe.seeds[0], "finetuning": {}}
    if isinstance(recipe.teacher, TeacherRecipe):
        step = 2 * recipe.tokens.sequence_length
        training = recipe.teacher.training.model_copy(
            update={"tokens_per_step": step, "max_tokens": 2 * step, "precision": "fp32"}
        )
        changes["teacher"] = recipe.teacher.model_copy(update={"training": training})
    return recipe.model_copy(update=changes)
