"""The smallest configuration of each family."""

from collections.abc import Mapping
from typing import Any

import pytest
from transformers import PretrainedConfig

from stillhouse.families.registry import FAMILIES, family_named
from stillhouse.families.settings import WITH_FILES, ArchitectureRecipe

VOCABULARY = 60
POSITIONS = 24


def _by_family(values: Mapping[str, Any]) -> list[Any]:
    """Parameters of a test, one for each family by name. Families without a file of their own run
    in the slower tests: tests/families/test_laws.py runs all of them in the fast ones."""
    return [
        pytest.param(value, id=name, marks=() if name in WITH_FILES else pytest.mark.e2e)
        for name, value in values.items()
    ]


CAUSAL = [n for n, family in FAMILIES.items() if family.language_modeling == "causal"]
EVERY_FAMILY = _by_family({name: name for name in FAMILIES})
EVERY_CAUSAL_FAMILY = _by_family({name: name for name in CAUSAL})
# Every family with the family of its default student, as (student, teacher).
_PAIRS = {name: (next(iter(family.student_mappings)), name) for name, family in FAMILIES.items()}
PAIRS = _by_family(_PAIRS)
# Families whose queries, keys and values can be separated.
WITH_RELATIONS = {
    name: pair for name, pair in _PAIRS.items() if FAMILIES[name].attention_projections
}
PAIRS_WITH_RELATIONS = _by_family(WITH_RELATIONS)
EVERY_FAMILY_WITH_RELATIONS = _by_family({name: name for name in WITH_RELATIONS})


def make_config(
    family: str, num_layers: int = 2, *, vocabulary: int = VOCABULARY, positions: int = POSITIONS
) -> PretrainedConfig:
    """A family's smallest configuration, without dropout."""
    size = ArchitectureRecipe(family=family, num_layers=num_layers, hidden_size=16, num_heads=2)
    special = {"end_of_text": 0, "pad": 0, "cls": 0, "sep": 2}
    own = family_named(family)
    return own.new_config(size, vocabulary, positions, special, **own.tiny)


def is_causal(family: str) -> bool:
    """Whether a family does causal language modeling."""
    return family_named(family).language_modeling == "causal"
