"""Request schemas: what all dialects have in common.

Clients send many parameters that their user never set, at values without effect. `null` is as good
as absent for every known parameter. A parameter that is known but not supported is listed in
`neutral` with the values that have no effect; those are dropped, others are rejected by name.
Unknown parameters are rejected: nothing that would change the result is silently ignored.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

MAX_SEQUENCES = 8
MAX_TOP_LOGPROBS = 20
MAX_PROMPTS = 64  # in one request; of texts to embed, in one batch
MAX_TEXTS = 2048  # to embed in one request, as OpenAI's clients send them

Seed = Annotated[int, Field(ge=-(2**63), lt=2**63), AfterValidator(lambda seed: seed % 2**64)]
Stop = Annotated[str, Field(min_length=1, max_length=64)]
Stops = Annotated[list[Stop], Field(max_length=8)]

Neutral = Callable[[Any], bool]
"""Whether a value has no effect."""


def only(*values: Any) -> Neutral:
    """These values have no effect; without any, only null has none."""

    def is_neutral(value: Any) -> bool:
        same_kind = [each for each in values if isinstance(each, bool) == isinstance(value, bool)]
        return value in same_kind  # to Python, 0 is False

    return is_neutral


def anything(value: Any) -> bool:
    """No value has an effect."""
    del value
    return True


class RequestModel(BaseModel):
    """A request body, or a part of one: every field is known and has its type."""

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
                # JSON has one kind of number: some clients send 2 as 2.0.
                if isinstance(value, float) and value.is_integer():
                    value = int(value)
                kept[name] = value
        return kept

    @field_validator("*", mode="after")
    @classmethod
    def _has_whole_characters(cls, value: Any) -> Any:
        """JSON can escape half a surrogate pair, which is not valid text."""
        texts = value if isinstance(value, list) else [value]
        try:
            "".join(text for text in texts if isinstance(text, str)).encode()
        except UnicodeEncodeError as error:
            raise ValueError("Text must not contain a lone surrogate") from error
        return value


def unsupported(name: str, value: Any, *, advice: str = "omit it") -> PydanticCustomError:
    """The error of a known parameter at a value that this server does not support."""
    shown = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:60]}..."
    return PydanticCustomError(
        "unsupported",
        "is not supported, got {value}; {advice}",
        {"name": name, "value": shown, "advice": advice},
    )
