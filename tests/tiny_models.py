"""The smallest configuration of each family."""

from transformers import PretrainedConfig

from stillhouse.families.registry import FAMILIES, family_named
from stillhouse.families.settings import ArchitectureRecipe

VOCABULARY = 60
POSITIONS = 24
CAUSAL_FAMILIES = [n for n, family in FAMILIES.items() if family.language_modeling == "causal"]
# Every family with the family of its default student, as (student, teacher).
PAIRS = [(next(iter(family.student_mappings)), name) for name, family in FAMILIES.items()]


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
