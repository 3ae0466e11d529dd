"""Tokenizers: loading them from files, and encoding text.

Contract: nothing is downloaded, and no code from a folder runs. `text_encoder` treats all text as
text: the characters `<|endoftext|>` or `[MASK]` in a document never become the special token.
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AddedToken, AutoTokenizer, PreTrainedTokenizerFast

from stillhouse.errors import DataError, RecipeError
from stillhouse.runs.manifest import fingerprint, sha256_of
from stillhouse.section import LanguageModeling
from stillhouse.tokens.settings import OWN_TOKENIZER
from stillhouse.wording import first_line

# Vocabulary and merges of byte-level BPE, under their usual names and under OpenAI's.
BPE_FILES = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
TOKENIZER_CONFIG = "tokenizer_config.json"
OWN_FILES = (
    "tokenizer.json",
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
)
OLDER_CLASS = {"TokenizersBackend": "PreTrainedTokenizerFast"}  # the name in transformers 4
LOADING_OPTIONS = ("backend", "is_local", "local_files_only")
TEMPLATE = "chat_template.jinja"
TEMPLATES = (TEMPLATE, "additional_chat_templates/*.jinja")  # saved with the tokenizer
STRANGE = "\u13a0 \ua4d0 \u2d30"  # Cherokee, Lisu and Tifinagh: rare in small vocabularies
TEXT_RULES = ("normalizer", "pre_tokenizer", "decoder")  # between a text and its pieces
SAMPLED_TOKENS = 200  # of a vocabulary, to check that it encodes its own tokens
END_OF_TEXT = "<|endoftext|>"
BERT_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
ROBERTA_TOKENS = {
    "bos_token": "<s>",
    "pad_token": "<pad>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
    "cls_token": "<s>",
    "sep_token": "</s>",
}
CAUSAL_LENGTH, MASKED_LENGTH = 1024, 512  # model_max_length where no file gives it


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of a tokenizer's special tokens; None for those it does not have.

    Args:
        document_start: The token before a document: the one that the tokenizer itself adds (`<s>`
            of Llama and Mistral) or, if it adds none, end-of-text (GPT-2).
    """

    end_of_text: int | None
    document_start: int | None
    cls: int | None
    sep: int | None
    mask: int | None
    pad: int | None
    unk: int | None
    all_ids: tuple[int, ...]

    @property
    def document_prefix(self) -> tuple[int, ...]:
        """The ids before each document of a stream: end-of-text, where it is another token than
        `document_start`, and `document_start`."""
        ends = dict.fromkeys((self.end_of_text, self.document_start))
        return tuple(id for id in ends if id is not None)


def special_tokens(
    tokenizer: PreTrainedTokenizerFast, language_modeling: LanguageModeling
) -> SpecialTokens:
    """The special tokens, with those that this kind of language modeling needs.

    Raises:
        DataError: one of these is missing.
    """
    found = find_special_tokens(tokenizer)
    needed = ["end_of_text"] if language_modeling == "causal" else ["cls", "sep", "mask", "pad"]
    missing = [name for name in needed if getattr(found, name) is None]
    if missing:
        raise DataError(
            f"The tokenizer has no {', '.join(missing)} token, which {language_modeling} language "
            "modeling needs. Add it to its tokenizer_config.json, or give another tokenizer as "
            "tokens.tokenizer."
        )
    return found


def find_special_tokens(tokenizer: PreTrainedTokenizerFast) -> SpecialTokens:
    """The special tokens of a tokenizer."""
    names = {kind: _id_of(tokenizer, kind) for kind in ("cls", "sep", "mask", "pad", "unk")}
    end, begin = _id_of(tokenizer, "eos"), _id_of(tokenizer, "bos")
    end_of_text = begin if end is None else end
    added = tokenizer.backend_tokenizer.encode("", add_special_tokens=True).ids
    return SpecialTokens(
        end_of_text,
        added[0] if added else end_of_text,
        **names,
        all_ids=tuple(sorted(set(tokenizer.all_special_ids))),
    )


def num_ids(tokenizer: PreTrainedTokenizerFast) -> int:
    """One more than the highest token id: the embeddings that a model needs for its texts. (Where
    ids have gaps, that is more than the tokenizer has tokens.)"""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def _id_of(tokenizer: PreTrainedTokenizerFast, kind: str) -> int | None:
    token = tokenizer.special_tokens_map.get(f"{kind}_token")
    return None if token is None else tokenizer.backend_tokenizer.token_to_id(str(token))


def unused_ids(tokenizer: PreTrainedTokenizerFast, vocabulary_size: int) -> tuple[int, ...]:
    """Ids below `vocabulary_size` that no token has, in order: the padding of an embedding (50,304
    rows for 50,257 tokens), and gaps before added tokens."""
    return tuple(sorted(set(range(vocabulary_size)).difference(tokenizer.get_vocab().values())))


def tokenizer_path(tokenizer: str, teacher_tokenizer: Path | None) -> Path:
    """The path of a recipe's tokenizer.

    Raises:
        RecipeError: it is the teacher's, and there is no teacher yet.
    """
    if tokenizer != "teacher":
        return Path(tokenizer).expanduser()
    if teacher_tokenizer is None:
        raise RecipeError(
            "tokens.tokenizer is 'teacher', but there is no teacher folder to take it from. "
            f"Give {OWN_TOKENIZER}."
        )
    return teacher_tokenizer


def tokenizer_folder(tokens_folder: Path) -> Path:
    """Where the tokenizer of the shards is."""
    return tokens_folder / "tokenizer"


def open_tokenizer(tokens_folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of the shards, which every model of the run is saved with."""
    return load_tokenizer(tokenizer_folder(tokens_folder))


def load_tokenizer(source: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a folder or of a WordPiece vocabulary file.

    Truncation and padding settings saved in its `tokenizer.json` are ignored.

    Raises:
        DataError: no tokenizer there, or one that cannot be read, or has no vocabulary.
    """
    if not source.exists():
        raise DataError(
            f"There is no tokenizer at {source} (seen from {Path.cwd()}). "
            "Give a folder or a vocabulary file."
        )
    try:
        tokenizer = _load(source)
    except DataError:
        raise
    except Exception as error:  # the libraries raise bare Exception on a malformed file
        raise DataError(
            f"The tokenizer at {source} cannot be read ({type(error).__name__}: "
            f"{first_line(error)}). Fetch its files again."
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise DataError(
            f"The tokenizer at {source} is a {type(tokenizer).__name__}, without a tokenizer.json. "
            "Save its fast version with save_pretrained, and give that folder."
        )
    length = tokenizer.model_max_length
    if isinstance(length, bool) or not isinstance(length, int | float) or length < 1:
        raise DataError(
            f"model_max_length is {length!r} in {source}; it must be a number of tokens, or null."
        )
    _check_own_tokens(tokenizer, source)
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    _strip_before_mask(tokenizer)
    return tokenizer


def _check_own_tokens(tokenizer: PreTrainedTokenizerFast, source: Path) -> None:
    """Refuse a tokenizer that does not encode its own tokens: its vocabulary is missing or does not
    match its rules. transformers loads a folder without vocabulary files silently."""
    special = set(tokenizer.all_special_ids)
    ids = sorted(set(tokenizer.get_vocab().values()) - special)
    sample = ids[:: max(1, len(ids) // SAMPLED_TOKENS)]
    text = tokenizer.decode(sample)
    try:
        found = tokenizer.backend_tokenizer.encode(str(text), add_special_tokens=False).ids
        tokenizer.backend_tokenizer.encode(STRANGE)
    except Exception as error:  # the library has no exceptions of its own
        raise DataError(
            f"The tokenizer at {source} cannot encode every text ({error}). Name a token of its "
            "vocabulary as unk_token in tokenizer_config.json."
        ) from error
    unknown = find_special_tokens(tokenizer).unk
    if any(id != unknown for id in found):
        return
    names = ", ".join(sorted(path.name for path in tokenizer_files(source))) or source.name
    what = (
        f"turns {str(text)[:40]!r}, made of its own tokens, into unknown tokens alone"
        if ids and found
        else f"gives no tokens for any text: {len(ids)} of its {len(tokenizer)} tokens are "
        "ordinary ones"
    )
    raise DataError(
        f"The tokenizer at {source} {what} (read from {names}). Fetch all files of the tokenizer "
        "again: tokenizer.json, or vocab.json and merges.txt, or vocab.txt."
    )


def check_vocabulary(
    tokenizer: PreTrainedTokenizerFast, model_vocabulary_size: int, model: str
) -> None:
    """Refuse a tokenizer whose size does not match the model's vocabulary.

    A model may have a few more embeddings than the tokenizer has tokens, which round the size up.

    Raises:
        DataError: it does not match.
    """
    if not 0 <= model_vocabulary_size - num_ids(tokenizer) < 1024:
        raise DataError(
            f"The tokenizer has {num_ids(tokenizer)} tokens, but {model} has a vocabulary of "
            f"{model_vocabulary_size}: they do not match. Set tokens.tokenizer to the "
            "teacher's own (tokenizer: teacher); if tokens were added to it, call "
            "model.resize_token_embeddings(len(tokenizer)) and save the model again."
        )


def check_same_tokenizer(tokenizer: PreTrainedTokenizerFast, teacher_folder: Path) -> None:
    """Refuse a tokenizer that differs from the one in the teacher's folder, if there is one.

    Raises:
        DataError: the same token has another id in the teacher's tokenizer.
    """
    file = teacher_folder / "tokenizer.json"
    if not file.is_file():
        return
    try:
        vocabulary = json.loads(file.read_text(encoding="utf-8"))["model"]["vocab"]
        if isinstance(vocabulary, list):  # of Unigram: pieces and scores, an id is a place
            vocabulary = {piece: id for id, (piece, _) in enumerate(vocabulary)}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} is not a readable tokenizer ({error!r}).") from error
    ours = tokenizer.get_vocab()
    differ = [token for token, number in vocabulary.items() if ours.get(token) != number]
    if differ:
        raise DataError(
            f"The run's tokenizer and the teacher's in {teacher_folder} disagree on "
            f"{len(differ)} tokens, such "
            f"as {differ[0]!r}. Set tokens.tokenizer to teacher."
        )


def _strip_before_mask(tokenizer: PreTrainedTokenizerFast) -> None:
    """Let the mask token of a byte-level tokenizer include the space before it, as in the published
    RoBERTa: otherwise "a <mask>" has a lone space, which no training text has there."""
    mask = tokenizer.mask_token
    if mask is None or "ByteLevel" not in str(tokenizer.backend_tokenizer.pre_tokenizer):
        return
    stripped = AddedToken(str(mask), lstrip=True, normalized=False, special=True)
    tokenizer.add_tokens([stripped], special_tokens=True)
    tokenizer.mask_token = stripped


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a tokenizer and its chat templates, without truncation or padding: those of a task
    would apply to every text of a program that loads the file without transformers.

    The class is named as transformers 4 names it too, the inputs are named since the versions'
    defaults differ, and options of loading are left out.
    """
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.save_pretrained(folder)
    file = folder / TOKENIZER_CONFIG
    settings = json.loads(file.read_text(encoding="utf-8"))
    named = settings["tokenizer_class"]
    settings = {key: settings[key] for key in settings if key not in LOADING_OPTIONS}
    settings["tokenizer_class"] = OLDER_CLASS.get(named, named)
    settings["model_input_names"] = list(tokenizer.model_input_names)
    text = json.dumps(settings, indent=2, ensure_ascii=False)
    file.write_text(text + "\n", encoding="utf-8")


def tokenizer_files(source: Path) -> list[Path]:
    """The files of the tokenizer at `source`."""
    if source.is_file():
        return [source]
    names = [*OWN_FILES, *(name for pair in BPE_FILES for name in pair), "vocab.txt"]
    found = [source / name for name in names if (source / name).is_file()]
    return found + [path for pattern in TEMPLATES for path in sorted(source.glob(pattern))]


def tokenizer_fingerprint(source: Path) -> str:
    """SHA-256 over the files of a tokenizer, independent of their folder.

    Raises:
        DataError: there is no tokenizer.
    """
    files = tokenizer_files(source)
    if not files:
        raise _no_tokenizer(source)
    return fingerprint(
        {path.name: sha256_of(path) for path in files if path.name != "special_tokens_map.json"}
    )


def _load(source: Path) -> object:
    if source.is_file():
        return _wordpiece(source)
    if any((source / name).is_file() for name in OWN_FILES[:2]):
        return _load_whole(source)
    tokenizer = _from_vocabulary(source)
    if (source / TEMPLATE).is_file():
        tokenizer.chat_template = (source / TEMPLATE).read_text(encoding="utf-8")
    return tokenizer


def _load_whole(source: Path) -> object:
    """A tokenizer as its tokenizer.json says.

    AutoTokenizer may rebuild it by the rules of the class that tokenizer_config.json or the model
    type names: silently, a byte-level BPE of another model then splits words at other places, and
    a cased WordPiece becomes lowercase.
    """
    options: dict[str, Any] = {"local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **options)
    file = source / OWN_FILES[0]
    if file.is_file() and isinstance(tokenizer, PreTrainedTokenizerFast):
        written, found = Tokenizer.from_file(str(file)), tokenizer.backend_tokenizer
        if _text_rules(written) != _text_rules(found):
            vocabulary = written.get_vocab()
            names = tokenizer.special_tokens_map  # an older BERT's are its class's alone
            options |= {kind: name for kind, name in names.items() if str(name) in vocabulary}
            return PreTrainedTokenizerFast.from_pretrained(source, **options)
    return tokenizer


def _text_rules(tokenizer: Tokenizer) -> list[Any]:
    parts = [getattr(tokenizer, name) for name in TEXT_RULES]
    return [part and part.__getstate__() for part in parts]  # in full; str() shortens it


def _from_vocabulary(source: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a folder that has only a vocabulary."""
    for vocabulary, merges in BPE_FILES:
        if (source / vocabulary).is_file() and (source / merges).is_file():
            return _byte_bpe(source / vocabulary, source / merges)
    if (source / "vocab.txt").is_file():
        return _wordpiece(source / "vocab.txt")
    raise _no_tokenizer(source)


def _no_tokenizer(source: Path) -> DataError:
    pieces = sorted(path.name for path in source.glob("*.model"))
    convert = (
        f" {pieces[0]} alone is a SentencePiece model: load it with transformers' AutoTokenizer "
        "(and the sentencepiece package), and save_pretrained() writes tokenizer.json."
        if pieces
        else ""
    )
    return DataError(
        f"{source} holds no tokenizer. It needs tokenizer.json, or vocab.json and merges.txt, "
        f"or encoder.json and vocab.bpe, or vocab.txt.{convert}"
    )


def _byte_bpe(vocabulary: Path, merges: Path) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE.from_file(str(vocabulary), str(merges)))
    names: dict[str, str] = {}
    if backend.token_to_id(END_OF_TEXT) is not None:
        names = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
    elif backend.token_to_id("<mask>") is not None:
        names = ROBERTA_TOKENS
    return wrap_byte_bpe(backend, names)


def wrap_byte_bpe(backend: Tokenizer, names: dict[str, str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with the rules of GPT-2, or of RoBERTa if it has a mask token."""
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    length = CAUSAL_LENGTH
    if "mask_token" in names:
        ids = backend.get_vocab()
        backend.post_processor = processors.RobertaProcessing(
            ("</s>", ids["</s>"]), ("<s>", ids["<s>"]), trim_offsets=True, add_prefix_space=False
        )
        length = MASKED_LENGTH
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=length, **names)
    _strip_before_mask(tokenizer)
    return tokenizer


def _wordpiece(path: Path) -> PreTrainedTokenizerFast:
    tokens = _read_vocabulary(path)
    words = [token for token in tokens if not (token.startswith("[") and token.endswith("]"))]
    upper = any("A" <= letter <= "Z" for word in words for letter in word)
    return wrap_wordpiece(
        {token: number for number, token in enumerate(tokens)},
        lowercase="uncased" in path.name or not upper,
    )


def _read_vocabulary(path: Path) -> list[str]:
    try:
        tokens = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not a vocabulary: byte {error.start} is not UTF-8. "
            "It needs one token per line."
        ) from error
    missing = [token for token in BERT_TOKENS.values() if token not in tokens]
    if missing:
        raise DataError(
            f"{path} is not a WordPiece vocabulary: {', '.join(missing)} is not in it. "
            "It needs one token per line."
        )
    if len(set(tokens)) != len(tokens):
        raise DataError(
            f"{path} lists {len(tokens) - len(set(tokens))} tokens twice. "
            "Each line must be its own token."
        )
    return tokens


def wrap_wordpiece(vocabulary: dict[str, int], *, lowercase: bool) -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer with the rules of BERT."""
    from transformers import BertTokenizer

    return BertTokenizer(vocab=vocabulary, do_lower_case=lowercase, model_max_length=MASKED_LENGTH)


def text_encoder(tokenizer: PreTrainedTokenizerFast) -> Callable[[Sequence[str]], list[np.ndarray]]:
    """A function from texts to token ids; no special token is added, nothing is cut or padded.

    It uses all cores; the result does not depend on how many there are.
    """
    # Set explicitly, so that the library neither warns nor drops its threads when a process forks.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True

    def encode(texts: Sequence[str]) -> list[np.ndarray]:
        encodings = backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.int64) for encoding in encodings]

    return encode
