"""A linear classifier on the outputs of a frozen network."""

from __future__ import annotations

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

_VALUES_AT_ONCE = 2**23


def linear_probe_accuracy(
    train_inputs: np.ndarray, train_classes: np.ndarray, inputs: np.ndarray, classes: np.ndarray, *, max_iterations: int = 500
) -> float:
    """Accuracy on `inputs` [M, D] of scikit-learn's logistic regression, fitted to `train_inputs` [N, D] standardised.

    Of float32 inputs it makes one copy, float32 too, and a few matrices [N, C] for the C classes.
    """
    scaler = StandardScaler()
    # the scaler takes mean and variance in float64, and copies a block for that
    rows = max(1, _VALUES_AT_ONCE // train_inputs.shape[1])
    for start in range(0, len(train_inputs), rows):
        scaler.partial_fit(train_inputs[start : start + rows])
    probe = LogisticRegression(max_iter=max_iterations)
    with warnings.catch_warnings():
        # the protocol is this many iterations, converged or not
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe.fit(scaler.transform(train_inputs), train_classes)
    return float(probe.score(scaler.transform(inputs), classes))
