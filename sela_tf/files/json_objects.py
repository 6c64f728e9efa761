"""JSON that another process, or a person, may have changed."""

from __future__ import annotations

import json
from typing import Any


def json_object(text: str | bytes) -> dict[str, Any]:
    """Returns the object that a JSON text holds.

    Raises:
        ValueError: The text is no JSON, is nested too deeply, or holds something else than an object.
    """
    try:
        found = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError(f"a JSON {type(found).__name__}, no object")
    return found
