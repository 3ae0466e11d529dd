"""Student settings of a recipe."""

from typing import Annotated, Literal

from pydantic import (
    Field,
    PositiveInt,
)

from stillhouse.families.settings import FamilyName
from stillhouse.section import Section


class StudentRecipe(Section):
    """The student's architecture and initial weights."""

    family: FamilyName | None = None
    """Architecture of the student; by default DistilBERT for BERT, else the teacher's."""
    layer_map: PositiveInt | Annotated[list[int], Field(min_length=1)] | None = None
    """Teacher layers that student layers start from: a number, spread evenly, or a list counted
    from 0; by default half."""
    weights: str = "teacher"
    """Initial weights: `teacher`, `random`, or a model folder."""
    freeze: list[Literal["word_embeddings", "position_embeddings", "token_type_embeddings"]] = (
        Field(default=[])
    )
    """Embeddings that training leaves unchanged."""
