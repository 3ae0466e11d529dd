"""Architecture settings of a recipe."""

from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    PositiveInt,
    model_validator,
)

from stillhouse.section import Section


class ArchitectureRecipe(Section):
    """The size of a model with random weights."""

    family: Literal["gpt2", "bert", "roberta"]
    num_layers: PositiveInt
    hidden_size: PositiveInt
    num_heads: PositiveInt
    intermediate_size: PositiveInt | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @model_validator(mode="after")
    def _heads_divide_the_hidden_size(self) -> Any:
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}; "
                "each attention head takes an equal share of it"
            )
        return self
