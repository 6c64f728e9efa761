"""Figures of a component, as a pipeline shows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def mean_figures(found: Mapping[str, Any]) -> dict[str, float]:
    """Returns the numbers among some figures, and the means of lists of numbers; other values are left out."""
    listed = {name: value if isinstance(value, list) else [value] for name, value in found.items()}
    return {
        name: sum(values) / len(values)
        for name, values in listed.items()
        if values and all(isinstance(each, int | float) for each in values)
    }
