"""The vocabulary of an exported file: a name for every id, and the special tokens."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from stillhouse.errors import ModelError
from stillhouse.inference.loaded import LoadedModel


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a model, without padding after the last one.

    Attributes:
        names: By id; the name of an added token is its text.
        unused: Ids without a token; their names are <|padding_ID|>.
        special: Special tokens.
        added: Other tokens that were added to the base vocabulary.
        end_ids: The tokens that end a text, the tokenizer's own first: those of the model's files,
            or else the tokenizer's. May be empty.
        begin_id: The token that starts a text, if there is one.
    """

    names: tuple[str, ...]
    unused: frozenset[int]
    special: frozenset[int]
    added: frozenset[int]
    end_ids: tuple[int, ...]
    begin_id: int | None

    def __len__(self) -> int:
        return len(self.names)


def vocabulary_of(name: str, loaded: LoadedModel) -> Vocabulary:
    """The vocabulary of a model and its tokenizer.

    Raises:
        ModelError: the tokenizer has tokens without an embedding, or no tokens.
    """
    tokenizer, config = loaded.tokenizer, loaded.model.config
    begin: Any = tokenizer.bos_token_id
    by_id = {id: token for token, id in tokenizer.get_vocab().items()}
    size = max(by_id, default=-1) + 1
    if not 0 < size <= config.vocab_size:
        raise ModelError(
            f"The tokenizer of {name} has {size} tokens, and the model has embeddings for "
            f"{config.vocab_size}. Save the tokenizer that belongs to the model, or call "
            "model.resize_token_embeddings(len(tokenizer)) and train it."
        )
    unused = frozenset(id for id in loaded.unused_ids if id < size)
    added = tokenizer.added_tokens_decoder
    special = {id for id, token in added.items() if token.special}.union(tokenizer.all_special_ids)
    return Vocabulary(
        tuple(by_id[id] if id in by_id else _unused_name(id, by_id.values()) for id in range(size)),
        unused,
        frozenset(special),
        frozenset(added) - special,
        _end_ids(loaded),
        _first_known([config.bos_token_id, begin], size),
    )


def _unused_name(id: int, taken: Iterable[str]) -> str:
    name = f"<|padding_{id}|>"
    return f"{name}_" if name in taken else name


def _end_ids(loaded: LoadedModel) -> tuple[int, ...]:
    own: Any = loaded.tokenizer.eos_token_id
    known = loaded.end_ids or {id for id in (own,) if id is not None}
    return tuple(sorted(known, key=lambda id: (id != own, id)))


def _first_known(ids: list[int | None], size: int) -> int | None:
    return next((id for id in ids if id is not None and 0 <= id < size), None)
