"""Student settings of a recipe."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, PositiveInt, Tag

from stillhouse.families.settings import FamilyName
from stillhouse.section import Section


class LayerChoice(Section):
    """How many of the teacher's layers the student starts from, and how they are chosen."""

    layers: PositiveInt
    """Number of layers."""
    by: Literal["influence", "greedy", "even"] = "influence"
    """Keep the layers that change their input most (block influence), drop greedily the layer whose
    absence raises the loss least, or spread them evenly."""


class ImportanceRecipe(Section):
    """The text on which the importance of the teacher's layers is measured."""

    tokens: PositiveInt = 32_768
    """Number of tokens."""
    text: str = "corpus"
    """`corpus`, for the training text, or a source as in `corpus.source`."""


def _kind_of_layer_map(value: Any) -> str:
    if isinstance(value, list):
        return "listed"
    return "chosen" if isinstance(value, dict | LayerChoice) else "number"


class StudentRecipe(Section):
    """The student's architecture and initial weights."""

    family: FamilyName | None = None
    """Architecture of the student; by default DistilBERT for BERT, else the teacher's."""
    layer_map: (
        Annotated[
            Annotated[PositiveInt, Tag("number")]
            | Annotated[list[int], Field(min_length=1), Tag("listed")]
            | Annotated[LayerChoice, Tag("chosen")],
            Discriminator(_kind_of_layer_map),
        ]
        | None
    ) = None
    """Teacher layers that student layers start from: a list counted from 0, or a number of layers,
    chosen by influence; by default half."""
    feed_forward_size: PositiveInt | None = None
    """Width of the feed-forward part of each layer; by default the teacher's."""
    num_heads: PositiveInt | None = None
    """Attention heads of each layer, a multiple of `num_key_value_heads`; by default the
    teacher's."""
    num_key_value_heads: PositiveInt | None = None
    """Key and value heads of each layer, where heads share them; by default the teacher's."""
    importance: ImportanceRecipe = ImportanceRecipe()
    """Text on which layers, channels and heads are chosen."""
    weights: str = "teacher"
    """Initial weights: `teacher`, `random`, or a model folder."""
    freeze: list[Literal["word_embeddings", "position_embeddings", "token_type_embeddings"]] = (
        Field(default=[])
    )
    """Embeddings that training leaves unchanged."""

    @property
    def chooses_layers(self) -> bool:
        """Whether layers are chosen by importance; other weights than the teacher's start from no
        layer."""
        by = self.layer_map.by if isinstance(self.layer_map, LayerChoice) else "influence"
        return self.weights == "teacher" and by != "even" and not isinstance(self.layer_map, list)

    @property
    def is_narrower(self) -> bool:
        """Whether a width is given."""
        widths = (self.feed_forward_size, self.num_heads, self.num_key_value_heads)
        return any(width is not None for width in widths)
