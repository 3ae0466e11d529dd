"""Architecture settings of a recipe."""

from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, PositiveInt, model_validator

from stillhouse.section import Section

# The files of `architectures`: listed, not imported, since they import transformers.
WITH_FILES = tuple(
    module.name for module in iter_modules([str(Path(__file__).with_name("architectures"))])
)
# By transformers' `model_type`.
CAUSAL = (
    "gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "olmo2",
    "gpt_neox", "opt",
)  # fmt: skip
MASKED = (
    "bert", "distilbert", "roberta", "xlm-roberta", "camembert", "electra", "mpnet", "modernbert",
    "deberta-v2",
)  # fmt: skip
FAMILY_NAMES = (*CAUSAL, *MASKED)
if TYPE_CHECKING:
    FamilyName = str
else:
    FamilyName = Literal[FAMILY_NAMES]


class ArchitectureRecipe(Section):
    """The size of a model with random weights."""

    family: FamilyName
    """Architecture, by transformers' model_type."""
    num_layers: PositiveInt
    """Number of layers."""
    hidden_size: PositiveInt
    """Size of the hidden states, a multiple of num_heads."""
    num_heads: PositiveInt
    """Number of attention heads."""
    intermediate_size: PositiveInt | None = None
    """Size of the feed-forward layer; by default 4 times hidden_size."""
    num_key_value_heads: PositiveInt | None = None
    """Number of heads of keys and values, which several heads of queries share; by default
    num_heads."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout probability of the model's configuration."""

    @model_validator(mode="after")
    def _heads_divide_the_hidden_size(self) -> Any:
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}; "
                "each attention head takes an equal share of it"
            )
        if self.num_heads % (self.num_key_value_heads or 1):
            raise ValueError(
                f"num_heads {self.num_heads} is not a multiple of num_key_value_heads "
                f"{self.num_key_value_heads}; each head of keys serves equally many of queries"
            )
        return self
