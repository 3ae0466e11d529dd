"""The smallest configuration of each family."""

from transformers import PretrainedConfig

from stillhouse.families.registry import family_named
from stillhouse.families.settings import ArchitectureRecipe

VOCABULARY = 60
POSITIONS = 24


def make_config(
    family: str, num_layers: int = 2, *, vocabulary: int = VOCABULARY, positions: int = POSITIONS
) -> PretrainedConfig:
    """A family's smallest configuration, without dropout."""
    size = ArchitectureRecipe(family=family, num_layers=num_layers, hidden_size=16, num_heads=2)
    special = {"end_of_text": 0, "pad": 1 if family == "roberta" else 0, "cls": 0, "sep": 2}
    return family_named(family).new_config(size, vocabulary, positions, special)
