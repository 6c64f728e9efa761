"""The accuracy of a linear classifier on the outputs of a frozen network."""

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
    """Returns the accuracy, in [0, 1], of scikit-learn's logistic regression on held-out inputs (`linear_probe_correct`)."""
    correct = linear_probe_correct(train_inputs, train_classes, inputs, classes, max_iterations=max_iterations)
    return int(correct.sum()) / len(inputs)


def linear_probe_correct(
    train_inputs: np.ndarray, train_classes: np.ndarray, inputs: np.ndarray, classes: np.ndarray, *, max_iterations: int = 500
) -> np.ndarray:
    """Returns the held-out inputs that scikit-learn's logistic regression classifies correctly, bool [M].

    Inputs are standardised by the mean and variance of `train_inputs`. Memory: one copy of the training inputs, float32 if they are
    float32, and a few matrices [N, C] for the C classes.

    Args:
        train_inputs: inputs [N, D] that the classifier is fitted to.
        train_classes: integers [N].
        inputs: held-out inputs [M, D].
        classes: integers [M].
        max_iterations: limit of the solver, which stops there whether it converged or not.
    """
    scaler = StandardScaler()
    # The scaler computes in float64, and so copies what it is given: blocks keep that copy small.
    rows = max(1, _VALUES_AT_ONCE // train_inputs.shape[1])
    for start in range(0, len(train_inputs), rows):
        scaler.partial_fit(train_inputs[start : start + rows])
    probe = LogisticRegression(max_iter=max_iterations)
    with warnings.catch_warnings():
        # The protocol is this number of iterations, converged or not.
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe.fit(scaler.transform(train_inputs), train_classes)
    return probe.predict(scaler.transform(inputs)) == classes
