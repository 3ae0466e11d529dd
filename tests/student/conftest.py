"""A calibration text for tiny models."""

import numpy as np
import pytest
from tests.tiny_models import VOCABULARY

from stillhouse.families.registry import family_of
from stillhouse.student.calibration import Calibration
from stillhouse.tokens.packing import pack
from stillhouse.tokens.settings import TokensRecipe
from stillhouse.tokens.shards import TokenSplit


@pytest.fixture
def text_for(words, tiny_tokenizer):
    """text_for(model): two sequences, the second shorter, as a model reads them."""

    def make(model) -> Calibration:
        kind = family_of(model.config).language_modeling
        if kind == "causal":
            tiny_tokenizer.eos_token = "[SEP]"
        tokens = TokensRecipe(language_modeling=kind, sequence_length=10)
        documents = [np.array([3, *words(9)]), np.array([3, *words(4, seed=1)])]
        split = TokenSplit.in_memory(documents, VOCABULARY)
        return Calibration(pack(split, tiny_tokenizer, tokens), 1_000)

    return make
