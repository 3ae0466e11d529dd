"""The number of tokens of a text that is not prepared yet."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.task_models import SENTENCES, make_tokenizer

from stillhouse.check import data_set_sizes
from stillhouse.data.documents import is_validation
from stillhouse.data.settings import CorpusRecipe
from stillhouse.errors import DataError
from stillhouse.estimate.language import TextSize, data_set_size, text_size
from stillhouse.evaluation.settings import ZeroShotRecipe
from stillhouse.recipe import Recipe
from stillhouse.stages.check import RecipeCheck
from stillhouse.tasks.registry import make_task
from stillhouse.tokens.tokenizer import text_encoder


def recipe_of(corpus: CorpusRecipe, **sections: Any) -> Recipe:
    return Recipe(teacher="sample", corpus=corpus, **sections)


def write_corpus(folder: Path, number: int) -> Recipe:
    """Records of one to three sentences."""
    lines = [json.dumps({"text": " ".join(SENTENCES[: 1 + n % 3])}) for n in range(number)]
    (folder / "text.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return recipe_of(CorpusRecipe(source=str(folder / "text.jsonl"), validation_fraction=0.25))


def test_a_text_is_counted_before_it_is_tokenized(tmp_path):
    """Tokens of both splits, and of a document of the validation split, are about what they will
    be."""
    corpus, tokenizer = write_corpus(tmp_path, 200), make_tokenizer("gpt2")
    size = text_size(corpus, None, tokenizer, offline=True)
    assert isinstance(size, TextSize)
    encode = text_encoder(tokenizer)
    counts: dict[bool, list[int]] = {False: [], True: []}
    for n in range(200):
        held_out = is_validation(f"text.jsonl:{n + 1}", 0.25)
        counts[held_out].append(len(encode([" ".join(SENTENCES[: 1 + n % 3])])[0]))
    assert size.train_tokens == pytest.approx(sum(counts[False]), rel=0.05)
    assert size.validation_tokens == pytest.approx(sum(counts[True]), rel=0.05)
    mean = sum(counts[True]) / len(counts[True])
    assert size.document_tokens == pytest.approx(mean, rel=0.05)


def test_what_cannot_be_known_is_said(tmp_path):
    """A vocabulary that is still to be trained, a dataset that is not here."""
    trained = text_size(write_corpus(tmp_path, 20), None, None, offline=True)
    assert trained == (
        "the tokenizer is trained by the run, so the number of tokens is known only then"
    )
    hub = recipe_of(CorpusRecipe(source="hf://owner/name"))
    assert "dataset of the hub" in str(text_size(hub, None, make_tokenizer("gpt2"), offline=True))
    cleaned = recipe_of(write_corpus(tmp_path, 20).text, cleaning={"length": {}})
    assert "is cleaned first" in str(text_size(cleaned, None, make_tokenizer("gpt2"), offline=True))


def test_text_that_the_run_would_refuse_is_refused(tmp_path):
    """A record without the field is found while the text is counted."""
    (tmp_path / "text.jsonl").write_text('{"body": "a"}\n', encoding="utf-8")
    corpus = recipe_of(CorpusRecipe(source=str(tmp_path / "text.jsonl")))
    with pytest.raises(DataError, match="has no field 'text'"):
        text_size(corpus, None, make_tokenizer("gpt2"), offline=True)


@pytest.mark.e2e
@pytest.mark.parametrize(("limit", "expected"), [(None, 400), (10, 10)])
def test_a_data_set_is_counted_from_a_sample_of_its_examples(tmp_path, limit, expected):
    """Long and short examples in turn: about as many tokens as all of those that are scored."""
    rows = [
        {"query": SENTENCES[0] * (1 + n % 3), "choices": ["now", "not now"], "gold": 0}
        for n in range(400)
    ]
    file, tokenizer = tmp_path / "rows.jsonl", make_tokenizer("gpt2")
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = ZeroShotRecipe.model_validate(
        {"task": "piqa", "data": str(file), "num_examples": limit}
    )
    task = make_task(recipe.task)
    examples = task.read(file)[:limit]
    assert len(examples) == expected
    whole = sum(len(each.input_ids) for own in task.encode(examples, tokenizer) for each in own)
    assert data_set_size(recipe, file, tokenizer, "causal").read == pytest.approx(whole, rel=0.02)


def test_a_data_set_that_is_not_fetched_is_not_estimated(tmp_path):
    """It is named, with the reason; the others count."""
    (tmp_path / "rows.jsonl").write_text('{"query": "It is", "choices": ["a", "b"], "gold": 0}\n')
    sets = {
        "here": {"task": "piqa", "data": str(tmp_path / "rows.jsonl")},
        "hub": {"task": "piqa", "data": "hf://owner/name"},
    }
    values = {
        "teacher": "sample",
        "corpus": {"source": "sample"},
        "evaluation": {"zero_shot": sets},
    }
    tokens, unknown = data_set_sizes(
        RecipeCheck(Recipe.model_validate(values), ["evaluate"], offline=True)
    )
    assert list(tokens) == ["zero_shot.here"]
    assert [(part.name, part.seconds) for part in unknown] == [("zero_shot.hub", None)]
    assert "not fetched yet" in unknown[0].reason
