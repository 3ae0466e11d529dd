"""Training a tokenizer on text.

Contract: the same texts in the same order give the same tokenizer on any machine, with exactly the
requested vocabulary size.
"""

import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import IO, Literal

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from stillhouse.errors import DataError
from stillhouse.section import LanguageModeling
from stillhouse.tokens.tokenizer import (
    BERT_TOKENS,
    END_OF_TEXT,
    ROBERTA_TOKENS,
    wrap_byte_bpe,
    wrap_wordpiece,
)

MAX_ALPHABET = 1000


def train_tokenizer(
    kind: Literal["byte_bpe", "wordpiece"],
    vocabulary_size: int,
    texts: Iterator[str],
    language_modeling: LanguageModeling,
) -> PreTrainedTokenizerFast:
    """Train byte-level BPE (GPT-2, RoBERTa) or lower-case WordPiece (BERT) on `texts`.

    Raises:
        DataError: the text is too short or too uniform for that many entries.
    """
    if kind == "wordpiece":
        if language_modeling == "causal":
            raise DataError(
                "A WordPiece tokenizer has no end-of-text token, which causal language modeling "
                "needs. Train byte_bpe, or set tokens.language_modeling to masked."
            )
        tokenizer = _train_wordpiece(vocabulary_size, texts)
    else:
        tokenizer = _train_byte_bpe(vocabulary_size, texts, language_modeling)
    if len(tokenizer) != vocabulary_size:
        raise DataError(
            f"tokens.tokenizer.vocabulary_size is {vocabulary_size}, but the training text gives "
            f"only {len(tokenizer)} entries. Lower it to {len(tokenizer)}, or give more text."
        )
    return tokenizer


def _train_byte_bpe(
    vocabulary_size: int, texts: Iterator[str], language_modeling: LanguageModeling
) -> PreTrainedTokenizerFast:
    names = ROBERTA_TOKENS
    if language_modeling == "causal":
        names = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT}
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=list(dict.fromkeys(names.values())),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return wrap_byte_bpe(backend, names)


def _train_wordpiece(vocabulary_size: int, texts: Iterator[str]) -> PreTrainedTokenizerFast:
    """WordPiece with ids that are fixed before training.

    The library numbers the letters inside words (`##x`) in the order of a hash table, which differs
    between processes, and breaks ties between merges by these ids. As special tokens they have
    fixed ids; the trained vocabulary treats them as ordinary tokens.
    """
    backend = Tokenizer(models.WordPiece(unk_token=BERT_TOKENS["unk_token"]))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    with tempfile.TemporaryFile("w+", encoding="utf-8", newline="") as spool:
        size = min(MAX_ALPHABET, vocabulary_size // 4)
        alphabet = _spooled_alphabet(texts, backend.normalizer, spool, size)
        spool.seek(0)
        trainer = trainers.WordPieceTrainer(
            vocab_size=vocabulary_size,
            special_tokens=[*BERT_TOKENS.values(), *(f"##{letter}" for letter in alphabet)],
            initial_alphabet=alphabet,
            limit_alphabet=len(alphabet),
            show_progress=False,
        )
        backend.train_from_iterator(iter(spool), trainer)
    return wrap_wordpiece(backend.get_vocab(), lowercase=True)


def _spooled_alphabet(
    texts: Iterable[str], normalizer: normalizers.Normalizer, spool: IO[str], size: int
) -> list[str]:
    """Write the normalized texts to `spool`; return the `size` most common letters, sorted."""
    counts: Counter[str] = Counter()
    for text in texts:
        for line in text.splitlines():
            normal = normalizer.normalize_str(line)
            counts.update(normal)
            spool.write(f"{normal}\n")
    letters = [letter for letter in counts if not letter.isspace()]
    letters.sort(key=lambda letter: (-counts[letter], letter))
    return sorted(letters[:size])
