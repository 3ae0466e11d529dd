"""What goes wrong, as the status and the words that a client reads."""

import re
from collections.abc import Sequence
from typing import Any

from stillhouse.errors import ResourceError, StillhouseError
from stillhouse.inference.engine.batcher import NotFiniteError
from stillhouse.wording import counted

FIELD = re.compile(r"[a-z_]+|\d+")


class Problem(Exception):  # noqa: N818 (a problem of a request, told to its client)
    """A request that is not answered, and why."""

    def __init__(self, status: int, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param

    @property
    def kind(self) -> str:
        """The kind of problem, in OpenAI's words."""
        return {
            401: "authentication_error",
            404: "not_found_error",
            429: "rate_limit_error",
        }.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")

    @property
    def headers(self) -> dict[str, str]:
        if self.status == 401:
            return {"WWW-Authenticate": "Bearer"}
        return {"Retry-After": "1"} if self.status in (429, 503) else {}


def from_validation(errors: Sequence[Any], root: str = "") -> Problem:
    """What is wrong with a body, where, and why: of the forms that it could have, the one that it
    comes nearest to."""
    nearest = max(errors, key=_nearness)
    # Between the names of fields stand those of the forms, such as `list[constrained-str]`.
    parts = [str(part) for part in nearest["loc"] if FIELD.fullmatch(str(part))]
    if nearest["type"] == "unsupported":  # found before the body was taken apart
        parts.append(nearest["ctx"]["name"])
    where = ".".join(part for part in [root, *parts] if part not in ("", "body", "str"))
    match nearest["type"]:
        case "extra_forbidden":
            message = f"The parameter {where} is not known here."
        case "unsupported":
            message = f"{where} {nearest['msg']}."
        case "json_invalid":
            message, where = f"The body is not JSON: {nearest['ctx']['error']}.", ""
        case _:
            message = f"{where or 'The body'}: {nearest['msg']}."
    return Problem(400, message, param=where or None)


def _nearness(error: Any) -> tuple[bool, int]:
    """A value that is out of bounds is of the form that was meant; of those of another type, the
    one that was taken apart the furthest is."""
    depth = len(error["loc"]) + (error["type"] == "unsupported")
    return not error["type"].endswith("_type"), depth


def overloaded(queue: int) -> Problem:
    """More requests wait than may."""
    return Problem(
        429,
        f"{counted(queue, 'request is', 'requests are')} waiting already; try again in a moment.",
    )


def from_error(error: StillhouseError) -> Problem:
    """An error of ours: the request's fault, unless the model gave numbers that are not finite."""
    is_ours = isinstance(error, NotFiniteError | ResourceError)
    return Problem(500 if is_ours else 400, str(error))


def as_openai(problem: Problem) -> dict[str, object]:
    """The body that OpenAI's clients expect."""
    return {
        "error": {
            "message": problem.message,
            "type": problem.kind,
            "param": problem.param,
            "code": problem.status,
        }
    }


def as_hub(problem: Problem) -> dict[str, object]:
    """The body that Hugging Face's clients expect."""
    kinds = {400: "validation", 401: "authentication", 404: "not_found", 429: "overloaded"}
    return {
        "error": problem.message,
        "error_type": kinds.get(problem.status, "generation"),
    }
