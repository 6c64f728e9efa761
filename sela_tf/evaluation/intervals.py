"""Intervals of a network's figures, and its paired comparison with another network on the same held-out images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sela_tf.evaluation.bootstrap import bootstrap_interval, compare_accuracies, compare_resampled, wilson_interval
from sela_tf.evaluation.clustering import cluster_metrics
from sela_tf.evaluation.contingency import MEASURES, ResampledTables

ACCURACIES = ("knn", "linear_probe")
"""Figures that are shares of the held-out images."""
CHANCE_CORRECTED = ("ami", "ari")
"""Figures of clusters that networks are compared by. The others depend on the sizes of the clusters: a network that uses more of them has
a higher NMI also by chance."""
_RANGES = {"ami": (-1.0, 1.0), "ari": (-1.0, 1.0), "entropy": (0.0, np.inf)}


class Answers(NamedTuple):
    """The answers of a network for each held-out image, from which its figures come."""

    correct: Mapping[str, np.ndarray]
    """Images that a classifier names correctly, bool [M], by the keys of ACCURACIES; only where there are classes."""
    clusters: np.ndarray
    """Clusters of the heads, integers [T, M]."""

    def take(self, rows: np.ndarray | None) -> Answers:
        """Returns the answers for the images at `rows`; None for all."""
        if rows is None:
            return self
        return Answers({name: correct[rows] for name, correct in self.correct.items()}, self.clusters[:, rows])


def label_intervals(labels: np.ndarray, classes: np.ndarray, figures: Mapping[str, Any], *, seed: int) -> dict[str, Any]:
    """Returns the 95 % intervals of the figures that compare labels with classes.

    Args:
        labels: labels of the heads, integers [T, N].
        classes: integers [N].
        figures: the figures of `evaluate_labels`.
        seed: seed of the resamples.

    Returns:
        A list [T] of [from, to] by the name of the figure.
    """
    resampled = _resampled(labels, classes, figures["ami"], *MEASURES, seed=seed)
    found = {}
    for name in resampled[0]:
        low, high = _RANGES.get(name, (0.0, 1.0))
        found[name] = [
            bootstrap_interval(value, head[name], low=low, high=high) for value, head in zip(figures[name], resampled, strict=True)
        ]
    return found


def network_intervals(answers: Answers, classes: np.ndarray, figures: Mapping[str, Any], *, seed: int) -> dict[str, Any]:
    """Returns the 95 % intervals of all figures of a network: [from, to], or a list of these, one a head."""
    shares = {name: wilson_interval(int(correct.sum()), len(correct)) for name, correct in answers.correct.items()}
    return {**shares, **label_intervals(answers.clusters, classes, figures, seed=seed)}


def compare_networks(one: Answers, other: Answers, classes: np.ndarray, *, seed: int) -> dict[str, Any]:
    """Compares two networks on the same held-out images: accuracies by McNemar's exact test, clusters by paired resamples of the images.

    Args:
        one: the answers of the network that is better or worse.
        other: the answers of the network that it is compared with.
        classes: integers [M].
        seed: seed of the resamples.

    Returns:
        A dict by the name of the figure, as `compare_accuracies` and `compare_resampled` return it; of clusters, the mean of the heads.
    """
    found = {
        name: compare_accuracies(one.correct[name], other.correct[name])
        for name in ACCURACIES
        if name in one.correct and name in other.correct
    }
    values, resampled = zip(*(_mean_of_heads(each.clusters, classes, seed=seed) for each in (one, other)), strict=True)
    for name in CHANCE_CORRECTED:
        found[name] = compare_resampled(values[0][name] - values[1][name], resampled[0][name], resampled[1][name])
    return found


def _mean_of_heads(clusters: np.ndarray, classes: np.ndarray, *, seed: int) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Returns the mean of the heads of each figure of CHANCE_CORRECTED, and its values [R] on resamples."""
    metrics = [cluster_metrics(classes, head) for head in clusters]
    resampled = _resampled(clusters, classes, [each.ami for each in metrics], *CHANCE_CORRECTED, seed=seed)
    values = {name: float(np.mean([getattr(each, name) for each in metrics])) for name in CHANCE_CORRECTED}
    return values, {name: np.mean([head[name] for head in resampled], axis=0) for name in CHANCE_CORRECTED}


def _resampled(
    labels: np.ndarray, classes: np.ndarray, amis: Sequence[float], *names: str, seed: int
) -> list[dict[str, np.ndarray]]:
    """Returns the figures [R] of each head on resamples of the images, by `names`."""
    return [ResampledTables(classes, head, seed=seed).agreement(*names, ami=ami) for head, ami in zip(labels, amis, strict=True)]
