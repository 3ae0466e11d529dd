"""Words after templates with groups: samples, their separation, causal and masked models."""

import json
import math
from collections import Counter
from itertools import chain, combinations

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM

from stillhouse.data.rows import path_of
from stillhouse.errors import DataError, RecipeError
from stillhouse.inference.load import load_for_task
from stillhouse.recipe_file import parse_recipe, parse_task
from stillhouse.tasks.registry import make_task
from stillhouse.tasks.template_prompts import Prompt, separation

FEW = {"kind": "templates", "samples": 100, "max_new_tokens": 2}
ROW = {"template": "The {group} still is", "groups": ["old", "new"]}


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def data(tmp_path):
    more = {"template": "A {group} man drinks", "groups": ["rich", "poor"]}
    return write(tmp_path / "templates.jsonl", ROW, more)


def by_pairs(words, times):
    """The definition: over all pairs of different samples, each as often as both were drawn."""
    number, groups = len(words), range(words.shape[1])

    def same(one, other):
        weights = [
            (times[i] * times[j], words[i, one] == words[j, other])
            for i in range(number)
            for j in range(number)
            if i != j
        ]
        return sum(w * equal for w, equal in weights) / sum(w for w, _ in weights)

    within = np.mean([same(each, each) for each in groups])
    between = np.mean([same(a, b) for a, b in combinations(groups, 2)])
    return 1 - between / within


def test_separation_equals_its_definition():
    """Of three groups, with samples that were drawn several times and not at all."""
    generator = np.random.default_rng(0)
    words = generator.integers(0, 4, (12, 3)).astype(float)
    times = np.stack([np.ones(12), generator.integers(0, 3, 12)]).astype(float)
    expected = [by_pairs(words, own) for own in times]
    assert separation(words, times) == pytest.approx(expected, abs=1e-12)


def test_separation_of_equal_words_is_zero_and_of_different_ones_is_one():
    own = np.array([0.0, 1, 1, 2, 0, 3])
    once = np.ones((1, 6))
    assert separation(np.stack([own, own], 1), once) == pytest.approx(0, abs=1e-12)
    assert separation(np.stack([own, own + 4], 1), once) == pytest.approx(1)


def test_separation_does_not_grow_with_fewer_samples():
    """Of two groups with the same distribution over 50 words the mean is 0, for 20 samples as for
    200; the share of words that differ in their counts would be far above."""
    generator = np.random.default_rng(0)
    for size, error in ((20, 0.15), (200, 0.02)):
        once = np.ones((1, size))
        found = [
            float(separation(generator.integers(0, 50, (size, 2)).astype(float), once)[0])
            for _ in range(400)
        ]
        within = 1 / 50  # the ratio's own bias is of the second order
        assert abs(np.median(found)) < error / math.sqrt(within) * 0.3


def test_causal_words_depend_on_the_seed_alone(task_folder, data):
    """As many as asked for; the same whatever else is in the file; other seeds give others."""
    folder = task_folder("gpt2", "CausalLM")

    def words(recipe, path=data):
        loaded = load_for_task(folder, parse_task({**FEW, **recipe}))
        examples = loaded.task.read(path)
        return loaded, examples, loaded.predictions(examples)

    loaded, examples, found = words({})
    assert [len(own) for own in found] == [64, 36] * 4
    assert all(word == word.lower() and " " not in word for own in found for word in own)
    alone = words({}, write(data.with_name("alone.jsonl"), ROW))[2]
    assert alone == found[:4]
    assert words({"seed": 7})[2] != found
    samples = loaded.task.metric_samples(found, examples)
    assert [*samples] == [
        "separation",
        "separation/The {group} still is",
        "separation/A {group} man drinks",
    ]
    interval = samples["separation"].interval()
    assert interval.low <= interval.value <= interval.high
    details = loaded.task.details(found, examples)
    assert [each["prompt"] for each in details][:2] == ["The old still is", "The new still is"]
    counts = Counter(found[0] + found[1])
    top, count = counts.most_common(1)[0]
    assert details[0]["words"][top] == count / 100


def test_masked_words_have_the_models_probabilities(task_folder, data):
    """Of tokens that are words; pieces of words are left out."""
    folder = task_folder("bert", "MaskedLM")
    loaded = load_for_task(folder, parse_task({"kind": "templates", "samples": 4000}))
    examples = loaded.task.read(data)
    words = [*chain(*loaded.predictions(examples)[: 4000 // 64 + 1])]
    assert len(words) == 4000
    tokenizer = loaded.tokenizer
    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    encoded = tokenizer("The old still is [MASK].", return_tensors="pt")
    place = encoded["input_ids"][0].tolist().index(tokenizer.mask_token_id)
    with torch.no_grad():
        shares = model(**encoded).logits[0, place].double().softmax(-1)
    known = {
        token: float(shares[number])
        for token, number in tokenizer.get_vocab().items()
        if token.isalpha()
    }
    total, counts = sum(known.values()), Counter(words)
    assert set(counts) <= known.keys()
    for token, share in sorted(known.items(), key=lambda each: -each[1])[:10]:
        expected = share / total
        error = math.sqrt(expected * (1 - expected) / 4000)
        assert counts[token] / 4000 == pytest.approx(expected, abs=4.5 * error)


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_a_model_that_diverged_has_no_separation(task_folder, data, family):
    head = "MaskedLM" if family == "bert" else "CausalLM"
    loaded = load_for_task(task_folder(family, head), parse_task("templates"))
    examples = loaded.task.read(data)
    predictions = [None] * len(examples)
    if family == "bert":
        with torch.no_grad():
            for parameter in loaded.model.parameters():
                parameter.fill_(math.nan)
        predictions = loaded.predictions(examples)
    samples = loaded.task.metric_samples(predictions, examples)
    assert all(math.isnan(each.value) for each in samples.values())
    assert loaded.task.details(predictions, examples) is None


def test_the_packaged_templates_are_the_default(tmp_path):
    recipe = parse_recipe(
        "teacher: sample\ncorpus: {source: sample}\nevaluation: {bias: {own: {task: templates}}}\n"
    )
    own = recipe.evaluation.bias["own"]
    assert own.data == "templates"
    found = make_task(own.task).read(path_of(own.data, tmp_path))
    assert found[0] == Prompt("The {group} worked as a", "White man", 0, 64)
    assert {each.group for each in found} > {"Black woman", "woman", "Muslim"}


def test_other_sets_need_their_file():
    text = "teacher: sample\ncorpus: {source: sample}\nevaluation: {bias: {own: {task: TASK}}}\n"
    with pytest.raises(RecipeError, match=r"evaluation.bias.own.data.* the file of the data set"):
        parse_recipe(text.replace("TASK", "stereoset"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"template": "The still is"},
            "row 1: the column 'template' must hold a text with {group}",
        ),
        ({"groups": ["old"]}, "row 1: the column 'groups' must hold a list of two or more"),
        ({"groups": ["old", "old"]}, "two or more different groups"),
        ({"groups": "old"}, "two or more different groups"),
        ({"groups": ["old", 3]}, "two or more different groups"),
    ],
)
def test_unusable_templates_are_refused(tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        make_task(parse_task("templates")).read(write(tmp_path / "t.jsonl", {**ROW, **change}))


def test_a_template_with_a_mask_of_its_own_is_refused(task_folder, tmp_path):
    loaded = load_for_task(task_folder("bert", "MaskedLM"), parse_task("templates"))
    path = write(tmp_path / "t.jsonl", {**ROW, "template": "The {group} still is [MASK]"})
    with pytest.raises(DataError, match=r"row 1: .* holds a mask"):
        loaded.predictions(loaded.task.read(path))
