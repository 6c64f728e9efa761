"""A linear classifier on frozen features."""

from __future__ import annotations

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def linear_probe_accuracy(
    train_features: np.ndarray, train_classes: np.ndarray, features: np.ndarray, classes: np.ndarray, *, max_iterations: int = 500
) -> float:
    """Accuracy on `features` [M, D] of scikit-learn's logistic regression, fitted to `train_features` [N, D] standardised."""
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=max_iterations))
    with warnings.catch_warnings():
        # the protocol is this many iterations, converged or not
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe.fit(train_features, train_classes)
    return float(probe.score(features, classes))
