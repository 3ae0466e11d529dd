"""What the bodies of all dialects have in common."""

import re
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from stillhouse.serving.limits import STOP_CHARACTERS, STOPS

Seed = Annotated[int, Field(ge=0, lt=2**63)]
Stop = Annotated[str, Field(min_length=1, max_length=STOP_CHARACTERS)]
Stops = Annotated[list[Stop], Field(max_length=STOPS)]
SURROGATE = re.compile("[\ud800-\udfff]")


class Strict(BaseModel):
    """A body whose every field is known and of its type."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @field_validator("*", mode="after")
    @classmethod
    def _is_text(cls, value: Any) -> Any:
        """JSON can escape half a character, which no text has."""
        texts = value if isinstance(value, list) else [value]
        if any(isinstance(text, str) and SURROGATE.search(text) for text in texts):
            raise ValueError("it has half of a surrogate pair, which is no character")
        return value
