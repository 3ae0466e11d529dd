"""Whether a teacher models the text: its loss compared with that of token counts."""

import math

import numpy as np
import pytest

from stillhouse.corpus.prepare import prepare
from stillhouse.data.documents import is_validation
from stillhouse.data.sources.sample import sample_documents
from stillhouse.evaluation.teacher_fit import (
    TeacherFit,
    advice,
    unigram_log_probabilities,
    warning_of_a_weak_teacher,
)
from stillhouse.models.hub import resolve_folder
from stillhouse.recipe_file import parse_recipe
from stillhouse.runs.paths import RunFolder

RECIPE = """
teacher: {teacher}
corpus: {{source: {text}, validation_fraction: 0.4}}
tokens: {{language_modeling: causal, sequence_length: 64}}
student: {{layer_map: 3}}
distillation: {{tokens_per_step: 1024, optimizer: {{learning_rate: 0.001}}}}
"""
GERMAN = "Der alte Müller ging langsam über die schmale Brücke und sah zum Wald hinüber.\n"


def test_unigram_probabilities_sum_to_one():
    for counts in ([3, 0, 1, 0, 0], [2, 5, 1]):
        assert np.exp(unigram_log_probabilities(np.array(counts))).sum() == pytest.approx(1)


def test_unigram_probabilities_are_those_of_witten_and_bell():
    """Seen: count / (N + T); the unseen ones share T / (N + T)."""
    found = np.exp(unigram_log_probabilities(np.array([3, 0, 1, 0, 0])))
    assert found == pytest.approx([3 / 6, 2 / 6 / 3, 1 / 6, 2 / 6 / 3, 2 / 6 / 3])


@pytest.mark.parametrize(("loss", "weak"), [(3.0, False), (5.0, True), (math.nan, True)])
def test_a_teacher_is_weak_above_a_share_of_the_unigram_loss(loss, weak):
    assert TeacherFit(loss, 6.0, 4_096).is_weak == weak


def test_advice_for_a_trained_teacher_is_to_train_longer(tmp_path):
    recipe = parse_recipe(RECIPE.format(teacher="{start: sample}", text="x.txt"))
    assert "Train it longer: raise teacher.training.epochs" in advice(recipe)
    folder = resolve_folder("sample", offline=True)
    assert warning_of_a_weak_teacher(recipe, RunFolder.at(tmp_path), folder) is None


def held_out_python():
    """Python text that was held out from the sample teacher."""
    return [text[:4_000] for name, text in sample_documents() if is_validation(name, 0.04)][:10]


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("texts", "weak"),
    [(held_out_python, False), (lambda: [f"{GERMAN}{number}. " * 9 for number in range(10)], True)],
)
def test_sample_teacher_is_weak_on_german_and_not_on_python(tmp_path, texts, weak):
    """The warning for German text contains the lines to add to the recipe."""
    (tmp_path / "texts").mkdir()
    for number, text in enumerate(texts()):
        (tmp_path / f"texts/{number}.txt").write_text(text, encoding="utf-8")
    recipe = parse_recipe(RECIPE.format(teacher="sample", text=tmp_path / "texts"))
    run, folder = RunFolder.at(tmp_path / "run"), resolve_folder("sample", offline=True)
    prepare(recipe, run, teacher_tokenizer=folder, offline=True)
    warning = warning_of_a_weak_teacher(recipe, run, folder)
    assert (warning is not None) == weak
    if warning is not None:
        lines = warning.partition("in the recipe: ")[2]
        tuned = parse_recipe(
            RECIPE.replace("teacher: {teacher}", "{line}").format(text="x", line=lines)
        )
        assert tuned.trains_its_teacher
        assert "models this text poorly" in warning
