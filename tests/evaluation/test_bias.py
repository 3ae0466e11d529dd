"""Bias of a run's models: the same sentences for all, and how far each is from the ideal value."""

import json
from functools import cache, partial
from shutil import copytree

import numpy as np
import pytest
import torch

from stillhouse.check import data_set_sizes
from stillhouse.errors import DataError, RecipeError
from stillhouse.evaluation.bias import bias_scores, change
from stillhouse.evaluation.data_sets import ScoredModel
from stillhouse.evaluation.evaluate import evaluate_inputs
from stillhouse.evaluation.metrics.base import Cache
from stillhouse.evaluation.stage import check
from stillhouse.models.load import load_model
from stillhouse.recipe_file import parse_recipe
from stillhouse.runs.paths import RunFolder
from stillhouse.stages.check import RecipeCheck
from stillhouse.tasks.metrics import PERCENT, MetricSamples, mean_percent
from stillhouse.training.progress import QuietReporter

RECIPE = """
teacher: sample
corpus: {source: sample}
evaluation:
  bias:
    pairs: {task: crows_pairs, data: DATA}
"""


@pytest.fixture
def data(tmp_path):
    """Twelve pairs of two kinds."""
    words = ["warm", "cold", "dry", "far", "old", "new"] * 2
    rows = "".join(
        f'"The {word} still is here.","The {word} man is here.",{("age", "race")[number % 2]}\n'
        for number, word in enumerate(words)
    )
    path = tmp_path / "pairs.csv"
    path.write_text(f"sent_more,sent_less,bias_type\n{rows}")
    return path


def prefers(share, *, size=400, shift=0):
    """A model that prefers the stereotype in this share of the pairs, in percent."""
    values = np.roll((np.arange(size) < share / 100 * size).astype(float), shift)
    return MetricSamples(mean_percent, values, values, PERCENT)


@pytest.mark.parametrize(
    ("student", "teacher", "expected"), [(70, 60, 10), (60, 70, -10), (40, 60, 0), (50, 40, -10)]
)
def test_change_is_of_the_distance_to_the_ideal(student, teacher, expected):
    """Above and below it are as far."""
    found = change(prefers(student), prefers(teacher), 50.0)
    assert found.value == pytest.approx(expected)
    assert found.low <= found.value <= found.high


def test_change_is_paired():
    """Models that prefer the same sentences have a narrower interval."""
    together = change(prefers(70), prefers(65), 50.0)
    apart = change(prefers(70, shift=200), prefers(65), 50.0)
    assert together.high - together.low < 0.7 * (apart.high - apart.low)


@pytest.mark.parametrize(("family", "head"), [("gpt2", "CausalLM"), ("bert", "MaskedLM")])
def test_every_model_is_measured_on_the_same_sentences(task_folder, tmp_path, data, family, head):
    """A copy of the teacher does not differ from it; a changed one does. Causal and masked."""
    recipe = parse_recipe(RECIPE.replace("DATA", str(data)))
    folder, changed = task_folder(family, head), tmp_path / "changed"
    copytree(folder, changed)
    models = {
        name: ScoredModel(path, cache(partial(load_alone, path)), path)
        for name, path in (("teacher", folder), ("student", changed), ("control", folder))
    }
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        for parameter in models["student"].model().parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    run, sets = RunFolder.at(tmp_path), recipe.evaluation.bias
    found = bias_scores(sets, run, models, Cache(), QuietReporter())
    assert found is not None
    own = found["pairs"]
    assert (own["num_examples"], own["metric"]) == (12, "stereotype_score")
    metrics = [
        *("stereotype_score", "log_likelihood_difference"),
        *("stereotype_score/age", "stereotype_score/race"),
    ]
    for model in models:
        assert [*own["models"][model]] == metrics
    assert own["ideal"] == dict(zip(metrics, (50, 0, 50, 50), strict=True))
    name = "log_likelihood_difference"
    student, teacher, control = (
        own["models"][model][name]["value"] for model in ("student", "teacher", "control")
    )
    assert teacher == control != student
    assert own["bias_change"][name]["value"] == pytest.approx(student - teacher)
    assert json.loads(json.dumps(found)) == found
    assert bias_scores({}, run, models, Cache(), QuietReporter()) is None


def test_a_set_of_two_files_is_not_fetched(tmp_path):
    """Its second file would be missing after the training."""
    text = RECIPE.replace("crows_pairs", "winobias").replace("DATA", "hf://owner/name")
    with pytest.raises(RecipeError, match="but the set is two files"):
        check(RecipeCheck(parse_recipe(text), ["evaluate"], offline=True))


def test_a_set_for_causal_models_is_refused_for_masked_ones(tmp_path):
    """Before the run, not after the training."""
    path = tmp_path / "bold.json"
    path.write_text('{"cooks": {"Ann": ["Ann cooks "]}}')
    text = RECIPE.replace("crows_pairs", "bold").replace("DATA", str(path))
    check(RecipeCheck(parse_recipe(text), ["evaluate"], offline=True))
    masked = parse_recipe(text + "tokens: {language_modeling: masked}\n")
    with pytest.raises(RecipeError, match="gender_polarity is for causal models, and those of"):
        check(RecipeCheck(masked, ["evaluate"], offline=True))


@pytest.mark.parametrize(("family", "head"), [("gpt2", "CausalLM"), ("bert", "MaskedLM")])
def test_templates_show_words_beside_their_separation(task_folder, tmp_path, family, head):
    path = tmp_path / "templates.jsonl"
    path.write_text('{"template": "The {group} still is", "groups": ["old", "new"]}\n')
    few = "{kind: templates, samples: 100, max_new_tokens: 2}"
    recipe = parse_recipe(RECIPE.replace("crows_pairs", few).replace("DATA", str(path)))
    folder = task_folder(family, head)
    model = ScoredModel(folder, cache(partial(load_alone, folder)), folder)
    models = {"teacher": model, "student": model}
    run = RunFolder.at(tmp_path)
    found = bias_scores(recipe.evaluation.bias, run, models, Cache(), QuietReporter())
    assert found is not None
    own = found["pairs"]
    assert own["ideal"] == {"separation": 0}
    assert own["bias_change"]["separation"]["value"] == 0
    prompts = [each["prompt"] for each in own["details"]["student"]]
    assert prompts == ["The old still is", "The new still is"]
    assert own["details"]["student"] == own["details"]["teacher"]


def load_alone(folder):
    return load_model(folder)[1]


def test_other_sentences_are_evaluated_again(tmp_path, data):
    """Also of the second file of a set."""
    recipe, run = parse_recipe(RECIPE.replace("DATA", str(data))), RunFolder.at(tmp_path)
    before = evaluate_inputs(recipe, run, "", {}, 0)
    data.write_text(data.read_text().replace("cold", "hot"))
    assert evaluate_inputs(recipe, run, "", {}, 0) != before
    path = tmp_path / "pro_stereotyped.txt"
    anti = tmp_path / "anti_stereotyped.txt"
    for each in (path, anti):
        each.write_text("1 [He] saw [him].\n")
    text = RECIPE.replace("DATA", str(path)).replace("crows_pairs", "winobias")
    recipe = parse_recipe(text)
    before = evaluate_inputs(recipe, run, "", {}, 0)
    anti.write_text("1 [He] saw [her].\n")
    assert evaluate_inputs(recipe, run, "", {}, 0) != before


@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_a_recipe_is_checked_before_it_runs(tokenizer_of, tmp_path, data, kind):
    """The file and its rows, for both kinds of models; its size counts in the estimate."""
    text = RECIPE + f"tokens: {{language_modeling: {kind}}}\n"
    checked = RecipeCheck(parse_recipe(text.replace("DATA", str(data))), ["evaluate"], offline=True)
    checked.tokenizer = tokenizer_of("gpt2" if kind == "causal" else "bert")
    check(checked)
    sizes, unknown = data_set_sizes(checked)
    assert sizes["bias.pairs"].read > 12 * 5
    assert unknown == []
    with pytest.raises(DataError, match=r"evaluation.bias.pairs.data: there is no file"):
        check(RecipeCheck(parse_recipe(text), ["evaluate"], offline=True))
    data.write_text("sent_more,sent_less\nx,\n")
    with pytest.raises(DataError, match="row 2: the column 'sent_less' must hold a sentence"):
        check(checked)
