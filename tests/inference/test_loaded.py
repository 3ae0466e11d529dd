"""Loaded models: results equal transformers', and errors name the limit."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
)

import stillhouse
from stillhouse.errors import DataError, ModelError, RecipeError
from stillhouse.inference.predict import check_target, save_features
from stillhouse.models import folder_check
from stillhouse.models import load as loading
from stillhouse.models.load import load_model, save_model
from stillhouse.tokens.tokenizer_training import train_tokenizer

TEXT = "The still turns what is thin into what is strong, drop by drop, and then once more. "
POSITIONS = 48


@pytest.fixture(scope="module")
def causal_folder(tmp_path_factory):
    tokenizer = train_tokenizer("byte_bpe", 300, iter([TEXT * 3]), "causal")
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=300, n_positions=POSITIONS, n_embd=16, n_layer=2, n_head=2,
        initializer_range=0.5, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("causal")
    save_model(GPT2LMHeadModel(config), tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def masked_folder(tmp_path_factory):
    tokenizer = train_tokenizer("wordpiece", 60, iter([TEXT * 3]), "masked")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=POSITIONS, pad_token_id=0,
        initializer_range=0.5,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("masked")
    save_model(BertForMaskedLM(config), tokenizer, folder)
    return folder


@pytest.fixture
def causal(causal_folder):
    return stillhouse.load(causal_folder)


@pytest.fixture
def masked(masked_folder):
    return stillhouse.load(masked_folder)


def test_the_seed_determines_the_text(causal):
    """Whatever was drawn before; another seed gives another text."""
    first = causal.generate("The still", seed=7, max_new_tokens=20)
    torch.rand(5)
    assert causal.generate("The still", seed=7, max_new_tokens=20) == first
    assert causal.generate("The still", seed=8, max_new_tokens=20) != first


def test_greedy_text_equals_transformers(causal, causal_folder):
    """The most likely token at each step, as the plain library takes it."""
    tokenizer = AutoTokenizer.from_pretrained(causal_folder)
    model = GPT2LMHeadModel.from_pretrained(causal_folder)
    inputs = tokenizer("The still turns", return_tensors="pt")
    arguments = {**inputs, "max_new_tokens": 12, "do_sample": False}
    output = model.generate(**arguments)  # pyright: ignore[reportAttributeAccessIssue]
    expected = tokenizer.decode(output[0], skip_special_tokens=True)
    assert causal.generate("The still turns", greedy=True, max_new_tokens=12) == [expected]


def test_top_k_of_one_is_greedy(causal):
    """Top-k of one leaves no choice, whatever the seed."""
    greedy = causal.generate("drop", greedy=True, max_new_tokens=10)
    assert causal.generate("drop", top_k=1, seed=3, max_new_tokens=10) == greedy


def test_num_return_sequences_texts_are_returned(causal):
    """Each begins with the prompt, and they differ."""
    texts = causal.generate("The still", num_return_sequences=3, seed=0, max_new_tokens=16)
    assert len(texts) == 3
    assert all(text.startswith("The still") for text in texts)
    assert len(set(texts)) == 3


def test_an_empty_prompt_starts_a_document(causal):
    """End-of-text precedes every document, so it begins one."""
    (text,) = causal.generate("", greedy=True, max_new_tokens=5)
    assert text


def test_a_too_long_prompt_is_rejected(causal):
    """With the tokens of the prompt, the new ones, and the limit."""
    with pytest.raises(DataError, match=r"prompt has \d+ tokens and 40 new ones .* takes 48"):
        causal.generate(TEXT, max_new_tokens=40)


def test_max_length_limits_prompt_and_new_tokens(causal_folder):
    """The same text within the limit; the error names the limit, not the model's context."""
    limited = stillhouse.load(causal_folder, max_length=20)
    assert limited.context == 20
    settings = {"greedy": True, "max_new_tokens": 4}
    whole = stillhouse.load(causal_folder)
    assert limited.generate("drop", **settings) == whole.generate("drop", **settings)
    with pytest.raises(DataError, match="takes 20 in total"):
        limited.generate("drop", max_new_tokens=20)


def test_a_missing_method_is_an_attribute_error(masked):
    """So `hasattr` tells what a model supports."""
    assert hasattr(masked, "fill_mask")
    assert not hasattr(masked, "generate")


def test_a_masked_model_has_no_generate(masked):
    """The error says what it does do."""
    with pytest.raises(ModelError, match=r"fill-mask \(MaskedLM\); it has no 'generate'"):
        masked.generate("The still")


def test_features_are_the_last_hidden_states(causal, causal_folder):
    """One row a token, equal to those of the plain library."""
    tokenizer = AutoTokenizer.from_pretrained(causal_folder)
    body = AutoModel.from_pretrained(causal_folder)
    inputs = tokenizer("The still turns", return_tensors="pt")
    with torch.no_grad():
        expected = body(**inputs).last_hidden_state[0]
    features = causal.features("The still turns")
    assert features.shape == (inputs["input_ids"].shape[1], 16)
    torch.testing.assert_close(features, expected)


def test_features_of_a_masked_model_include_its_special_tokens(masked, masked_folder):
    """[CLS] and [SEP] are read with the text, as the model was trained."""
    tokenizer = AutoTokenizer.from_pretrained(masked_folder)
    body = AutoModel.from_pretrained(masked_folder, add_pooling_layer=False)
    inputs = tokenizer("what is thin", return_tensors="pt")
    with torch.no_grad():
        expected = body(**inputs).last_hidden_state[0]
    torch.testing.assert_close(masked.features("what is thin"), expected)


@pytest.mark.parametrize("text", ["", TEXT * 3])
def test_features_need_one_to_context_tokens(causal, text):
    """The number of tokens, and how many the model takes."""
    with pytest.raises(DataError, match=r"text has \d+ tokens; the model takes 1 to 48"):
        causal.features(text)


@pytest.mark.parametrize("ending", [".npy", ".safetensors"])
def test_saved_features_round_trip(tmp_path, causal, ending):
    """Both formats keep every bit and the shape."""
    path = tmp_path / f"states{ending}"
    states = causal.features("drop by drop")
    save_features(states, path)
    if ending == ".npy":
        read = torch.from_numpy(np.load(path, allow_pickle=False))
    else:
        read = load_file(path)["last_hidden_state"]
    assert torch.equal(read, states)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_existing_files_are_not_overwritten(tmp_path):
    """Nor is another kind of file written."""
    path = tmp_path / "states.npy"
    path.write_bytes(b"mine")
    with pytest.raises(RecipeError, match="exists, and nothing is overwritten"):
        check_target(path)
    with pytest.raises(RecipeError, match=r"must end in \.safetensors or \.npy"):
        check_target(tmp_path / "states.pt")


def test_fill_mask_equals_transformers(masked, masked_folder):
    """Tokens and probabilities equal those of the plain library, the most likely first."""
    tokenizer = AutoTokenizer.from_pretrained(masked_folder)
    model = AutoModelForMaskedLM.from_pretrained(masked_folder)
    text = "what is [MASK] into"
    inputs = tokenizer(text, return_tensors="pt")
    place = inputs["input_ids"][0].tolist().index(tokenizer.mask_token_id)
    with torch.no_grad():
        best = model(**inputs).logits[0, place].softmax(-1).topk(4)
    found = masked.fill_mask(text, top_k=4)
    assert [probability for _, probability, _ in found] == pytest.approx(best.values.tolist())
    assert found == sorted(found, key=lambda pair: -pair[1])
    assert len(found) == 4


@pytest.mark.parametrize("text", ["no gap here", "[MASK] and [MASK]"])
def test_fill_mask_takes_exactly_one_mask(masked, text):
    """None or two are refused, with their number."""
    with pytest.raises(DataError, match=r"has [02] mask tokens \(\[MASK\]\); give exactly one"):
        masked.fill_mask(text)


def test_a_causal_model_has_no_fill_mask(causal):
    """The error says what it does do."""
    with pytest.raises(ModelError, match=r"text-generation \(CausalLM\); it has no 'fill_mask'"):
        causal.fill_mask("a [MASK]")


@pytest.mark.parametrize(("begin", "end", "expected"), [(7, 0, 7), (None, [9, 5], 0), (0, None, 0)])
def test_an_empty_prompt_becomes_the_start_token(causal, begin, end, expected):
    causal.model.config.bos_token_id, causal.model.config.eos_token_id = begin, end
    causal.model.generation_config.eos_token_id = end
    assert causal.prompt_ids("") == (expected,)
    assert len(causal.generate("", greedy=True, max_new_tokens=2)) == 1


def test_an_empty_prompt_needs_a_start_token(causal):
    causal.model.config.bos_token_id = causal.model.config.eos_token_id = None
    causal.model.generation_config.eos_token_id = None
    causal.tokenizer.bos_token = causal.tokenizer.eos_token = None
    with pytest.raises(DataError, match="no token that starts or ends a text"):
        causal.generate("", max_new_tokens=2)


def test_the_tokenizer_is_loaded_once(causal_folder, monkeypatch):
    """The model learns from it how many ids there are, and does not read it again."""
    reads = []
    load = loading.load_tokenizer

    def counted(folder):
        reads.append(folder)
        return load(folder)

    for module in (loading, folder_check):
        monkeypatch.setattr(module, "load_tokenizer", counted)
    model = stillhouse.load(causal_folder)
    assert reads == [causal_folder]
    assert model.model.num_tokens == 300
    _, alone = load_model(causal_folder)
    assert alone.num_tokens == 300
