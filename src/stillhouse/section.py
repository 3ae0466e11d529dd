"""What every part of a recipe is: immutable, and strict about names and numbers."""

from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, model_validator


class Section(BaseModel):
    """A part of a recipe: unknown keys are refused, and nothing changes once it is checked."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _booleans_are_no_numbers(cls, data: Any) -> Any:
        """Refuse true and false where pydantic would read them as 1 and 0."""
        if not isinstance(data, Mapping):
            return data
        for name, field in cls.model_fields.items():
            value = data.get(name)
            found = [each for each in _each(value) if isinstance(each, bool)]
            if found and bool not in (kinds := _kinds(field.annotation)) and kinds & {int, float}:
                raise ValueError(f"{name} is {str(found[0]).lower()}, which is not a number")
        return data


def _each(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _kinds(annotation: Any) -> set[Any]:
    """The types that an annotation names."""
    inner = get_args(annotation)
    if not inner:
        return {annotation} if isinstance(annotation, type) else set()
    return set().union(*map(_kinds, inner))
