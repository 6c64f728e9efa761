"""The error that says what is wrong with data, also when it was raised inside a TensorFlow graph."""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Iterator

NAMES_SHOWN = 5
"""The number of names, of files or classes, that a message lists at most."""


class SourceError(ValueError):
    """A data set that cannot be used as it is; the message names it and the way out."""

    exit_status = 3
    """The exit status of a command that ends with this error."""


# TensorFlow makes an error of its own of what a Python function raises in a graph, with the traceback in its text.
_raised_in_graphs: collections.deque[SourceError] = collections.deque(maxlen=8)


@contextlib.contextmanager
def raised_in_graph() -> Iterator[None]:
    """Keeps a SourceError that is raised inside, for `source_error_behind`; it goes on to TensorFlow, which calls this from a graph."""
    try:
        yield
    except SourceError as error:
        _raised_in_graphs.append(error)
        raise


def source_error_behind(error: Exception) -> SourceError | None:
    """Returns the SourceError that TensorFlow made `error` of; None where it was made of another."""
    message = str(getattr(error, "message", error))
    return next((kept for kept in reversed(_raised_in_graphs) if str(kept) in message), None)
