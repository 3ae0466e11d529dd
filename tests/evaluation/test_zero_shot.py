"""Zero-shot scores of a run: intervals, paired differences, and the share of the gain kept."""

import json
import math
from functools import cache, partial
from shutil import copytree

import numpy as np
import pytest
import torch
from tokenizers import normalizers

from stillhouse.errors import DataError, RecipeError
from stillhouse.evaluation.evaluate import evaluate_inputs
from stillhouse.evaluation.metrics.base import Cache
from stillhouse.evaluation.stage import check
from stillhouse.evaluation.zero_shot import Gain, ScoredModel, gain_kept, zero_shot_scores
from stillhouse.models.load import load_model
from stillhouse.recipe_file import parse_recipe, recipe_schema
from stillhouse.runs.paths import RunFolder
from stillhouse.stages.check import RecipeCheck
from stillhouse.tasks.metrics import MetricSamples, mean
from stillhouse.training.progress import QuietReporter

RECIPE = """
teacher: sample
corpus: {source: sample}
evaluation:
  zero_shot:
    choices: {task: piqa, data: DATA, num_examples: 3}
"""


def samples(share, *, size=400, shift=0):
    """A model that is right on this share of the examples."""
    right = np.roll((np.arange(size) < share * size).astype(float), shift)
    return MetricSamples(mean, right, right)


def kept(sets):
    """The share of a teacher's gain on data sets, given both models and the chance on each."""
    model, teacher = (
        [Gain.of(each[side], each[2], seed=number) for number, each in enumerate(sets)]
        for side in (0, 1)
    )
    return gain_kept(model, teacher)


def test_gain_kept_is_the_ratio_of_the_gains_over_chance():
    """A copy keeps all of it in every resample; over several sets the mean gains count."""
    teacher, student = samples(0.8), samples(0.65)
    found = kept([(student, teacher, 0.25)])
    assert found is not None
    assert found.value == pytest.approx(0.4 / 0.55)
    assert found.low < found.value < found.high
    copy = kept([(teacher, teacher, 0.25)])
    assert copy is not None
    assert (copy.low, copy.value, copy.high) == (1.0, 1.0, 1.0)
    both = kept([(student, teacher, 0.25), (samples(0.5), samples(0.6), 0.5)])
    assert both is not None
    assert both.value == pytest.approx((0.4 + 0.0) / (0.55 + 0.1))


def test_gain_kept_is_paired():
    """Where both models are right on the same examples the interval is narrower than where they
    differ."""
    together = kept([(samples(0.7), samples(0.8), 0.5)])
    apart = kept([(samples(0.7, shift=200), samples(0.8), 0.5)])
    assert together is not None
    assert apart is not None
    assert together.high - together.low < 0.7 * (apart.high - apart.low)


def test_no_gain_is_kept_of_a_teacher_at_chance():
    assert kept([(samples(0.6), samples(0.51), 0.5)]) is None
    assert kept([(samples(0.6), samples(0.4), 0.5)]) is None


@pytest.fixture
def data(tmp_path):
    """Five questions of two choices."""
    words = ["warm", "cold", "dry", "far", "old"]
    rows = [{"query": f"The still is {word}", "choices": ["now", "not now"], "gold": number % 2}
            for number, word in enumerate(words)]  # fmt: skip
    path = tmp_path / "choices.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def loaded(folders):
    """The models of these folders, which hold their tokenizers."""
    return {
        name: ScoredModel(folder, cache(partial(load_model_alone, folder)), folder)
        for name, folder in folders.items()
    }


def load_model_alone(folder):
    return load_model(folder)[1]


def test_every_model_is_scored_on_the_same_examples(task_folder, tmp_path, data):
    """Once per folder: seeds share what is cached."""
    recipe = parse_recipe(RECIPE.replace("DATA", str(data)))
    folders = {name: task_folder("gpt2", "CausalLM") for name in ("teacher", "student")}
    models = loaded(folders)
    cache, run, sets = Cache(), RunFolder.at(tmp_path), recipe.evaluation.zero_shot
    found = zero_shot_scores(sets, run, models, cache, QuietReporter())
    assert found is not None
    own = found["sets"]["choices"]
    assert (own["num_examples"], own["chance"], own["metric"]) == (3, 0.5, "accuracy_norm")
    assert set(own["models"]["student"]) == {"accuracy", "accuracy_norm"}
    for metric, gap in own["differences"]["student minus teacher"].items():
        values = [own["models"][name][metric]["value"] for name in ("student", "teacher")]
        assert gap["value"] == pytest.approx(values[0] - values[1])
        assert gap["low"] <= gap["value"] <= gap["high"]
    assert json.loads(json.dumps(found)) == found
    with torch.no_grad():
        for parameter in models["student"].model().parameters():
            parameter.fill_(math.nan)
    assert zero_shot_scores(sets, run, models, cache, QuietReporter()) == found
    assert zero_shot_scores({}, run, models, cache, QuietReporter()) is None


def scores_of(recipe, folder, models) -> dict:
    sets, run = recipe.evaluation.zero_shot, RunFolder.at(folder)
    found = zero_shot_scores(sets, run, models, Cache(), QuietReporter())
    assert found is not None
    return found


@pytest.mark.parametrize("task", ["piqa", "lambada", "{kind: gsm8k, shots: 1, max_new_tokens: 4}"])
def test_a_model_that_diverged_has_no_score(task, task_folder, tmp_path, data):
    """A number that is not finite is no wrong answer: neither an accuracy nor a difference."""
    recipe = parse_recipe(RECIPE.replace("piqa", task).replace("DATA", str(data)))
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    more = {"question": "How far?", "answer": "#### 5"}
    data.write_text("".join(json.dumps(row | more | {"text": row["query"]}) + "\n" for row in rows))
    folders = {"teacher": task_folder("gpt2", "CausalLM"), "student": tmp_path / "diverged"}
    copytree(folders["teacher"], folders["student"])
    models = loaded(folders)
    with torch.no_grad():
        for parameter in models["student"].model().parameters():
            parameter.fill_(math.nan)
    found = scores_of(recipe, tmp_path, models)
    own, nothing = found["sets"]["choices"], {"value": None, "low": None, "high": None}
    assert None not in own["models"]["teacher"][own["metric"]].values()
    for metric in (own["metric"], *own["models"]["student"]):
        assert own["models"]["student"][metric] == nothing
        assert own["differences"]["student minus teacher"][metric] == nothing


def test_a_gain_is_not_finite_where_either_model_diverged():
    """That is not to be at chance."""
    broken = MetricSamples(mean, np.full(400, np.nan), np.full(400, np.nan))
    for found in (kept([(broken, samples(0.8), 0.5)]), kept([(samples(0.8), broken, 0.5)])):
        assert found is not None
        assert found.as_json() == {"value": None, "low": None, "high": None}


def test_other_examples_are_evaluated_again(tmp_path, data):
    """The data's hash is among the inputs of evaluation.json."""
    recipe, run = parse_recipe(RECIPE.replace("DATA", str(data))), RunFolder.at(tmp_path)
    before = evaluate_inputs(recipe, run, "", {}, 0)
    data.write_text(data.read_text().replace("cold", "hot"))
    assert evaluate_inputs(recipe, run, "", {}, 0) != before


def test_a_recipe_that_cannot_be_scored_is_refused_before_it_runs(tmp_path, data):
    """Masked models, a missing file, a row without its right choice, a task that needs training."""

    def refused(text):
        check(RecipeCheck(parse_recipe(text), ["evaluate"], offline=True))

    text = RECIPE.replace("DATA", str(data))
    refused(text)  # nothing to refuse
    with pytest.raises(RecipeError, match=r"evaluation.zero_shot is for causal models"):
        refused(text + "tokens: {language_modeling: masked}\n")
    with pytest.raises(DataError, match=r"evaluation.zero_shot.choices.data: there is no file"):
        refused(RECIPE.replace("DATA", str(tmp_path / "none.jsonl")))
    data.write_text(data.read_text().replace('"gold": 0', '"gold": 7'))
    with pytest.raises(DataError, match="row 1: the column 'gold' must hold the right choice"):
        refused(text)


@pytest.mark.parametrize(
    ("name", "kind"), [("sst2", "classification"), ("translation", "continuation")]
)
def test_a_task_that_is_not_scored_zero_shot_is_refused(name, kind):
    """By the recipe, with those that can be given, and by its JSON schema."""
    with pytest.raises(
        RecipeError, match=f"task: no task of the kind {kind} .* one of lambada, arc"
    ):
        parse_recipe(RECIPE.replace("piqa", name))
    own = recipe_schema()["$defs"]["ZeroShotRecipe"]["properties"]["task"]["anyOf"]
    assert {"piqa", "last_word"} < set(own[0]["enum"])
    assert not {name, kind} & set(own[0]["enum"])
    assert len(own) == 4


def test_generated_solutions_are_scored_after_the_shots(task_folder, tmp_path):
    """Of teacher and student alike, without the row that is shown."""
    path = tmp_path / "problems.jsonl"
    rows = [{"question": "How far?", "answer": f"It is {n % 2}.\n#### {n % 2}"} for n in range(5)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = parse_recipe(
        RECIPE.replace("piqa", "{kind: gsm8k, shots: 1, max_new_tokens: 4}").replace(
            "DATA", str(path)
        )
    )
    folder = task_folder("gpt2", "CausalLM")
    folders = {"teacher": folder, "student": folder}
    models = loaded(folders)
    found = scores_of(recipe, tmp_path, models)
    own = found["sets"]["choices"]
    assert (own["num_examples"], own["chance"], own["metric"]) == (3, 0.0, "strict_match")
    assert set(own["models"]["teacher"]) == {"strict_match", "flexible_match"}
    assert own["differences"]["student minus teacher"]["strict_match"]["value"] == 0
    assert own["gain_kept"]["student"] is None  # a random model solves nothing


@pytest.mark.e2e
def test_a_large_data_set_is_checked_by_a_sample(tokenizer_of, tmp_path):
    """Evenly spread: of 900 rows every third is encoded, and all are read."""
    path, recipe = tmp_path / "rows.jsonl", RECIPE.replace("num_examples: 3", "num_examples: 900")
    tokenizer = tokenizer_of("gpt2")
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(" \u200b", "")
    checked = RecipeCheck(
        parse_recipe(recipe.replace("DATA", str(path))), ["evaluate"], offline=True
    )
    checked.tokenizer = tokenizer

    def write(bad, **change):
        rows = [{"query": "It is", "choices": ["warm", "cold"], "gold": 0} for _ in range(900)]
        rows[bad] |= change
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    write(898, choices=["warm", "\u200b"])
    check(checked)
    write(897, choices=["warm", "\u200b"])
    with pytest.raises(DataError, match=r"row 898: .* adds no token"):
        check(checked)
    write(898, gold=2)
    with pytest.raises(DataError, match="row 899: the column 'gold'"):
        check(checked)


@pytest.mark.parametrize("task", ["piqa", "lambada"])
def test_a_row_without_a_token_is_refused_before_the_run(task, tokenizer_of, tmp_path):
    """What a tokenizer drops is no choice and no last word: the row is named."""
    recipe = RECIPE.replace("piqa", task).replace("DATA", str(tmp_path / "rows.jsonl"))
    rows = [{"query": "It is", "choices": [word, "cold"], "gold": 0, "text": f"It is {word}"}
            for word in ("warm", "\u200b")]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = tokenizer_of("gpt2")
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(" \u200b", "")
    checked = RecipeCheck(parse_recipe(recipe), ["evaluate"], offline=True)
    checked.tokenizer = tokenizer
    with pytest.raises(
        DataError, match=r"rows.jsonl row 2: .* adds no token to '(Question: )?It is"
    ):
        check(checked)
