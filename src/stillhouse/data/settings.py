"""Corpus settings of a recipe."""

from typing import Any, Literal

from pydantic import (
    model_validator,
)

from stillhouse.section import Fraction, Section


class CorpusRecipe(Section):
    """Text sources, and what one document is."""

    source: str | list[str]
    """Files, globs, `hf://` datasets or `sample`; one or a list."""
    documents: Literal["per_file", "per_line", "per_block"] = "per_file"
    """What one document of a text file is: the file, a line, or a block between blank lines. In
    other formats each record is a document."""
    text_field: str = "text"
    """Field or column that holds the text."""
    validation_fraction: Fraction = 0.005
    """Fraction of the documents held out for validation."""

    @property
    def sources(self) -> list[str]:
        """The sources as a list."""
        return [self.source] if isinstance(self.source, str) else self.source

    @model_validator(mode="after")
    def _names_a_source(self) -> Any:
        if not self.sources or not all(self.sources):
            raise ValueError("source names no text; give a path, a glob, hf://NAME, or sample")
        return self
