"""SentencePiece's BPE, as Llama 2, Mistral and Gemma have it: characters that are no token are
bytes, and a space is put before each text."""

import io
from collections.abc import Iterable
from typing import Any

import sentencepiece
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from stillhouse.tokens.vocabulary import SPACE


def byte_fallback_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of a few letters, the space, and all bytes."""
    names = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), SPACE, *"abcdeinor"]
    ids = {name: id for id, name in enumerate(names)}
    backend = Tokenizer(models.BPE(ids, [], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    spaces = normalizers.Replace(" ", SPACE)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces])
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")


def trained_sentencepiece(lines: Iterable[str], vocabulary_size: int = 1200) -> Any:
    """A model of the package sentencepiece, with tokens of every kind."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=written,
        vocab_size=vocabulary_size,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=0.999,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        user_defined_symbols=["<tool>"],
        control_symbols=["<|im_start|>", "<|im_end|>", "<|endoftext|>"],
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
