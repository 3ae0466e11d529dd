"""Names of ids, end tokens and added tokens, as an export takes them from a model's files."""

import json

import pytest
from tests.export.test_plain import exported, make_loaded
from tokenizers import Tokenizer
from transformers import AddedToken

from stillhouse.errors import ModelError
from stillhouse.export import gguf_tokenizer
from stillhouse.export.exported import plain, vocabulary_of
from stillhouse.export.to_ctranslate2 import CTRANSLATE2
from stillhouse.export.to_gguf import GGUF
from stillhouse.inference.causal_lm import CausalLM
from stillhouse.inference.loaded import LoadedModel
from stillhouse.models.from_gguf.tokenizer import rules_of, space_prefix

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{REST}"
LLAMA3 = rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{REST}"


def with_state(loaded: LoadedModel, **changes) -> LoadedModel:
    """The same model, with parts of its tokenizer.json replaced."""
    state = json.loads(loaded.tokenizer.backend_tokenizer.to_str())
    for part, value in changes.items():
        state[part] = state[part] | value if part == "model" else value
    loaded.tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))
    return loaded


def refusal(loaded: LoadedModel) -> str:
    return GGUF.refusal(plain(loaded, vocabulary_of("model", loaded))) or "none"


@pytest.mark.parametrize(
    ("own", "generation", "expected"),
    [
        (0, None, (0,)),
        (0, [0, 40], (0, 40)),
        ([5, 0], None, (0, 5)),  # the tokenizer's own first
        (7, 9, (7, 9)),
        (None, None, (0,)),  # the tokenizer's
        (50_256, None, (0,)),  # outside the vocabulary: a default of transformers
    ],
)
def test_end_tokens_are_those_of_both_files(own, generation, expected):
    loaded = make_loaded("gpt2", eos_token_id=own)
    loaded.model.generation_config.eos_token_id = generation
    assert vocabulary_of("model", loaded).end_ids == expected


def test_a_model_that_ends_nothing_is_refused():
    """Both formats must name a token; llama.cpp would take token 11."""
    loaded = make_loaded("gpt2", eos_token_id=None)
    loaded.model.generation_config.eos_token_id = None
    loaded.tokenizer.eos_token = None
    found = plain(loaded, vocabulary_of("model", loaded))
    for form in (GGUF, CTRANSLATE2):
        assert "set eos_token_id in" in (form.refusal(found) or "none")


def test_more_end_tokens_than_a_gguf_file_names_are_refused():
    loaded = make_loaded("gpt2", eos_token_id=[0, 5, 6, 7])
    assert "the model has 4" in refusal(loaded)


def test_added_tokens_keep_their_kind():
    loaded = make_loaded("gpt2", extra_embeddings=9)
    number = len(loaded.tokenizer)
    loaded.tokenizer.add_tokens(["<|user|>", "New York"])
    loaded.tokenizer.add_tokens([AddedToken("<|sep|>", special=True)], special_tokens=True)
    found = vocabulary_of("model", loaded)
    assert found.names[number:] == ("<|user|>", "New York", "<|sep|>")
    assert found.added == {number, number + 1}
    assert found.special == {0, number + 2}


def test_ids_between_tokens_have_names_that_no_token_has():
    loaded = make_loaded("gpt2", extra_embeddings=9)
    state = json.loads(loaded.tokenizer.backend_tokenizer.to_str())
    size = len(loaded.tokenizer)
    taken = state["added_tokens"][0] | {"id": size + 3, "content": f"<|padding_{size}|>"}
    loaded = with_state(loaded, added_tokens=[*state["added_tokens"], taken])
    state["model"]["vocab"][taken["content"]] = size + 3
    loaded = with_state(loaded, model={"vocab": state["model"]["vocab"]})
    found = vocabulary_of("model", loaded)
    assert len(set(found.names)) == len(found) == size + 4
    assert found.unused == {size, size + 1, size + 2}
    assert found.names[size:] == (
        f"<|padding_{size}|>_", f"<|padding_{size + 1}|>", f"<|padding_{size + 2}|>",
        f"<|padding_{size}|>",
    )  # fmt: skip


def test_a_tokenizer_larger_than_its_model_is_refused():
    loaded = make_loaded("gpt2")
    size = len(loaded.tokenizer)
    loaded.tokenizer.add_tokens(["<|user|>"])
    with pytest.raises(ModelError, match=f"has {size + 1} tokens, and the model has embeddings"):
        vocabulary_of("model", loaded)


@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word"])
def test_flags_of_added_tokens_that_gguf_has_no_place_for_are_refused(flag):
    loaded = make_loaded("gpt2", extra_embeddings=1)
    loaded.tokenizer.add_tokens([AddedToken("<|user|>", **{flag: True})])
    assert f"its added token '<|user|>' has {flag} set" in refusal(loaded)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"normalizer": {"type": "NFKC"}}, "tokenizer's normalizer, NFKC, has no place"),
        ({"normalizer": {"type": "Lowercase"}}, "normalizer, Lowercase, has no place"),
        ({"pre_tokenizer": None}, "its pre_tokenizer is null; convert the model with llama.cpp's"),
        (
            {
                "pre_tokenizer": {
                    "type": "ByteLevel",
                    "add_prefix_space": True,
                    "trim_offsets": True,
                    "use_regex": True,
                }
            },
            "(it names gpt-2, smollm, starcoder, llama-bpe, qwen2, deepseek-r1-qwen): its "
            'pre_tokenizer is {"type": "ByteLevel", "add_prefix_space": true',
        ),
        (
            {"pre_tokenizer": {"type": "Digits", "individual_digits": True}},
            'its pre_tokenizer is {"type": "Digits"',
        ),
        (
            {"model": {"byte_fallback": True}},
            "changes spaces in a way that the file",
        ),
        ({"model": {"ignore_merges": True}}, 'its pre_tokenizer is {"type": "ByteLevel"'),
        ({"model": {"dropout": 0.1}}, "model has the dropout 0.1"),
    ],
)
def test_tokenizers_that_llama_cpp_does_not_split_like_are_refused(changes, reason):
    assert reason in refusal(with_state(make_loaded("gpt2"), **changes))


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
DIGITS = {"type": "Digits", "individual_digits": True}


def split(pattern: str, behavior: str = "Isolated") -> dict:
    """A pre-tokenizer as tokenizer.json has it."""
    return {
        "type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": False
    }  # fmt: skip


@pytest.mark.parametrize(
    ("parts", "whole_words", "name"),
    [
        ([BYTES | {"use_regex": True}], False, "gpt-2"),
        ([DIGITS, BYTES | {"use_regex": True}], False, "smollm"),
        ([split(QWEN2), BYTES | {"use_regex": False}], False, "qwen2"),
        ([split(LLAMA3), BYTES | {"use_regex": False}], True, "llama-bpe"),
        ([split(LLAMA3), BYTES | {"use_regex": False}], False, None),
        ([split(QWEN2, "Removed"), BYTES | {"use_regex": False}], False, None),
        ([split(QWEN2), BYTES | {"use_regex": True}], False, None),
        ([DIGITS | {"individual_digits": False}, BYTES | {"use_regex": True}], False, None),
    ],
)
def test_rules_for_splitting_text_are_found_by_what_they_do(parts, whole_words, name):
    """As the published SmolLM2, Qwen 2 and Llama 3 write them; near misses have no name."""
    pre_tokenizer = {"type": "Sequence", "pretokenizers": parts}
    state = {"pre_tokenizer": pre_tokenizer, "model": {"ignore_merges": whole_words}}
    assert rules_of(state) == name


SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
PREPEND = {"type": "Prepend", "prepend": "\u2581"}
METASPACE = {"type": "Metaspace", "replacement": "\u2581", "split": False}


@pytest.mark.parametrize(
    ("normalizer", "pre_tokenizer", "prefix"),
    [
        ({"type": "Sequence", "normalizers": [PREPEND, SPACES]}, None, True),
        (SPACES, None, False),
        (SPACES, split(" ") | {"pattern": {"String": " "}}, False),
        (None, METASPACE | {"prepend_scheme": "never"}, False),
        (None, METASPACE | {"prepend_scheme": "first"}, None),
        (None, METASPACE | {"prepend_scheme": "never", "split": True}, None),
        (SPACES, BYTES, None),
        ({"type": "Sequence", "normalizers": [SPACES, PREPEND]}, None, None),
        (None, None, None),
    ],
)
def test_spaces_are_understood_by_what_is_done_with_them(normalizer, pre_tokenizer, prefix):
    """As the published Llama 2, Gemma and others write them; near misses are not understood."""
    state = {"normalizer": normalizer, "pre_tokenizer": pre_tokenizer}
    assert space_prefix(state) is prefix


def test_composed_characters_are_noted():
    """Qwen's tokenizers compose them (NFC); llama.cpp does not."""
    loaded = with_state(make_loaded("gpt2"), normalizer={"type": "NFC"})
    assert refusal(loaded) == "none"
    (note,) = gguf_tokenizer.notes(plain(loaded, vocabulary_of("model", loaded)))
    assert "(NFC)" in note
    assert not gguf_tokenizer.notes(exported("gpt2"))


def test_other_models_than_bpe_are_refused_as_gguf():
    """A GPT-2 with a WordPiece vocabulary."""
    found = exported("gpt2")
    words = make_loaded("bert").tokenizer
    loaded = CausalLM(found.loaded.model, words)
    loaded.tokenizer.eos_token = "[SEP]"
    loaded.tokenizer.backend_tokenizer.normalizer = None  # pyright: ignore
    assert "model has the type 'WordPiece'" in refusal(loaded)
