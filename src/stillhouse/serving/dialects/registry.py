"""The dialects that a server speaks."""

from typing import Any

from stillhouse.serving.dialects import base, classic, editor, hub, ollama, openai, system
from stillhouse.serving.dialects.base import Dialect
from stillhouse.serving.schemas import APIError

DIALECTS: tuple[Dialect, ...] = (
    openai.DIALECT,
    ollama.DIALECT,
    hub.DIALECT,
    classic.DIALECT,
    system.DIALECT,
)
EDITOR: Dialect = editor.DIALECT  # before the others: its page is at /, where else `system` answers


def error_body(error: APIError, path: str) -> dict[str, Any]:
    """An error in the form of the dialect that a path belongs to."""
    for each in (EDITOR, *DIALECTS):
        if each.path_part is not None and each.path_part in path:
            return each.error_body(error)
    return base.error_body(error)
