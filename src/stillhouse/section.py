"""What every part of a recipe is: immutable, and strict about names."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of a recipe: unknown keys are refused, and nothing changes once it is checked."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
