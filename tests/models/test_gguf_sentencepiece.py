"""GGUF files with SentencePiece's BPE: the tokens of llama.cpp and of the package sentencepiece."""

from pathlib import Path
from typing import Any

import pytest
from tests.byte_fallback import trained_sentencepiece
from tests.models.gguf_files import (
    every_character,
    metadata_of,
    real_texts,
    sample_tokenizer,
    sentencepiece_metadata,
    tensors_of,
    tiny,
    tokens_of,
    write,
)
from transformers import AutoTokenizer

import stillhouse
from stillhouse.inference.causal_lm import CausalLM
from stillhouse.models.from_gguf.agreement import Reference
from stillhouse.models.from_gguf.file import read_header
from stillhouse.models.from_gguf.read import folder_of_gguf
from stillhouse.models.llama_cpp import LlamaCpp

pytestmark = pytest.mark.e2e


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's cache, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def trained() -> Any:
    """A model of the package sentencepiece, of this package's source."""
    files = sorted(Path(stillhouse.__file__).parent.glob("inference/*.py"))
    return trained_sentencepiece("".join(file.read_text() for file in files).splitlines())


@pytest.fixture
def sentencepiece_file(tmp_path: Path, trained: Any) -> Any:
    """sentencepiece_file(changes, prefix): a llama's file with that tokenizer."""
    model = tiny("llama", vocab_size=trained.get_piece_size())

    def file(changes: dict[str, Any] | None = None, *, prefix: bool = True) -> Path:
        metadata = metadata_of("llama", model, sample_tokenizer())
        metadata |= sentencepiece_metadata(trained, prefix=prefix) | (changes or {})
        return write(tmp_path / "model.gguf", "llama", metadata, tensors_of("llama", model))

    return file


@pytest.mark.parametrize("prefix", [True, False])
def test_tokens_of_sentencepiece_are_those_of_llama_cpp(
    sentencepiece_file, shared_data, trained, prefix
):
    """And of the package sentencepiece: books, tables, code, every character up to U+1FFFF."""
    path = sentencepiece_file(prefix=prefix)
    own = AutoTokenizer.from_pretrained(folder_of_gguf(path))
    reference = Reference(read_header(path), LlamaCpp(path, 128))
    for text in (*real_texts(shared_data, 4), *every_character()):
        ids = own(text)["input_ids"]
        assert ids == tokens_of(reference, text), text[:60]
        if not any(token in text for token in own.get_added_vocab()):
            assert not prefix or ids == [trained.bos_id(), *trained.encode(text)]
            shown = text.replace("\u2581", " ")  # it stands for the space
            assert own.decode(ids, skip_special_tokens=True) == shown
    for text in ("a <|im_start|> b<tool>c <tool> d", "<|im_end|>\n", " <s>"):
        assert own(text)["input_ids"] == tokens_of(reference, text)


def test_phi_3_strips_spaces_after_special_tokens(sentencepiece_file):
    """As llama.cpp does for models of that name."""
    path = sentencepiece_file({"general.name": "Phi-3 mini"})
    own = AutoTokenizer.from_pretrained(folder_of_gguf(path))
    reference = Reference(read_header(path), LlamaCpp(path, 128))
    for text in ("a <|im_start|>  b", "<s> b", "</s> c", "x <tool>  y"):
        assert own(text)["input_ids"] == tokens_of(reference, text)
    spaced, plain = (own(text)["input_ids"] for text in ("<|im_end|>  b", "<|im_end|>b"))
    assert spaced == plain


def test_a_model_of_sentencepiece_generates(sentencepiece_file):
    """Text whose tokens are bytes; as many tokens as wanted."""
    loaded = stillhouse.load(folder_of_gguf(sentencepiece_file()))
    assert isinstance(loaded, CausalLM)
    texts = loaded.generate("def 一", num_return_sequences=8, seed=0, max_new_tokens=40)
    assert all(text.startswith("def 一") for text in texts)
    assert len(set(texts)) == 8
