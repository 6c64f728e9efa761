"""The error of a backbone that cannot be built as it is asked for."""

from __future__ import annotations


class BackboneError(ValueError):
    """A backbone that is unknown, does not suit the images, or cannot have the weights or the width that it is given."""

    exit_status = 2
    """The exit status of a command that ends with this error."""
