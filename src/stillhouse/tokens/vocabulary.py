"""Smaller vocabularies: which tokens of a tokenizer stay, and the tokenizer that has only these.

A trimmed tokenizer reads a text in more tokens, without a loss; only WordPiece may lose a few words
to the unknown token. Each of its tokens is one of the whole tokenizer's, in the same order, so
`kept[new id]` is the old id, and a sequence of the one is a sequence of the other.

What stays, whatever the counts: added tokens (special ones among them), those that are put around a
text, and what any text may need:

- BPE: bytes, or characters where there are none. A token is reached only through the two tokens of
  its last merge, so only leaves of the tree of merges are dropped; their counts go to these two.
- WordPiece, Unigram: single characters, and tokens with a character that has no token of its own;
  where Unigram falls back to bytes, these.

Axes: V tokens of the whole tokenizer, K tokens that stay.
"""

import heapq
import json
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer
from transformers import PreTrainedTokenizerFast

from stillhouse.errors import DataError, RecipeError
from stillhouse.tokens.tokenizer import load_tokenizer, save_tokenizer

KEPT = "kept-tokens.bin"
BYTES = tuple(f"<0x{number:02X}>" for number in range(256))  # the tokens that a fallback names
SPACE = "\u2581"  # what stands for a space; decoders do not find it in bytes
AFFIXES = ("continuing_subword_prefix", "end_of_word_suffix")  # settings of a BPE
KEY = "student.vocabulary"


@dataclass(frozen=True)
class Pieces:
    """What a tokenizer's tokens need of each other, by id.

    Attributes:
        all: Every token.
        fixed: Tokens that always stay.
        parts: What a text has in place of a token that is dropped, where that is known; a token
            whose parts are two is reached through them.
    """

    all: frozenset[int]
    fixed: frozenset[int]
    parts: Mapping[int, Sequence[int]] = field(default_factory=dict)


def check_vocabulary_size(tokenizer: PreTrainedTokenizerFast, size: int) -> None:
    """Refuse a size that no trimmed tokenizer has.

    Raises:
        RecipeError: more tokens than there are, or fewer than every text needs.
        DataError: a kind of tokenizer that cannot be trimmed.
    """
    _check_size(tokenizer, pieces_of(tokenizer), size)


def _check_size(tokenizer: PreTrainedTokenizerFast, pieces: Pieces, size: int) -> None:
    least, most = len(pieces.fixed), len(tokenizer)
    if not least <= size <= most:
        raise RecipeError(
            f"{KEY} is {size:,}, but the teacher's tokenizer has {most:,} tokens, and without "
            f"{least:,} of them (special tokens, bytes, characters) text would be lost. Give "
            f"{least:,} to {most:,}."
        )


def choose_tokens(
    tokenizer: PreTrainedTokenizerFast, counts: Integer[np.ndarray, " V"], size: int
) -> Integer[np.ndarray, " K"]:
    """The ids of the tokens that stay, rising: the rarest others are dropped, one after the other.

    Args:
        counts: How often each token occurs, by id; ids beyond it do not occur.

    Raises:
        RecipeError, DataError: see `check_vocabulary_size`.
    """
    pieces = pieces_of(tokenizer)
    _check_size(tokenizer, pieces, size)
    number = defaultdict(int, enumerate(counts.tolist()))
    users = Counter(part for own in pieces.parts.values() for part in own)
    left = set(pieces.all)
    # Of equally rare tokens the last: a tokenizer learned it last.
    waiting = [(number[id], -id) for id in left - pieces.fixed if not users[id]]
    heapq.heapify(waiting)
    while len(left) > size:
        count, negative = heapq.heappop(waiting)
        left.remove(-negative)
        for part in pieces.parts.get(-negative, ()):
            number[part] += count
            users[part] -= 1
            if not users[part] and part not in pieces.fixed:
                heapq.heappush(waiting, (number[part], -part))
    return np.array(sorted(left), np.int64)


def write_kept(tokens_folder: Path, kept: Integer[np.ndarray, " K"]) -> None:
    """Write old ids by new ids, little-endian uint32, beside the shards of the new ones."""
    (tokens_folder / KEPT).write_bytes(kept.astype("<u4").tobytes())


def read_kept(tokens_folder: Path) -> Integer[np.ndarray, " K"]:
    """The ids in the whole tokenizer, by id in the run's."""
    return np.fromfile(tokens_folder / KEPT, "<u4").astype(np.int64)


def pieces_of(tokenizer: PreTrainedTokenizerFast) -> Pieces:
    """What the tokens of a tokenizer need.

    Raises:
        DataError: a kind of tokenizer that cannot be trimmed.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    model, ids = state["model"], tokenizer.get_vocab()
    added = {token["content"] for token in state["added_tokens"]}
    around = {*_ids_in(state["post_processor"])}
    named = {token for token, id in ids.items() if id in around}
    named |= {model.get("unk_token"), SPACE} & ids.keys()
    if model["type"] == "Unigram" and model["unk_id"] is not None:
        named.add(model["vocab"][model["unk_id"]][0])
    parts: dict[int, Sequence[int]] = {}
    falls_back = bool(model.get("byte_fallback")) and ids.keys() >= {*BYTES}
    if model["type"] == "BPE" and not any(map(model.get, AFFIXES)):
        merges = [tuple(merge) for merge in model["merges"]]
        produced = {"".join(merge) for merge in merges}
        needed = {*BYTES} if falls_back else ids.keys() - produced
        parts = {
            ids[token]: [ids[part] for part in own]
            for token, own in last_merges(merges).items()
            if token in ids and token not in added | named | needed
        }
    elif model["type"] in ("WordPiece", "Unigram"):
        prefix = model.get("continuing_subword_prefix") or ""
        needed = {*BYTES} if falls_back else _needed_by_characters(ids, prefix)
    else:
        raise DataError(
            f"{KEY} cannot be cut: the teacher's tokenizer is a {model['type']} "
            f"{'with affixes ' if model['type'] == 'BPE' else ''}model, and only byte-level or "
            "character BPE, WordPiece and Unigram can be trimmed. Leave the key out."
        )
    fixed = frozenset(ids[token] for token in added | named | needed)
    return Pieces(frozenset(ids.values()), fixed, parts)


def last_merges(merges: Sequence[tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """For each token that merges produce, the two tokens that become it when it is encoded.

    Where several merges produce a token, its own text is encoded with all of them. A token that no
    text becomes by merges is left out.
    """
    by_token: dict[str, list[tuple[str, str]]] = {}
    for merge in merges:
        by_token.setdefault("".join(merge), []).append(merge)
    ranks = {merge: rank for rank, merge in enumerate(merges)}
    found = {}
    for token, own in by_token.items():
        last = own[0] if len(own) == 1 else _last_merge(token, ranks)
        if last is not None:
            found[token] = last
    return found


def _last_merge(token: str, ranks: Mapping[tuple[str, str], int]) -> tuple[str, str] | None:
    parts = [*token]
    while len(parts) > 2:
        pairs = [*pairwise(parts)]
        at = min(range(len(pairs)), key=lambda place: ranks.get(pairs[place], len(ranks)))
        if pairs[at] not in ranks:
            return None
        parts[at : at + 2] = ["".join(pairs[at])]
    first, second = parts
    return (first, second) if (first, second) in ranks else None


def _needed_by_characters(tokens: Iterable[str], prefix: str) -> set[str]:
    """Single characters, and tokens with a character that has no token of its own there.

    Args:
        prefix: What a token inside a word begins with.
    """

    def characters(token: str) -> Iterator[str]:
        """The tokens of its characters by themselves."""
        inside = bool(prefix) and token.startswith(prefix) and token != prefix
        for place, character in enumerate(token[len(prefix) :] if inside else token):
            yield f"{prefix}{character}" if inside or place else character

    known = {*tokens}
    return {
        token
        for token in known
        if (own := [*characters(token)]) and (len(own) == 1 or not known.issuperset(own))
    }


def trim_tokenizer(
    tokenizer: PreTrainedTokenizerFast, kept: Integer[np.ndarray, " K"]
) -> PreTrainedTokenizerFast:
    """The tokenizer that has only these tokens, numbered in their order.

    Args:
        kept: Ids from `choose_tokens`.
    """
    new_ids = {old: new for new, old in enumerate(kept.tolist())}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_tokenizer(tokenizer, folder)
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        _trim_model(state["model"], new_ids)
        for token in state["added_tokens"]:
            token["id"] = new_ids[token["id"]]
        state["post_processor"] = _renumbered(state["post_processor"], new_ids)
        (folder / "tokenizer.json").write_text(json.dumps(state), encoding="utf-8")
        trimmed = load_tokenizer(folder)
    names = {number: token for token, number in tokenizer.get_vocab().items()}
    assert trimmed.get_vocab() == {names[old]: new for old, new in new_ids.items()}
    return trimmed


def _trim_model(model: dict[str, Any], new_ids: Mapping[int, int]) -> None:
    """Leave, in a tokenizer.json, the tokens with a new id and the merges between them."""
    if model["type"] == "Unigram":  # an id is a place in the list
        model["vocab"] = [each for id, each in enumerate(model["vocab"]) if id in new_ids]
        model["unk_id"] = None if model["unk_id"] is None else new_ids[model["unk_id"]]
        return
    vocabulary = {token: new_ids[id] for token, id in model["vocab"].items() if id in new_ids}
    model["vocab"] = vocabulary
    if "merges" in model:
        model["merges"] = [
            merge
            for merge in model["merges"]
            if merge[0] in vocabulary and merge[1] in vocabulary and "".join(merge) in vocabulary
        ]


def _ids_in(part: Any) -> Iterator[int]:
    """The ids that `_renumbered` changes."""
    if isinstance(part, list):
        if len(part) == 2 and isinstance(part[0], str) and isinstance(part[1], int):
            yield part[1]
        else:
            for each in part:
                yield from _ids_in(each)
    elif isinstance(part, dict):
        for key, value in part.items():
            yield from value if key == "ids" else _ids_in(value)


def _renumbered(part: Any, new_ids: Mapping[int, int]) -> Any:
    """A post-processor with new ids: lists under `ids`, and pairs of a token and its id."""
    if isinstance(part, list):
        if len(part) == 2 and isinstance(part[0], str) and isinstance(part[1], int):
            return [part[0], new_ids[part[1]]]
        return [_renumbered(each, new_ids) for each in part]
    if not isinstance(part, dict):
        return part
    return {
        key: [new_ids[id] for id in value] if key == "ids" else _renumbered(value, new_ids)
        for key, value in part.items()
    }
