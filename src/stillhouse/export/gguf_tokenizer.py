"""The tokenizer in a GGUF file, and the tokens around a text.

Of byte-level BPE a file names the rules that split a text into words, which
`models/from_gguf/tokenizer.py` lists. Of SentencePiece's BPE it has scores instead of merges.
"""

import json
from collections.abc import Mapping
from itertools import groupby, product
from typing import Any

import gguf

from stillhouse.export.exported import Exported, Vocabulary
from stillhouse.models.from_gguf.tokenizer import (
    NOT_STRIPPED,
    SENTENCEPIECE,
    SPLITS,
    STRIPPING,
    rules_of,
    space_prefix,
    splits_of,
)
from stillhouse.tokens.vocabulary import SPACE

SUPPRESSED = "tokenizer.ggml.suppress_tokens"  # the package `gguf` does not name it yet
# Settings of a BPE in tokenizer.json that llama.cpp's assumes; "" and None are equal.
BPE: Mapping[str, Any] = {
    "type": "BPE",
    "dropout": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
}
TOKEN_FLAGS = ("lstrip", "rstrip", "single_word")
NFC = "NFC"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
OTHERWISE = "convert the model with llama.cpp's convert_hf_to_gguf.py"


def refusal(exported: Exported) -> str | None:
    """A setting of the tokenizer that a GGUF file cannot express; None if there is none."""
    tokenizer, ends = exported.loaded.tokenizer, exported.vocabulary.end_ids
    state = _state(exported)
    if not 0 < len(ends) <= 3:
        return (
            "a GGUF file names one to three tokens that end a text, and the model has "
            f"{len(ends)}; set eos_token_id in its generation_config.json"
        )
    for key, value in BPE.items():
        if ((found := state["model"].get(key)) or None) != (value or None):
            return (
                f"its tokenizer's model has the {key} {found!r}, and this export writes BPE, with "
                f"{value!r}; {OTHERWISE}"
            )
    if state["model"]["byte_fallback"]:
        if reason := _merges_refusal(state, exported.vocabulary):
            return f"{reason}; {OTHERWISE}"
        if space_prefix(state) is None:
            return (
                "its tokenizer changes spaces in a way that the file cannot express: its "
                f"normalizer is {json.dumps(state['normalizer']):.150}, its pre_tokenizer "
                f"{json.dumps(state['pre_tokenizer']):.150}; {OTHERWISE}"
            )
    elif (normalizer := _normalizer(state)) not in (None, NFC):
        return f"its tokenizer's normalizer, {normalizer}, has no place in the file; {OTHERWISE}"
    elif rules_of(state) is None:
        return (
            "its tokenizer splits text by rules that this export cannot name in the "
            f"file (it names {', '.join(SPLITS)}): its pre_tokenizer is "
            f"{json.dumps(state['pre_tokenizer']):.200}; {OTHERWISE}"
        )
    strips = _strips_like_phi_3(exported)
    for token in tokenizer.added_tokens_decoder.values():
        for flag in TOKEN_FLAGS:
            if getattr(token, flag) and not (flag == "rstrip" and strips):
                return (
                    f"its added token {token.content!r} has {flag} set, which has no place in the "
                    "file; add the token without it"
                )
    if _added_around(exported) is None:
        return "its tokenizer adds more around a text than a token before and one after it"
    return None


def notes(exported: Exported) -> list[str]:
    """What llama.cpp does differently from the tokenizer."""
    found = []
    if _normalizer(_state(exported)) == NFC:
        found.append(
            "The tokenizer composes characters (NFC) and llama.cpp does not: a text with "
            "decomposed accents has other tokens there."
        )
    if any(SPACE in exported.vocabulary.names[id] for id in exported.vocabulary.added):
        found.append(
            "Added tokens of spaces are ordinary ones in llama.cpp: a text with the character "
            "U+2581 itself has other tokens there."
        )
    return found


def add_to(writer: gguf.GGUFWriter, exported: Exported) -> None:
    """Write tokens, merges, special tokens and the chat template."""
    vocabulary, tokenizer, state = exported.vocabulary, exported.loaded.tokenizer, _state(exported)
    if _strips_like_phi_3(exported):
        writer.add_name(STRIPPING[0])
    if state["model"]["byte_fallback"]:
        _add_sentencepiece(writer, vocabulary, state)
    else:
        _add_byte_level(writer, state)
    writer.add_token_list(vocabulary.names)
    writer.add_token_types(_token_types(vocabulary, state))
    add_end = (writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id)
    for add, id in zip(add_end, vocabulary.end_ids, strict=False):
        add(id)
    begin = vocabulary.begin_id
    writer.add_bos_token_id(vocabulary.end_ids[0] if begin is None else begin)  # by default 11
    around = _added_around(exported)
    assert around is not None, "refused before"
    writer.add_add_bos_token(around[0])
    writer.add_add_eos_token(around[1])
    if vocabulary.unused:
        writer.add_array(SUPPRESSED, sorted(vocabulary.unused))
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = [{"name": name, "template": text} for name, text in template.items()]
    if template:
        writer.add_chat_template(template)


def _state(exported: Exported) -> dict[str, Any]:
    return json.loads(exported.loaded.tokenizer.backend_tokenizer.to_str())


def _normalizer(state: Mapping[str, Any]) -> str | None:
    return (state["normalizer"] or {}).get("type")


def _added_around(exported: Exported) -> tuple[bool, bool] | None:
    """Whether the tokenizer adds a start token, and an end token, to each text; None if it adds
    anything else."""
    vocabulary, tokenizer = exported.vocabulary, exported.loaded.tokenizer
    ids, own = tokenizer("a")["input_ids"], tokenizer("a", add_special_tokens=False)["input_ids"]
    for begins, ends in product((False, True), repeat=2):
        first = [vocabulary.begin_id] if begins else []
        if ids == first + own + (list(vocabulary.end_ids[:1]) if ends else []):
            return begins, ends
    return None


def _add_byte_level(writer: gguf.GGUFWriter, state: Mapping[str, Any]) -> None:
    rules = rules_of(state)
    assert rules is not None, "refused before"
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(rules)
    writer.add_token_merges([" ".join(pair) for pair in _merges(state)])


def _add_sentencepiece(
    writer: gguf.GGUFWriter, vocabulary: Vocabulary, state: Mapping[str, Any]
) -> None:
    """llama.cpp merges neighbours by the score of their union: the earlier a token's first merge
    comes, the higher it is."""
    prefix, scores = space_prefix(state), dict[str, float]()
    assert prefix is not None, "refused before"
    for number, (left, right) in enumerate(_merges(state), 1):
        scores.setdefault(left + right, -float(number))
    writer.add_tokenizer_model(SENTENCEPIECE)
    writer.add_tokenizer_pre("default")
    writer.add_token_scores([scores.get(name, 0.0) for name in vocabulary.names])
    writer.add_add_space_prefix(prefix)
    if (unknown := state["model"]["unk_token"]) is not None:
        writer.add_unk_token_id(vocabulary.names.index(unknown))


def _merges(state: Mapping[str, Any]) -> list[tuple[str, str]]:
    pairs = (
        pair.split(" ") if isinstance(pair, str) else pair for pair in state["model"]["merges"]
    )
    return [(left, right) for left, right in pairs]


def _merges_refusal(state: Mapping[str, Any], vocabulary: Vocabulary) -> str | None:
    """A merge that llama.cpp would do otherwise: it merges any two neighbours whose union is a
    token, first those of the token with the highest score."""
    merges = _merges(state)
    made = [left + right for left, right in merges]
    if len(list(groupby(made))) > len(set(made)):
        return (
            "the merges of its tokenizer that make the same token are not next to each other, and "
            "llama.cpp has one place for all of them"
        )
    known, names = set(merges), set(vocabulary.names)
    for id, name in enumerate(vocabulary.names):
        if _token_type(id, vocabulary) != gguf.TokenType.NORMAL or name in BYTES:
            continue
        for pair in splits_of(name, names):
            if pair not in known:
                return (
                    f"its tokenizer does not merge {pair[0]!r} and {pair[1]!r} to the token "
                    f"{name!r}, and llama.cpp does"
                )
    return None


def _strips_like_phi_3(exported: Exported) -> bool:
    """Whether spaces are lost after exactly those tokens at which llama.cpp drops them for a model
    of this name, of which it needs some."""
    added = exported.loaded.tokenizer.added_tokens_decoder.values()
    stripping = {token.content for token in added if token.rstrip}
    usual = {token.content for token in added} - {*NOT_STRIPPED}
    known = {*NOT_STRIPPED} <= {*exported.vocabulary.names}
    return known and "</s>" in stripping and stripping == usual


def _token_types(vocabulary: Vocabulary, state: Mapping[str, Any]) -> list[gguf.TokenType]:
    kinds: dict[str, gguf.TokenType] = {}
    if state["model"]["byte_fallback"]:
        kinds = dict.fromkeys(BYTES, gguf.TokenType.BYTE)
        kinds |= {state["model"]["unk_token"]: gguf.TokenType.UNKNOWN}
        # llama.cpp shows an added token as it is, and finds it before spaces are replaced.
        spaces = (id for id in vocabulary.added if SPACE in vocabulary.names[id])
        kinds |= {vocabulary.names[id]: gguf.TokenType.NORMAL for id in spaces}
    names = enumerate(vocabulary.names)
    return [kinds.get(name) or _token_type(id, vocabulary) for id, name in names]


def _token_type(id: int, vocabulary: Vocabulary) -> gguf.TokenType:
    if id in vocabulary.unused:
        return gguf.TokenType.UNUSED
    if id in vocabulary.special:
        return gguf.TokenType.CONTROL
    return gguf.TokenType.USER_DEFINED if id in vocabulary.added else gguf.TokenType.NORMAL
