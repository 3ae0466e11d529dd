"""What the bodies of all dialects have in common.

Clients send many parameters that they were not asked for, at values that change nothing. `null` is
as good as absent, for every parameter that is known. A parameter that is known but not supported
stands in its body's `neutral`, with the values that would change nothing; they are dropped, and
others are refused by name. What is not known at all is refused too: nothing that would change the
result is silently ignored.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from stillhouse.serving.limits import STOP_CHARACTERS, STOPS

Seed = Annotated[int, Field(ge=-(2**63), lt=2**63), AfterValidator(lambda seed: seed % 2**64)]
Stop = Annotated[str, Field(min_length=1, max_length=STOP_CHARACTERS)]
Stops = Annotated[list[Stop], Field(max_length=STOPS)]

Neutral = Callable[[Any], bool]
"""Whether a value changes nothing."""


def only(*values: Any) -> Neutral:
    """These values change nothing; without any, only null does not."""

    def is_neutral(value: Any) -> bool:
        booleans = [each for each in values if isinstance(each, bool) == isinstance(value, bool)]
        return value in booleans  # to Python, 0 is False

    return is_neutral


def anything(value: Any) -> bool:
    """No value changes the result."""
    del value
    return True


class Strict(BaseModel):
    """A body whose every field is known and of its type."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    neutral: ClassVar[Mapping[str, Neutral]] = {}

    @model_validator(mode="before")
    @classmethod
    def _without_neutral(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        kept = {}
        for name, value in given.items():
            if name in cls.neutral:
                if value is not None and not cls.neutral[name](value):
                    raise unsupported(name, value)
            elif value is not None or name not in cls.model_fields:
                kept[name] = _number(value)
        return kept

    @field_validator("*", mode="after")
    @classmethod
    def _is_text(cls, value: Any) -> Any:
        """JSON can escape half a character, which no text has."""
        texts = value if isinstance(value, list) else [value]
        try:
            "".join(text for text in texts if isinstance(text, str)).encode()
        except UnicodeEncodeError as error:
            raise ValueError("it has half of a surrogate pair, which is no character") from error
        return value


def _number(value: Any) -> Any:
    """2 where it came as 2.0: JSON has one kind of number, and so have some clients."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def unsupported(name: str, value: Any, *, advice: str = "leave it out") -> PydanticCustomError:
    """What is known, and means something that this server does not do."""
    shown = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:60]}..."
    return PydanticCustomError(
        "unsupported",
        "is not supported here, got {value}; {advice}",
        {"name": name, "value": shown, "advice": advice},
    )
