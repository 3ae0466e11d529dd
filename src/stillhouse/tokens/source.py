"""The packed sequences and the tokenizer of a tokens folder."""

import json
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from stillhouse.errors import DataError, RecipeError
from stillhouse.tokens.batches import SequenceSource
from stillhouse.tokens.packing import CausalSequences, MaskedSequences
from stillhouse.tokens.settings import OWN_TOKENIZER, TokensRecipe
from stillhouse.tokens.shards import open_split
from stillhouse.tokens.tokenizer import load_tokenizer, num_ids, special_tokens


def open_tokenizer(tokens_folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of the shards, which every model of the run is saved with."""
    return load_tokenizer(tokens_folder / "tokenizer")


def open_source(tokens_folder: Path, recipe: TokensRecipe, split: str) -> SequenceSource:
    """The sequences of one split, packed and masked as the recipe says."""
    tokens = open_split(tokens_folder, split)
    tokenizer = open_tokenizer(tokens_folder)
    special = special_tokens(tokenizer, recipe.language_modeling)
    if recipe.language_modeling == "causal":
        assert special.end_of_text is not None
        return CausalSequences(
            tokens,
            recipe.sequence_length,
            special.end_of_text,
            attend_across_documents=recipe.attend_across_documents,
            document_start=special.document_start,
        )
    return MaskedSequences(
        tokens,
        recipe.sequence_length,
        special,
        recipe.masking,
        vocabulary_size=num_ids(tokenizer),
        counts=open_split(tokens_folder, "train").counts,
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
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} is not a readable tokenizer ({error!r}).") from error
    ours = tokenizer.get_vocab()
    if isinstance(vocabulary, dict):
        differ = [token for token, number in vocabulary.items() if ours.get(token) != number]
        if differ:
            raise DataError(
                f"The run's tokenizer and the teacher's in {teacher_folder} disagree on "
                f"{len(differ)} tokens, such "
                f"as {differ[0]!r}. Set tokens.tokenizer to teacher."
            )


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
