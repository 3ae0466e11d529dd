"""The tokenizer in a GGUF file, with the rules that llama.cpp applies to it.

Of byte-level BPE (the kind `gpt2`) a file holds vocabulary and merges, and of the rules that split
a text into words the name alone (`tokenizer.ggml.pre`). Names that are not listed here are refused:
another rule gives other tokens, with no error. Of SentencePiece's BPE (the kind `llama`) it holds
vocabulary and scores, by which neighbours are merged.
"""

from collections.abc import Container, Mapping, Sequence
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from transformers import PreTrainedTokenizerFast

from stillhouse.errors import ModelError
from stillhouse.models.from_gguf.file import GGUFFile
from stillhouse.tokens.vocabulary import SPACE

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # tokenizer.ggml.token_type
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}"
_DIGITS = r"\p{N}"  # each digit by itself, before the rules of GPT-2
# From a name to the patterns that split a text; None stands for GPT-2's own, which come last.
SPLITS: dict[str, tuple[str | None, ...]] = {
    "gpt-2": (None,),
    "smollm": (_DIGITS, None),
    "starcoder": (_DIGITS, None),
    "llama-bpe": (_LLAMA3,),
    "qwen2": (_QWEN2,),
    "deepseek-r1-qwen": (_QWEN2,),
}
WHOLE_WORDS_FIRST = ("llama-bpe",)  # a word that is a token is not made of merges
SENTENCEPIECE = "llama"
NEEDED = {"gpt2": "merges", SENTENCEPIECE: "scores"}  # beside the tokens, of each kind
# What llama.cpp assumes of SentencePiece's BPE where a file does not say it.
ASSUMED = {
    "bos_token_id": 1,
    "eos_token_id": 2,
    "unknown_token_id": 0,
    "add_bos_token": True,
    "add_space_prefix": True,
}
# Models of these names lose the spaces after most special tokens.
STRIPPING = ("phi-3", "phi3")
NOT_STRIPPED = ("<unk>", "<s>", "<|endoftext|>")
NAMES = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
    "sep_token": "separator_token_id",
    "mask_token": "mask_token_id",
}


def tokenizer_of(file: GGUFFile) -> PreTrainedTokenizerFast:
    """The tokenizer of a file.

    Raises:
        ModelError: none, or one whose rules are not known here.
    """
    setting = {key.removeprefix("tokenizer.ggml."): value for key, value in file.metadata.items()}
    tokens, kind = setting.get("tokens"), setting.get("model")
    if not tokens or NEEDED.get(str(kind)) not in setting:
        raise ModelError(
            f"{file.path} has a tokenizer of the kind {kind!r}; of GGUF files Stillhouse reads "
            "byte-level BPE (gpt2, with merges) and SentencePiece's BPE (llama, with scores). Give "
            "the model as a folder with tokenizer.json."
        )
    if kind == SENTENCEPIECE:
        setting = ASSUMED | setting
    elif setting.get("pre") not in SPLITS:
        raise ModelError(
            f"{file.path} names the rules {setting.get('pre')!r} for splitting text "
            f"(tokenizer.ggml.pre); Stillhouse knows {', '.join(SPLITS)}. Give the model as a "
            "folder with tokenizer.json."
        )
    kinds = setting.get("token_type") or [NORMAL] * len(tokens)
    ids = {name: setting.get(key) for name, key in NAMES.items()}
    named = {name: tokens[id] for name, id in ids.items() if id is not None and id < len(tokens)}
    make = _sentencepiece if kind == SENTENCEPIECE else _byte_level
    backend = make(setting, list(zip(tokens, kinds, strict=True)))
    strips = any(name in str(setting.get("general.name")).lower() for name in STRIPPING)
    added = [
        AddedToken(
            token,
            normalized=False,
            special=kind == CONTROL,
            rstrip=strips and token not in NOT_STRIPPED,
        )
        for token, kind in zip(tokens, kinds, strict=True)
        if kind in (CONTROL, USER_DEFINED)
    ]
    backend.add_tokens([token for token in added if not token.special])
    backend.add_special_tokens([token for token in added if token.special])
    backend.post_processor = _around(setting, named, backend)
    found = PreTrainedTokenizerFast(tokenizer_object=backend, **named)
    found.chat_template = _templates(file)
    return found


def _byte_level(setting: Mapping[str, Any], tokens: Sequence[tuple[str, int]]) -> Tokenizer:
    rules, merges = setting["pre"], setting["merges"]
    backend = Tokenizer(
        models.BPE(
            {token: id for id, (token, kind) in enumerate(tokens) if kind != UNUSED},
            [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)],
            ignore_merges=rules in WHOLE_WORDS_FIRST,
        )
    )
    splits = [
        pre_tokenizers.Split(Regex(pattern), behavior="isolated")
        for pattern in SPLITS[rules]
        if pattern is not None
    ]
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=None in SPLITS[rules])
    backend.pre_tokenizer = pre_tokenizers.Sequence([*splits, last]) if splits else last
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    return backend


def _sentencepiece(setting: Mapping[str, Any], tokens: Sequence[tuple[str, int]]) -> Tokenizer:
    """Neighbours whose union is a token are merged, those of the highest score first; a character
    that is no token becomes bytes."""
    vocabulary = {token: id for id, (token, kind) in enumerate(tokens) if kind != UNUSED}
    scores = dict(zip((token for token, _ in tokens), setting["scores"], strict=True))
    pieces = [token for token, kind in tokens if kind in (NORMAL, USER_DEFINED)]
    pieces.sort(key=lambda token: -scores[token])
    merges = [split for token in pieces for split in splits_of(token, vocabulary)]
    unknown = tokens[setting["unknown_token_id"]][0]
    model = models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    backend = Tokenizer(model)
    prefix = bool(setting["add_space_prefix"])
    spaces = normalizers.Replace(" ", SPACE)
    begin = normalizers.Prepend(SPACE)
    backend.normalizer = normalizers.Sequence([begin, spaces]) if prefix else spaces
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if prefix else [])])
    return backend


def splits_of(token: str, vocabulary: Container[str]) -> list[tuple[str, str]]:
    """The pairs of tokens that a token consists of."""
    splits = ((token[:place], token[place:]) for place in range(1, len(token)))
    return [(left, right) for left, right in splits if left in vocabulary and right in vocabulary]


def rules_of(state: Mapping[str, Any]) -> str | None:
    """The name of the rules of a tokenizer.json; None if they are not in `SPLITS`."""
    splits, whole_words = _splits_of(state["pre_tokenizer"]), bool(state["model"]["ignore_merges"])
    return next(
        (
            name
            for name, own in SPLITS.items()
            if own == splits and (name in WHOLE_WORDS_FIRST) == whole_words
        ),
        None,
    )


def space_prefix(state: Mapping[str, Any]) -> bool | None:
    """Whether a tokenizer.json of SentencePiece's BPE puts a space before each text; None if it
    does anything else with spaces."""
    normalizer, before = state["normalizer"] or {}, state["pre_tokenizer"] or {}
    steps: list[dict[str, Any]] = normalizer.get("normalizers", [normalizer] if normalizer else [])
    if before.get("type") == "Metaspace":
        plain = not steps and before["replacement"] == SPACE and not before["split"]
        return False if plain and before["prepend_scheme"] == "never" else None
    if before and (before["type"], before.get("pattern")) != ("Split", {"String": " "}):
        return None  # a split at spaces has no effect where none is left
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    if steps == [{"type": "Prepend", "prepend": SPACE}, spaces]:
        return True
    return False if steps == [spaces] else None


def _splits_of(pre_tokenizer: Mapping[str, Any] | None) -> tuple[str | None, ...] | None:
    """The patterns of a pre-tokenizer, as in `SPLITS`; None if it does something else."""
    if pre_tokenizer is None:
        return None
    steps: list[dict[str, Any]] = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    if not steps:
        return None
    *parts, last = steps
    if last["type"] != "ByteLevel" or last["add_prefix_space"]:
        return None
    found: list[str | None] = []
    for part in parts:
        if part["type"] == "Digits" and part["individual_digits"]:
            found.append(_DIGITS)
        elif _is_isolating(part):
            found.append(part["pattern"]["Regex"])
        else:
            return None
    return (*found, None) if last["use_regex"] else tuple(found)


def _is_isolating(part: Mapping[str, Any]) -> bool:
    """Whether a part of a pre-tokenizer makes each match of a pattern a word."""
    if part["type"] != "Split" or part["invert"]:
        return False
    return part["behavior"] == "Isolated" and "Regex" in part["pattern"]


def _around(
    setting: dict[str, object], named: dict[str, str], backend: Tokenizer
) -> processors.PostProcessor | None:
    """The tokens around a text that the file asks for."""
    begin = named.get("bos_token") if setting.get("add_bos_token") else None
    end = named.get("eos_token") if setting.get("add_eos_token") else None
    if begin is None and end is None:
        return backend.post_processor
    around = [token for token in (begin, end) if token is not None]
    return processors.TemplateProcessing(
        single=" ".join([*([begin] if begin else []), "$A", *([end] if end else [])]),
        special_tokens=[(token, backend.token_to_id(token)) for token in dict.fromkeys(around)],
    )


def _templates(file: GGUFFile) -> str | dict[str, str] | None:
    """The chat template, or several by their names."""
    default = file.metadata.get("tokenizer.chat_template")
    prefix = "tokenizer.chat_template."
    others = {
        key.removeprefix(prefix): value
        for key, value in file.metadata.items()
        if key.startswith(prefix)
    }
    return {"default": default, **others} if default and others else default
