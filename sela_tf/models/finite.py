"""Numbers that must be finite, and the error of a training that diverged."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


class DivergedError(ValueError):
    """A training whose numbers are not finite any more, or that did not learn; the message names a way out."""

    exit_status = 4
    """The exit status of a command that ends with this error."""


def not_finite(arrays: Mapping[str, np.ndarray]) -> list[str]:
    """Returns the names of the arrays that hold a number that is not finite; arrays of integers, booleans and text hold none."""
    # bfloat16 is of NumPy's kind "V".
    return [name for name, values in arrays.items() if values.dtype.kind in "fV" and not _is_finite(values)]


def _is_finite(values: np.ndarray) -> bool:
    if values.dtype.kind == "V":
        values = values.astype(np.float32)
    return bool(np.isfinite(values).all())
