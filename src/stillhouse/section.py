"""Base class and shared types of a recipe's sections."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    """A section of a recipe: immutable, and unknown keys are rejected."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @model_validator(mode="before")
    @classmethod
    def _reject_booleans_as_numbers(cls, data: Any) -> Any:
        """Reject true and false where pydantic would convert them to 1 and 0."""
        if not isinstance(data, Mapping):
            return data
        for name, field in cls.model_fields.items():
            value = data.get(name)
            values = value.values() if isinstance(value, Mapping) else value
            values = values if isinstance(value, (list, Mapping)) else [value]
            found = [each for each in values if isinstance(each, bool)]
            if found and bool not in (kinds := _kinds(field.annotation)) and kinds & {int, float}:
                raise ValueError(f"{name} is {str(found[0]).lower()}, which is not a number")
        return data


def _kinds(annotation: Any) -> set[Any]:
    """The types in an annotation."""
    inner = get_args(annotation)
    if not inner:
        return {annotation} if isinstance(annotation, type) else set()
    return set().union(*map(_kinds, inner))


Fraction = Annotated[float, Field(gt=0, lt=1)]

UnitInterval = Annotated[float, Field(ge=0, le=1)]

Rows = Literal["all", "predicted"]

LanguageModeling = Literal["causal", "masked"]

# Of a task or one of its models; also the name of a folder in the run.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]


def recipe_part(section: BaseModel | str) -> Any:
    """A section as plain JSON values, for manifests and fingerprints."""
    return section if isinstance(section, str) else json.loads(section.model_dump_json())
