"""The Python API takes what users of transformers pass: a single input gives a single result, a
list gives a list, and what is not understood is answered with the name that is meant."""

import numpy as np
import pandas as pd
import pytest
import torch

import stillhouse
from stillhouse.errors import DataError, RecipeError
from stillhouse.models.load import save_model
from stillhouse.tasks.registry import make_task
from stillhouse.tasks.settings import (
    ClassificationTask,
    EmbeddingsTask,
    QuestionAnsweringTask,
    RegressionTask,
    TokenClassificationTask,
)

TEXTS = ["Ba da by the old sea.", "Lo ri", "A third text of Islay"]


@pytest.fixture
def model_for(task_folder):
    """model_for(recipe, labels): a random BERT with the head of a task."""

    def make(recipe, labels=()):
        task = make_task(recipe, labels)
        return stillhouse.load(task_folder("bert", task.head, **task.model_settings))

    return make


@pytest.fixture(scope="module")
def sample():
    return stillhouse.load("sample")


def test_a_text_has_one_vector(model_for):
    """Not one for each of its characters."""
    model = model_for(EmbeddingsTask())
    one = model.embed(TEXTS[0])
    assert one.shape == (16,)
    many = model.embed(TEXTS)
    assert many.shape == (3, 16)
    np.testing.assert_allclose(many[0], one, atol=1e-6)
    assert model.embed(tuple(TEXTS)).shape == (3, 16)
    assert model.embed([]).shape == (0, 16)


@pytest.mark.parametrize("recipe", [ClassificationTask(labels=["no", "yes"]), RegressionTask()])
def test_texts_and_pairs_are_classified_one_by_one(model_for, recipe):
    """A list is several texts, never a pair; a pair is a tuple, a dictionary or two arguments."""
    model = model_for(recipe)
    alone = [model.classify(text) for text in TEXTS]
    assert [each["score"] for each in model.classify(TEXTS)] == pytest.approx(
        [each["score"] for each in alone], abs=1e-6
    )
    assert model.classify({"text": TEXTS[0]}) == alone[0]
    one, other = TEXTS[:2]
    pair = model.classify(one, other)
    assert pair != alone[0]
    assert model.classify((one, other)) == pair
    assert model.classify({"text": one, "text_pair": other}) == pair
    assert model.classify(one, pair=other) == pair
    scores = pytest.approx([pair["score"]] * 2, abs=1e-6)
    for pairs in (
        [(one, other)] * 2,
        [[one, other]] * 2,
        [{"text": one, "text_pair": other}] * 2,
    ):
        assert [each["score"] for each in model.classify(pairs)] == scores
    assert [each["score"] for each in model.classify([one] * 2, [other] * 2)] == scores
    assert model.classify([]) == []


def test_questions_are_answered_one_by_one(model_for):
    """One context for all of them, one for each, or dictionaries."""
    model = model_for(QuestionAnsweringTask())
    found = model.answer("Where?", TEXTS[0])
    assert set(found) == {"score", "start", "end", "answer"}
    asked = {"question": "Where?", "context": TEXTS[0]}
    assert model.answer(asked) == found
    for several in (
        model.answer(["Where?"] * 2, TEXTS[0]),
        model.answer(["Where?"] * 2, [TEXTS[0]] * 2),
        model.answer([asked] * 2),
    ):
        assert [each["start"] for each in several] == [found["start"]] * 2
    with pytest.raises(RecipeError, match="3 questions and 2 contexts"):
        model.answer(["a", "b", "c"], ["d", "e"])


def test_texts_are_tagged_one_by_one(model_for):
    """A list of entities for each text."""
    model = model_for(TokenClassificationTask(), ["O", "B-LOC", "I-LOC"])
    several = model.tag(TEXTS)
    assert len(several) == 3
    for text, entities in zip(TEXTS, several, strict=True):
        assert [each["word"] for each in entities] == [each["word"] for each in model.tag(text)]


def test_prompts_are_continued_one_by_one(sample):
    """A list for each prompt, the same as alone; by beams too."""
    prompts = ["The old man", "She", "It was a long way to the town, and the"] * 4
    settings = {"max_new_tokens": 4, "seed": 3, "num_return_sequences": 2}
    found = sample.generate(prompts, **settings)
    assert len(found) == 12
    assert found[0] == sample.generate(prompts[0], **settings)
    assert found[2] == sample.generate(prompts[2], **settings)
    beams = {"max_new_tokens": 3, "num_beams": 2, "greedy": True}
    assert sample.generate(prompts[:2], **beams) == [
        sample.generate(prompt, **beams) for prompt in prompts[:2]
    ]
    assert sample.generate([]) == []


def test_a_list_of_texts_has_a_list_of_features(sample):
    """Each as long as its text."""
    found = sample.features(TEXTS)
    assert isinstance(found, list)
    assert torch.equal(found[1], sample.features(TEXTS[1]))


def test_masks_are_filled_one_by_one(tmp_path, tiny_model, tiny_tokenizer):
    """A list of tokens for each text."""
    save_model(tiny_model("bert"), tiny_tokenizer, tmp_path)
    model = stillhouse.load(tmp_path)
    found = model.fill_mask(["w5 [MASK]", "[MASK] w6 w7"], top_k=2)
    assert [len(each) for each in found] == [2, 2]
    assert found[0] == model.fill_mask("w5 [MASK]", top_k=2)
    with pytest.raises(RecipeError, match=r"does not take 'topk'.* Did you mean top_k"):
        model.fill_mask("w5 [MASK]", topk=2)  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({"max_length": 20}, "max_new_tokens"),
        ({"max_tokens": 20}, "max_new_tokens"),
        ({"max_new_token": 20}, "max_new_tokens"),
        ({"do_sample": False}, "greedy"),
        ({"temprature": 0.5}, "temperature"),
        ({"n": 2}, "num_return_sequences"),
    ],
)
def test_an_unknown_setting_is_answered_with_the_one_that_is_meant(sample, given, meant):
    """What transformers and others call it, or a slip of the pen."""
    with pytest.raises(RecipeError, match=f"does not take '{min(given)}'.*Did you mean {meant}"):
        sample.generate("The", **given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_new_tokens": "5"}, "max_new_tokens is '5'; it must be a whole number"),
        ({"max_new_tokens": 2.5}, "it must be a whole number"),
        ({"temperature": None}, "temperature is None; it must be a number"),
        ({"greedy": "no"}, "it must be True or False"),
        ({"top_k": True}, "it must be a whole number"),
        ({"stop": [1]}, r"stop must be a text or a list of texts; got 1 \(int\)"),
    ],
)
def test_a_setting_of_another_type_is_named(sample, given, message):
    """No TypeError from deep inside."""
    with pytest.raises(RecipeError, match=message):
        sample.generate("The", **given)


def test_one_text_stops_a_continuation_as_a_list_of_it(sample):
    """Not each of its characters."""
    settings = {"max_new_tokens": 30, "greedy": True}
    (whole,) = sample.generate("The old man", **settings)
    stop = whole[20:23]
    expected = [whole[: whole.index(stop, len("The old man"))]]
    assert sample.generate("The old man", stop=stop, **settings) == expected
    assert sample.generate("The old man", stop=[stop], **settings) == expected


@pytest.mark.parametrize("given", [5, None, b"text", ["a", 5], {"text": "a"}])
def test_what_is_no_text_is_named(sample, given):
    """Its value and its type."""
    with pytest.raises(RecipeError, match="must be a text or a list of texts; got"):
        sample.generate(given)
    with pytest.raises(RecipeError, match="must be a text or a list of texts; got"):
        sample.features(given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("a", "b", "c"), "a dictionary of text and text_pair, or a tuple"),
        ([("a", "b"), "c"], "Some inputs are pairs and some are single texts"),
        ({"text": "a", "pair": "b"}, "a dictionary of text"),
        (3, r"got 3 \(int\)"),
    ],
)
def test_what_is_no_pair_is_named(model_for, given, message):
    """No pair is dropped in silence."""
    model = model_for(RegressionTask())
    with pytest.raises(RecipeError, match=message):
        model.classify(given)
    with pytest.raises(RecipeError, match=r"does not take 'text_pair'.*Did you mean pair"):
        model.classify("a", text_pair="b")


class TestLists:
    """Whatever has texts in order is a list of them."""

    @pytest.mark.parametrize(
        "form",
        [
            np.array,
            lambda texts: np.array(texts, object),
            pd.Series,
            iter,
            lambda texts: map(str, texts),
        ],
        ids=["numpy", "objects", "pandas", "iterator", "map"],
    )
    def test_it_gives_what_a_list_gives(self, model_for, sample, form):
        """For every kind of call."""
        vectors = model_for(EmbeddingsTask())
        np.testing.assert_array_equal(vectors.embed(form(TEXTS)), vectors.embed(TEXTS))
        classes = model_for(ClassificationTask(labels=["no", "yes"]))
        assert classes.classify(form(TEXTS)) == classes.classify(TEXTS)
        assert classes.classify(form(TEXTS), form(TEXTS)) == classes.classify(TEXTS, TEXTS)
        tags = model_for(TokenClassificationTask(), ["O", "B-LOC", "I-LOC"])
        assert tags.tag(form(TEXTS)) == tags.tag(TEXTS)
        answers = model_for(QuestionAnsweringTask())
        assert answers.answer("Where?", form(TEXTS)) == answers.answer("Where?", TEXTS)
        settings = {"max_new_tokens": 2, "seed": 1}
        assert sample.generate(form(TEXTS), **settings) == sample.generate(TEXTS, **settings)

    @pytest.mark.parametrize(
        "given", [{"a"}, b"a", {"text": 1}, pd.DataFrame({"text": ["a"]}), [["a"]], None, 5]
    )
    def test_what_has_no_texts_in_order_is_refused(self, model_for, given):
        """A table would give the names of its columns."""
        with pytest.raises(RecipeError, match="must be a text or a list of texts; got"):
            model_for(EmbeddingsTask()).embed(given)

    def test_the_item_is_named(self, sample):
        with pytest.raises(RecipeError, match=r"got nan \(float\) as item 1"):
            sample.generate(["a", float("nan")])

    def test_an_empty_list_gives_an_empty_list(self, model_for, sample):
        assert model_for(TokenClassificationTask(), ["O", "B-LOC"]).tag([]) == []
        assert sample.features([]) == []


@pytest.mark.parametrize("call", ["generate", "features"])
def test_half_a_character_is_refused(sample, call):
    """As Python makes of bytes that are not UTF-8, such as on a command line."""
    with pytest.raises(DataError, match=r"a lone surrogate, \\udcff"):
        getattr(sample, call)("a \udcff")


def test_half_a_character_is_refused_in_pairs_too(model_for):
    model = model_for(ClassificationTask(labels=["no", "yes"]))
    for given in ("\ud800", ("a", "\ud800"), {"text": "\ud800"}, ["a", "\ud800"]):
        with pytest.raises(DataError, match="a lone surrogate"):
            model.classify(given)


def test_numbers_may_be_numpy_s(sample):
    """Whole ones and others."""
    plain = sample.generate("The", max_new_tokens=3, seed=4, temperature=0.5, top_k=9)
    settings = {"seed": np.int64(4), "temperature": np.float32(0.5), "top_k": np.int32(9)}
    assert sample.generate("The", max_new_tokens=np.int16(3), **settings) == plain


def test_a_name_that_is_not_alike_is_not_offered(sample):
    """Another setting that shares letters is no help."""
    with pytest.raises(RecipeError, match="does not take 'eos_token_id'") as caught:
        sample.generate("The", eos_token_id=0)
    assert "Did you mean" not in str(caught.value)


def test_temperature_zero_names_the_way_to_say_it(sample):
    with pytest.raises(RecipeError, match=r"temperature is 0\.0; .*greedy takes the most likely"):
        sample.generate("The", temperature=0.0)
