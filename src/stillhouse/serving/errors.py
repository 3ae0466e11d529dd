"""Errors of the HTTP API, and every exception as one of them."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from stillhouse.errors import ResourceError, StillhouseError
from stillhouse.inference.engine.batcher import NotFiniteError

FIELD = re.compile(r"[a-z_]+|\d+")
UNREADABLE = "There was an error parsing the body"  # FastAPI's words
HEADERS = {
    401: {"WWW-Authenticate": "Bearer"},
    429: {"Retry-After": "1"},
    503: {"Retry-After": "1"},
}


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


def as_api_error(error: Exception, content_type: str = "none") -> APIError:
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
    # Between the names of fields stand those of union members, such as `list[constrained-str]`.
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
