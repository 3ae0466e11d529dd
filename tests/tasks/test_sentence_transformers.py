"""Vectors are those of sentence-transformers, whatever the files beside a model say; what cannot be
obeyed is refused by name."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stillhouse
from stillhouse.errors import ModelError, RecipeError
from stillhouse.tasks.embeddings import (
    EmbeddingSettings,
    check_recipe_of,
    read_embedding_settings,
    write_modules,
)
from stillhouse.tasks.registry import task_of_model
from stillhouse.tasks.settings import EmbeddingsTask

TEXTS = ["Ba da ba ri lo", "so ", "ba ta " * 40, "BA DA"]


def write(folder: Path, name: str, content: Any) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(content))


@pytest.fixture
def folder(task_folder) -> Path:
    """A sentence model of a random BERT that takes 64 tokens."""
    folder = task_folder("bert", "Body")
    write_modules(folder, EmbeddingsTask(max_length=64), 16)
    return folder


def drop_normalize(folder: Path) -> None:
    write(folder, "modules.json", json.loads((folder / "modules.json").read_text())[:2])


VARIANTS = {
    "as it is": lambda folder: None,
    "16 tokens": lambda folder: write(
        folder, "sentence_bert_config.json", {"max_seq_length": 16, "do_lower_case": False}
    ),
    "the tokenizer's limit": lambda folder: [
        write(folder, "sentence_bert_config.json", {"max_seq_length": None}),
        write(
            folder,
            "tokenizer_config.json",
            {**json.loads((folder / "tokenizer_config.json").read_text()), "model_max_length": 9},
        ),
    ],
    "an older name of the file": lambda folder: (folder / "sentence_bert_config.json").replace(
        folder / "sentence_roberta_config.json"
    ),
    "not normalized": drop_normalize,
    "first token": lambda folder: write(
        folder, "1_Pooling/config.json", {"embedding_dimension": 16, "pooling_mode": "cls"}
    ),
    "a default prompt": lambda folder: write(
        folder,
        "config_sentence_transformers.json",
        {"prompts": {"query": "ba so: ", "doc": "x"}, "default_prompt_name": "query"},
    ),
    "prompts without a default": lambda folder: write(
        folder, "config_sentence_transformers.json", {"prompts": {"query": "ba so: "}}
    ),
    "lower case": lambda folder: write(
        folder, "sentence_bert_config.json", {"max_seq_length": 64, "do_lower_case": True}
    ),
}


@pytest.mark.e2e
@pytest.mark.parametrize("variant", VARIANTS)
def test_embeddings_equal_sentence_transformers(folder, variant):
    """Every setting that changes them, on truncated, short and upper-case texts."""
    from sentence_transformers import SentenceTransformer

    VARIANTS[variant](folder)
    expected = SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    with pytest.warns(UserWarning, match="more than"):
        found = stillhouse.load(folder).embed(TEXTS)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.e2e
def test_minilm_keeps_its_published_max_length():
    """450 words: 256 tokens are read, not the 512 that the model has positions for."""
    from sentence_transformers import SentenceTransformer

    model = stillhouse.load("minilm")
    assert model.task.recipe.max_length == 256
    words = (f"still{place % 7} {place % 31} drops of" for place in range(150))
    texts = [" ".join(words), "a cat"]
    folder = Path(str(model.model.config._name_or_path))
    expected = SentenceTransformer(str(folder), device="cpu").encode(texts)
    with pytest.warns(UserWarning, match="1 text has more than 256 tokens"):
        found = model.embed(texts)
    assert np.einsum("nd,nd->n", found, expected) == pytest.approx([1, 1], abs=1e-4)


@pytest.mark.parametrize("length", [16, 64])
def test_saved_embedding_model_keeps_its_max_length(folder, length):
    """What was trained on texts of 16 tokens reads 16 tokens."""
    for name in ("1_Pooling", "2_Normalize"):
        (folder / name / "config.json").unlink()
        (folder / name).rmdir()
    write_modules(folder, EmbeddingsTask(max_length=length), 16)
    assert task_of_model(folder).recipe.max_length == length


def test_embedding_settings_are_read_from_files(folder):
    """Length, pooling, normalization, case, prompt and similarity, each by its own file."""
    assert read_embedding_settings(folder) == EmbeddingSettings(max_length=64)
    for variant in ("16 tokens", "not normalized", "a default prompt", "first token"):
        VARIANTS[variant](folder)
    assert read_embedding_settings(folder) == EmbeddingSettings("cls", 16, False, False, "ba so: ")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        *(
            ("1_Pooling/config.json", {f"pooling_mode_{mode}": True}, f"for pooling_mode_{mode}")
            for mode in ("max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
        ),
        ("1_Pooling/config.json", {"pooling_mode": ["mean", "cls"]}, "asks for .*'mean', 'cls'"),
        ("1_Pooling/config.json", {}, "asks for no pooling"),
        ("config_sentence_transformers.json", {"default_prompt_name": "q"}, "default prompt 'q'"),
        ("sentence_bert_config.json", {"max_seq_length": "long"}, "max_seq_length is 'long'"),
        ("modules.json", [{"type": "x.Transformer", "path": "0_Transformer"}], "in 0_Transformer"),
        ("modules.json", [{"type": "x.StaticEmbedding", "path": ""}], "asks for StaticEmbedding"),
        ("modules.json", [], "asks for nothing"),
    ],
)  # fmt: skip
def test_unsupported_modules_are_refused(folder, name, content, message):
    """A pooling, a module, a prompt that is not there."""
    write(folder, name, content)
    with pytest.raises(ModelError, match=message):
        stillhouse.load(folder)


def test_a_prompt_that_is_not_pooled_is_refused(folder):
    """Its tokens are read, and left out of the mean: Stillhouse has no such mean."""
    VARIANTS["a default prompt"](folder)
    write(folder, "1_Pooling/config.json", {"pooling_mode": "mean", "include_prompt": False})
    with pytest.raises(ModelError, match="include_prompt"):
        stillhouse.load(folder)


def test_a_recipe_does_not_change_how_a_model_pools(folder):
    """Otherwise other embeddings than the model's own would be scored silently."""
    with pytest.raises(RecipeError, match=r"pooling is cls, but .* by mean"):
        task_of_model(folder, EmbeddingsTask(pooling="cls", max_length=64))
    VARIANTS["a default prompt"](folder)
    check_recipe_of(folder, EmbeddingsTask())
    with pytest.raises(RecipeError, match="prompt 'ba so: ' before every text"):
        check_recipe_of(folder, EmbeddingsTask(), trains=True)


def test_unsupported_similarity_function_is_refused(folder):
    """They can be had, but the score would be another model's."""
    write(folder, "config_sentence_transformers.json", {"similarity_fn_name": "euclidean"})
    model = stillhouse.load(folder)
    assert model.embed(["ba"]).shape == (1, 16)
    with pytest.raises(ModelError, match="compared by euclidean"):
        model.task.metric_samples([], [])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "config_sentence_transformers.json",
            {"truncate_dim": 8},
            "truncates embeddings to 8 dimensions",
        ),
        ("config_sentence_transformers.json", {"model_type": "SparseEncoder"}, "a SparseEncoder"),
        (
            "sentence_bert_config.json",
            {"modality_config": {"text": {"method_output_name": "pooler_output"}}},
            "takes pooler_output from the model",
        ),
    ],
)
def test_unsupported_embedding_settings_are_refused(folder, name, content, message):
    """Each of them changes the embeddings of sentence-transformers."""
    write(folder, name, content)
    with pytest.raises(ModelError, match=message) as caught:
        stillhouse.load(folder)
    assert name in str(caught.value)


def test_files_of_current_sentence_transformers_are_read(folder, tmp_path):
    """Its current names of modules and settings; the embeddings are the same."""
    from sentence_transformers import SentenceTransformer

    SentenceTransformer(str(folder), device="cpu").save(str(tmp_path / "saved"))
    right = stillhouse.load(folder).embed(TEXTS[:2])
    np.testing.assert_allclose(
        stillhouse.load(tmp_path / "saved").embed(TEXTS[:2]), right, atol=1e-5
    )
