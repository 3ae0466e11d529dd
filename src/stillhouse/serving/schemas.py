"""Request bodies and errors: what all dialects have in common.

Clients send many parameters that their user never set, at values without effect. `null` is as good
as absent for every known parameter. A parameter that is known but not supported is listed in
`neutral` with the values that have no effect; those are dropped, others are rejected by name.
Unknown parameters are rejected: nothing that would change the result is silently ignored.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar

from fastapi.exceptions import RequestValidationError
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError
from starlette.exceptions import HTTPException

from stillhouse.errors import ResourceError, StillhouseError
from stillhouse.inference.engine.batcher import NotFiniteError

MAX_SEQUENCES = 8
MAX_TOP_LOGPROBS = 20
MAX_PROMPTS = 64  # in one request; of texts to embed, in one batch
MAX_TEXTS = 2048  # to embed in one request, as OpenAI's clients send them

Seed = Annotated[int, Field(ge=-(2**63), lt=2**63), AfterValidator(lambda seed: seed % 2**64)]
Stop = Annotated[str, Field(min_length=1, max_length=64)]
Stops = Annotated[list[Stop], Field(max_length=8)]
MIN_TOP_P = 1e-9  # of requests in which 0 means greedy decoding

FIELD = re.compile(r"[a-z_]+|\d+")
UNREADABLE = "There was an error parsing the body"  # FastAPI's words
HEADERS = {
    401: {"WWW-Authenticate": "Bearer"},
    429: {"Retry-After": "1"},
    503: {"Retry-After": "1"},
}


Neutral = Callable[[Any], bool]
"""Whether a value has no effect."""


def only(*values: Any) -> Neutral:
    """These values have no effect; without any, only null has none."""
    return lambda value: any(
        value == each and isinstance(value, bool) == isinstance(each, bool)  # 0 is not False
        for each in values
    )


def anything(_: Any) -> bool:
    """No value has an effect."""
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


class APIError(Exception):
    """A request that is answered with an error.

    Attributes:
        status: The HTTP status code.
        message: What is wrong and what to do, for a person to read.
        param: The field of the body at fault, such as `messages.0.content`.
        headers: Headers of the response, beside those its status has.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param = status, message, param
        self.headers = {**HEADERS.get(status, {}), **(headers or {})}


def as_api_error(error: Exception, content_type: str = "missing") -> APIError:
    """The API's form of any exception. A StillhouseError is the client's mistake, unless the model
    or the machine failed.

    Args:
        content_type: The request's Content-Type, named where a body was not parsed because of it.
    """
    match error:
        case APIError():
            return error
        case StillhouseError():
            is_ours = isinstance(error, NotFiniteError | ResourceError)
            return APIError(500 if is_ours else 400, str(error))
        case RequestValidationError(body=bytes(body)) if body:
            return APIError(
                400, f"The Content-Type is {content_type}; send JSON as application/json."
            )
        case RequestValidationError():
            return from_validation(error.errors())
        case HTTPException(detail=detail) if detail == UNREADABLE:
            return APIError(400, "The body cannot be decoded; send JSON in UTF-8.")
        case HTTPException():  # an unknown path or method
            return APIError(error.status_code, str(error.detail), headers=error.headers)
        case _:
            return APIError(500, f"Internal server error: {type(error).__name__}.")


def from_validation(errors: Sequence[Any], root: str = "") -> APIError:
    """The error of a body that does not match its schema. Where a field may have several types,
    the one that the value comes closest to is described.

    Args:
        root: The field that was validated, where it is not the whole body.
    """
    nearest = max(errors, key=_nearness)
    # Between the names of fields are those of union members, such as `list[constrained-str]`.
    parts = [str(part) for part in nearest["loc"] if FIELD.fullmatch(str(part))]
    if nearest["type"] == "unsupported":  # raised before the fields were validated
        parts.append(nearest["ctx"]["name"])
    where = ".".join(part for part in [root, *parts] if part not in ("", "body", "str"))
    match nearest["type"]:
        case "extra_forbidden":
            message = f"Unknown parameter: {where}."
        case "unsupported":
            message = f"{where} {nearest['msg']}."
        case "json_invalid":
            message, where = f"The body is not valid JSON: {nearest['ctx']['error']}.", ""
        case _:
            message = f"{where or 'The body'}: {nearest['msg']}."
    return APIError(400, message, param=where or None)


def _nearness(error: Any) -> tuple[bool, int]:
    """A value out of bounds has the right type; among wrong types, the deepest mismatch is nearest
    to what was meant."""
    depth = len(error["loc"]) + (error["type"] == "unsupported")
    return not error["type"].endswith("_type"), depth
