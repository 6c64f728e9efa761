"""Arrays as text, for the rows of the results."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np


def pack(values: np.ndarray) -> list[Any]:
    """Returns shape, dtype and base64 of an array of truth values or of integers below 32,768."""
    small = np.packbits(values) if values.dtype == bool else values.astype(np.int16)
    return [list(values.shape), "bool" if values.dtype == bool else "int16", base64.b64encode(small.tobytes()).decode()]


def unpack(packed: list[Any]) -> np.ndarray:
    """Returns the array that `pack` was given."""
    shape, dtype, text = packed
    data = base64.b64decode(text)
    if dtype == "bool":
        return np.unpackbits(np.frombuffer(data, np.uint8), count=int(np.prod(shape))).astype(bool).reshape(shape)
    return np.frombuffer(data, np.int16).astype(np.int64).reshape(shape)
