"""Token splits in memory, made of documents given as lists of ids."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from stillhouse.tokens.shards import TokenSplit
from stillhouse.tokens.tokenizer import SpecialTokens

VOCABULARY = 60


@pytest.fixture
def split_of(tmp_path) -> Callable[..., TokenSplit]:
    """split_of(documents): their tokens as one split of two shards."""

    def make(documents: Sequence[Sequence[int]]) -> TokenSplit:
        tokens = np.array([token for document in documents for token in document], "<u2")
        starts = np.cumsum([0, *map(len, documents)]).astype(np.uint64)
        middle = int(starts[len(starts) // 2])
        return TokenSplit(
            VOCABULARY,
            (tokens[:middle], tokens[middle:]),
            starts,
            np.bincount(tokens, minlength=VOCABULARY).astype("<u8"),
            (tmp_path / "train-00000.bin", tmp_path / "train-00001.bin"),
        )

    return make


@pytest.fixture
def special() -> SpecialTokens:
    """Pad 0, unknown 1, CLS 2, SEP 3, mask 4."""
    return SpecialTokens(
        end_of_text=None,
        document_start=None,
        cls=2,
        sep=3,
        mask=4,
        pad=0,
        unk=1,
        all_ids=(0, 1, 2, 3, 4),
    )
