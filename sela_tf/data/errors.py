"""The error about a data set."""

from __future__ import annotations


class SourceError(ValueError):
    """A data set that cannot be used as it is. The message names the data set and says what to do."""
