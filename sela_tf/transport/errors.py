"""The errors of a transport on what a training gives it."""

from __future__ import annotations

import numpy as np


class NotFiniteError(ValueError):
    """Log-probabilities or features that are not finite, as those of a network whose training diverged."""

    exit_status = 4
    """The exit status of a command that ends with this error."""


class KnownLabelsError(ValueError):
    """Known labels that the sizes of the clusters have no room for, or that leave nothing to be labelled."""

    exit_status = 3
    """The exit status of a command that ends with this error."""


def describe_bad_row(values: np.ndarray, wrong_rows: np.ndarray, num_rows: int, name: str) -> str:
    """Returns a message that says what is wrong with the first of some rows, and how many there are.

    Args:
        values: the first row, float64 [K] or [D].
        wrong_rows: int64 [W], the rows whose log-sum-exp is not finite.
        num_rows: the number of all rows.
        name: the argument that they are of, log_probs or features.
    """
    row, bad = int(wrong_rows[0]), np.flatnonzero(np.isnan(values) | (values == np.inf))
    if len(bad):
        return (
            f"`{name}` must hold neither NaN nor +inf. Received: {values[bad[0]]} at row {row}, column {bad[0]} "
            f"({len(wrong_rows)} of {num_rows} rows have one). Has training diverged? Lower the learning rate"
        )
    if (values == -np.inf).all():
        return (
            f"`{name}` must have a finite value in every row. Received: row {row} is all -inf ({len(wrong_rows)} such rows: "
            f"{', '.join(map(str, wrong_rows[:5]))}{'…' if len(wrong_rows) > 5 else ''})"
        )
    return (
        f"`{name}` times `lam` overflows float32: scale the logits down, or choose a smaller `lam`. Received: largest magnitude "
        f"{np.abs(values).max():g} in row {row}"
    )
