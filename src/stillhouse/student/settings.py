"""Student settings of a recipe."""

import re
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    PositiveFloat,
    PositiveInt,
    Tag,
    model_validator,
)

from stillhouse.families.settings import FamilyName
from stillhouse.section import Section


class LayerChoice(Section):
    """How many of the teacher's layers the student starts from, and how they are chosen."""

    layers: PositiveInt
    """Number of layers."""
    by: Literal["influence", "greedy", "even"] = "influence"
    """Keep the layers that change their input most (block influence), drop greedily the layer whose
    absence moves the teacher's predictions least, or spread them evenly."""


class ImportanceRecipe(Section):
    """The text on which the importance of the teacher's layers, channels and heads is measured."""

    tokens: PositiveInt = 32_768
    """Number of tokens."""
    text: str = "corpus"
    """`corpus`, for the training text, or a source as in `corpus.source`."""
    sequence_length: Annotated[int, Field(ge=8)] | None = None
    """Length of its sequences in tokens, whatever that of training; by default 1,024, or as many
    as the teacher takes."""


COUNTS = {"k": 10**3, "M": 10**6, "B": 10**9}
SIZES = {"kB": 10**3, "MB": 10**6, "GB": 10**9}


def _with_unit(value: Any, *, units: Mapping[str, int]) -> Any:
    """A number with a unit as an integer: 90M is 90,000,000."""
    if not isinstance(value, str):
        return value
    found = re.fullmatch(rf"(\d+(?:\.\d+)?) ?({'|'.join(units)})?", value.replace("_", ""))
    if found is None:
        shown = ", ".join(f"90{unit}" for unit in units)
        raise ValueError(f"{value!r} is not a size; give a whole number, or one such as {shown}")
    return round(float(found[1]) * units.get(found[2], 1))


Count = Annotated[
    PositiveInt,
    BeforeValidator(partial(_with_unit, units=COUNTS), json_schema_input_type=int | str),
]
SizeBytes = Annotated[
    PositiveInt, BeforeValidator(partial(_with_unit, units=SIZES), json_schema_input_type=int | str)
]


class RaceRecipe(Section):
    """How the student of a budget is chosen among candidates of its size."""

    candidates: PositiveInt = 12
    """Students of different shapes that are cut from the teacher, and ranked by their loss."""
    finalists: PositiveInt = 3
    """The best of them, which are distilled for a short time; the student is the one that is then
    closest to the teacher on held-out text."""
    tokens: PositiveInt = 100_000
    """Tokens that each finalist is distilled on."""


class BudgetRecipe(Section):
    """The size of a student whose layers and widths are chosen by a race."""

    parameters: Count | None = None
    """Number of parameters, such as `90M`."""
    memory: SizeBytes | None = None
    """Bytes of the weights in the teacher's precision, such as `200MB`."""
    tokens_per_second: PositiveFloat | None = None
    """Decoding speed on this machine: tokens per second of one sequence, in the precision that
    `generate` chooses for the teacher."""
    race: RaceRecipe = RaceRecipe()
    """The race of candidates."""

    @model_validator(mode="after")
    def _check_one_size(self) -> Any:
        given = (self.parameters, self.memory, self.tokens_per_second)
        if given.count(None) != len(given) - 1:
            raise ValueError(
                "give the size once: parameters, such as 90M, memory, or tokens_per_second"
            )
        return self


def _kind_of_layer_map(value: Any) -> str:
    if isinstance(value, list):
        return "listed"
    return "chosen" if isinstance(value, dict | LayerChoice) else "number"


# The keys that a budget replaces.
SHAPE = ("layer_map", "hidden_size", "feed_forward_size", "num_heads", "num_key_value_heads")


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
    hidden_size: PositiveInt | None = None
    """Width of the hidden states; by default the teacher's. Where heads divide it, as in GPT-2 and
    BERT, their number follows."""
    feed_forward_size: PositiveInt | None = None
    """Width of the feed-forward part of each layer; by default the teacher's."""
    num_heads: PositiveInt | None = None
    """Attention heads of each layer, a multiple of `num_key_value_heads`; by default the
    teacher's."""
    num_key_value_heads: PositiveInt | None = None
    """Key and value heads of each layer, where heads share them; by default the teacher's."""
    vocabulary: PositiveInt | None = None
    """Number of tokens of the student, those that the corpus uses most, with all that other text
    needs; by default the teacher's. The teacher then reads and predicts these alone."""
    budget: BudgetRecipe | None = None
    """Size of the student; replaces the number of layers and all widths, which are then chosen
    among candidates."""
    importance: ImportanceRecipe = ImportanceRecipe()
    """Text on which layers, channels and heads are chosen."""
    weights: str = "teacher"
    """Initial weights: `teacher`, `random`, or a model folder."""
    reconstruct: bool = False
    """After the cut, fit the last projection of each layer to the teacher's hidden states by least
    squares, on the text of `importance`."""
    freeze: list[Literal["word_embeddings", "position_embeddings", "token_type_embeddings"]] = (
        Field(default=[])
    )
    """Embeddings that training leaves unchanged."""

    @model_validator(mode="after")
    def _check_reconstruct(self) -> Any:
        if self.reconstruct and self.weights != "teacher":
            raise ValueError(
                f"weights is {self.weights}, but only a student that starts from its teacher's "
                "weights can be reconstructed; leave out weights or reconstruct"
            )
        return self

    @model_validator(mode="after")
    def _check_budget(self) -> Any:
        if self.budget is None:
            return self
        if given := [key for key in SHAPE if getattr(self, key) is not None]:
            raise ValueError(
                f"budget chooses {' and '.join(given)} by a race; leave out one or the other"
            )
        if self.weights != "teacher":
            raise ValueError(
                f"weights is {self.weights}, but a budget's candidates are cut from the teacher; "
                "leave out weights or budget"
            )
        return self

    @property
    def chooses_layers(self) -> bool:
        """Whether layers are chosen by importance; other weights than the teacher's start from no
        layer."""
        by = self.layer_map.by if isinstance(self.layer_map, LayerChoice) else "influence"
        return self.weights == "teacher" and by != "even" and not isinstance(self.layer_map, list)

    @property
    def is_narrower(self) -> bool:
        """Whether a width is given."""
        widths = (self.hidden_size, self.feed_forward_size, self.num_heads)
        widths += (self.num_key_value_heads,)
        return any(width is not None for width in widths)
