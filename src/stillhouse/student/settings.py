"""Student settings of a recipe."""

from typing import Annotated, Literal

from pydantic import (
    Field,
    PositiveInt,
)

from stillhouse.section import Section


class StudentRecipe(Section):
    """Which student follows from the teacher, and with which weights it starts."""

    family: Literal["gpt2", "bert", "distilbert", "roberta"] | None = None
    layer_map: PositiveInt | Annotated[list[int], Field(min_length=1)] | None = None
    weights: str = "teacher"
    freeze: list[Literal["word_embeddings", "position_embeddings", "token_type_embeddings"]] = (
        Field(default=[])
    )
