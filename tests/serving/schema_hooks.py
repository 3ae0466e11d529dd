"""What schemathesis sends, made to reach a model: a random name would end at 404."""

import zlib
from typing import Any

import schemathesis

NAMES = ("sample", "sample", "minilm")
FIELDS = ("model", "teacher", "student")


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    """Three names of four are those of models that are there."""
    del context
    if isinstance(body, dict):
        for field in FIELDS:
            name = body.get(field)
            if isinstance(name, str) and (drawn := zlib.crc32(name.encode("utf-8", "replace")) % 4):
                body[field] = NAMES[drawn - 1]
    return body
