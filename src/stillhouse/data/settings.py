"""Corpus settings of a recipe."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, PositiveFloat, Tag, model_validator

from stillhouse.section import Fraction, Name, Section, UnitInterval


class MixtureRecipe(Section):
    """How often each part of the text is drawn: by its size, or by given weights."""

    exponent: UnitInterval | None = None
    """Parts are drawn in proportion to their tokens to this power: 1 keeps their shares, 0 makes
    them equal."""
    weights: dict[Name, PositiveFloat] | None = None
    """Parts are drawn in proportion to these numbers, one for each part."""

    @model_validator(mode="after")
    def _gives_one(self) -> Any:
        if (self.exponent is None) == (self.weights is None):
            raise ValueError("give either exponent, such as 0.7, or weights, one for each part")
        return self


Sources = str | list[str]


def _kind_of_source(value: object) -> str:
    return "parts" if isinstance(value, Mapping) else "whole"


class CorpusRecipe(Section):
    """Text sources, and what one document is."""

    source: Annotated[
        Annotated[Sources, Tag("whole")] | Annotated[dict[Name, Sources], Tag("parts")],
        Discriminator(_kind_of_source),
    ]
    """Files, globs, `hf://` datasets or `sample`; one or a list, or, by name, those of each part of
    the text, such as its languages."""
    mixture: MixtureRecipe | None = Field(default=None, exclude_if=lambda given: given is None)
    """How often each part is drawn in training; by default as often as it occurs."""
    documents: Literal["per_file", "per_line", "per_block"] = "per_file"
    """What one document of a text file is: the file, a line, or a block between blank lines. In
    other formats each record is a document."""
    text_field: str = "text"
    """Field or column that holds the text."""
    validation_fraction: Fraction = 0.005
    """Fraction of the documents held out for validation."""

    @property
    def sources(self) -> list[str]:
        """The sources of all parts as a list."""
        if isinstance(self.source, dict):
            return [each for part in self.parts.values() for each in part.sources]
        return [self.source] if isinstance(self.source, str) else self.source

    @property
    def parts(self) -> "dict[str, CorpusRecipe]":
        """The text of each part by its name, in order; a text without parts is one, named ""."""
        if not isinstance(self.source, dict):
            return {"": self}
        return {
            name: self.model_copy(update={"source": own, "mixture": None})
            for name, own in self.source.items()
        }

    @model_validator(mode="after")
    def _names_a_source(self) -> Any:
        empty = [name for name, part in self.parts.items() if not all(part.sources or [""])]
        if not self.sources or empty:
            of_part = f" for the part {empty[0]}" if empty and empty[0] else ""
            raise ValueError(
                f"source names no text{of_part}; give a path, a glob, hf://NAME, or sample"
            )
        return self

    @model_validator(mode="after")
    def _mixes_parts_that_exist(self) -> Any:
        if self.mixture is None:
            return self
        if not isinstance(self.source, dict):
            raise ValueError(
                "mixture draws from the parts of the text, and source names none; give the "
                "sources of each part by name, such as {en: en.jsonl, de: de.jsonl}"
            )
        weights, parts = self.mixture.weights, ", ".join(self.source)
        if weights is not None and weights.keys() != self.source.keys():
            raise ValueError(
                f"mixture.weights names {', '.join(weights)}, and source the parts {parts}; give "
                "each part one weight"
            )
        return self
