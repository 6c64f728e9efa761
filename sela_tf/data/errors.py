"""The error that says what is wrong with data."""

from __future__ import annotations


class SourceError(ValueError):
    """A data set that cannot be used as it is; the message names it and the way out."""
