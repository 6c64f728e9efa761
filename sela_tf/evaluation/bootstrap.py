"""Intervals of figures over the held-out images, and paired comparisons on the same images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy import stats

NUM_RESAMPLES = 200
"""The number of resamples; the interval's width is then known to within 10 %."""
CONFIDENCE = 0.95
_DEVIATIONS = float(stats.norm.ppf(0.5 + CONFIDENCE / 2))
_KEY = 11

BETTER, WORSE, NO_DIFFERENCE = "better", "worse", "no difference seen"


def resamples(num_images: int, *, seed: int) -> Iterator[np.ndarray]:
    """Yields NUM_RESAMPLES times how often each of N images was drawn, int64 [N], when N images are drawn with replacement.

    The same number and seed give the same draws, so that two figures of the same images are compared in pairs.
    """
    for number in range(NUM_RESAMPLES):
        drawn = np.random.default_rng([seed, _KEY, number]).integers(0, num_images, num_images)
        yield np.bincount(drawn, minlength=num_images)


def resampled_means(values: np.ndarray, *, seed: int) -> np.ndarray:
    """Returns the means of `values` [S, N] over the images of each resample, float64 [NUM_RESAMPLES, S]."""
    return np.stack([values @ times / values.shape[1] for times in resamples(values.shape[1], seed=seed)])


def bootstrap_interval(value: float, resampled: np.ndarray, *, low: float = -np.inf, high: float = np.inf) -> list[float]:
    """Returns the 95 % interval [from, to] of a figure: 1.96 standard deviations of its resamples on both sides.

    Percentiles are not used, because a resample holds images twice, which raises measures of information between clusters above the figure.

    Args:
        value: the figure.
        resampled: its values [R] on resamples.
        low: the least possible value.
        high: the largest possible value.
    """
    half = _DEVIATIONS * float(np.std(resampled, ddof=1))
    return [max(low, value - half), min(high, value + half)]


def wilson_interval(correct: int, total: int) -> list[float]:
    """Returns Wilson's 95 % interval [from, to] of a share (E. B. Wilson, JASA 1927)."""
    share, spread = correct / total, _DEVIATIONS**2 / total
    centre = share + spread / 2
    half = (spread * (share * (1 - share) + spread / 4)) ** 0.5
    return [(centre - half) / (1 + spread), (centre + half) / (1 + spread)]


def compare_accuracies(correct: np.ndarray, others: np.ndarray) -> dict[str, Any]:
    """Compares two classifiers on the same images by McNemar's exact test.

    Args:
        correct: the images that the first one classifies correctly, bool [N].
        others: the same of the second one.

    Returns:
        "difference" of the accuracies, its 95 % "interval", "p" and "outcome": "better", "worse" or "no difference seen" of the first one.
    """
    won, lost = int((correct & ~others).sum()), int((~correct & others).sum())
    p = float(stats.binomtest(won, won + lost).pvalue) if won + lost else 1.0
    difference = (won - lost) / len(correct)
    half = _DEVIATIONS * ((won + lost) / len(correct) - difference**2) ** 0.5 / len(correct) ** 0.5
    outcome = NO_DIFFERENCE if p >= 1 - CONFIDENCE else BETTER if won > lost else WORSE
    return {"difference": difference, "interval": [difference - half, difference + half], "p": p, "outcome": outcome}


def compare_resampled(difference: float, resampled: np.ndarray, others: np.ndarray) -> dict[str, Any]:
    """Compares two figures of the same images, higher ones being better, by the resamples of both.

    Args:
        difference: the first figure less the second.
        resampled: values [R] of the first on resamples.
        others: values [R] of the second on the same resamples.

    Returns:
        "difference", its 95 % "interval", and "outcome": "better", "worse" or "no difference seen" of the first one.
    """
    interval = bootstrap_interval(difference, resampled - others)
    outcome = BETTER if interval[0] > 0 else WORSE if interval[1] < 0 else NO_DIFFERENCE
    return {"difference": difference, "interval": interval, "outcome": outcome}
