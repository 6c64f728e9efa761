"""The errors of a transport on what a training gives it."""

from __future__ import annotations


class NotFiniteError(ValueError):
    """Log-probabilities or features that are not finite, as those of a network whose training diverged."""

    exit_status = 4
    """The exit status of a command that ends with this error."""


class KnownLabelsError(ValueError):
    """Known labels that the sizes of the clusters have no room for, or that leave nothing to be labelled."""

    exit_status = 3
    """The exit status of a command that ends with this error."""
