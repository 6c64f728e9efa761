"""The verdict on a network without any class labels: did it learn what the images show?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy.special import entr

from sela_tf.evaluation.arrangement import Arrangement
from sela_tf.evaluation.bootstrap import BETTER, bootstrap_interval, compare_resampled
from sela_tf.evaluation.stability import Agreement, Stability, heads_agreement

WORKED, NOT_CLEAR, DID_NOT_WORK = "worked", "not clear", "did not work"
"""The outcomes of a verdict."""
_MEASURES = {"view_agreement": "clusters", "neighbour_stability": "neighbours"}
JUDGED_BY = tuple(_MEASURES)
"""The measures that the verdict rests on. The agreement of heads does not count: they share their embedding."""
_REFERENCES = {"untrained": "the untrained network", "raw_pixels": "raw pixels"}
LEAST_CORRELATION = 0.1
"""Correlation of neighbouring pixels below which images are taken for noise. Noise and shuffled pixels have 0 ± .02, handwritten digits of
8 x 8 pixels .39, photographs of clothes .81: docs/results.md."""
LEAST_SHARE_OF_CLUSTERS = 0.1
"""Share of the clusters, by their effective number, below which a clustering counts as collapsed."""


class StabilityFigures(NamedTuple):
    """The measures of one network that need no classes."""

    measured: dict[str, Agreement | None]
    """The measures by name, with their resamples; None for the agreement of heads where there is one head."""
    figures: dict[str, Any]
    """The figures of results.json."""

    @property
    def intervals(self) -> dict[str, list[float] | None]:
        """The 95 % intervals of the measures."""
        return {
            name: None if found is None else bootstrap_interval(found.value, found.resampled, low=-1.0, high=1.0)
            for name, found in self.measured.items()
        }


def stability_figures(stability: Stability, clusters: np.ndarray, *, seed: int) -> StabilityFigures:
    """Returns the figures of a network.

    Args:
        stability: the stability of the network.
        clusters: its clusters of the held-out images' clean views, integers [T, M].
        seed: seed of the resamples.
    """
    measured = {
        "view_agreement": stability.view_agreement,
        "neighbour_stability": stability.neighbour_stability,
        "head_agreement": heads_agreement(clusters, seed=seed),
    }
    figures = {
        **{name: None if found is None else found.value for name, found in measured.items()},
        "neighbours_shared": stability.neighbours_shared,
        "neighbours_by_chance": stability.neighbours_by_chance,
        "effective_clusters": [effective_clusters(head) for head in clusters],
    }
    return StabilityFigures(measured, figures)


def effective_clusters(clusters: np.ndarray) -> float:
    """Returns the exponential of the entropy of the clusters' sizes: K for K equal clusters, 1 for a collapse."""
    sizes = np.unique(clusters, return_counts=True)[1]
    return float(np.exp(entr(sizes / sizes.sum()).sum()))


def compare_stability(one: StabilityFigures, other: StabilityFigures) -> dict[str, Any]:
    """Compares the measures of JUDGED_BY of two networks on the same images (`compare_resampled`)."""
    found = {}
    for name in JUDGED_BY:
        mine, theirs = one.measured[name], other.measured[name]
        if mine is not None and theirs is not None:
            found[name] = compare_resampled(mine.value - theirs.value, mine.resampled, theirs.resampled)
    return found


def verdict(
    trained: Mapping[str, Any],
    compared: Mapping[str, Mapping[str, Mapping[str, Any]]],
    arrangement: Arrangement | None,
    *,
    num_clusters: int,
    num_images: int,
) -> tuple[str, str]:
    """Returns the outcome for a trained network, and the reason against "worked" or "".

    A network worked if it beats both the untrained network and raw pixels in both measures of JUDGED_BY, beyond the intervals of the
    paired differences, its clusters did not collapse, and the images are no noise. The last cannot be left to the measures: networks
    learn to recognise a random pattern in two views as well.

    Args:
        trained: the figures of the trained network, see `stability_figures`.
        compared: the comparisons with "untrained" and "raw_pixels", see `compare_stability`.
        arrangement: the arrangement of the images' pixels; None for vectors.
        num_clusters: number of clusters K.
        num_images: number of held-out images M.
    """
    if arrangement is not None and not arrangement.images_differ:
        return DID_NOT_WORK, (
            "the images are all the same, but for their brightness (the pixels' standard deviation is "
            f"{arrangement.deviation:.1f} gray levels without it)"
        )
    effective = min(trained["effective_clusters"])
    possible = min(num_clusters, num_images)
    # One cluster is none, and `possible` are all.
    if possible < 2 or (effective - 1) / (possible - 1) < LEAST_SHARE_OF_CLUSTERS:
        return DID_NOT_WORK, f"the clusters collapsed: {num_clusters} are as good as {effective:.1f} equal ones"
    found = {name: {each[measure]["outcome"] for measure in JUDGED_BY} for name, each in compared.items()}
    if BETTER not in found["untrained"]:
        return DID_NOT_WORK, "the network is no better than before its first step"
    if any(each != {BETTER} for each in found.values()):
        lacking = [
            f"than {reference} at {words} of two views"
            for name, reference in _REFERENCES.items()
            for measure, words in _MEASURES.items()
            if compared[name][measure]["outcome"] != BETTER
        ]
        return NOT_CLEAR, f"the network is not better {', nor '.join(lacking)}; longer training may help"
    if arrangement is not None and arrangement.neighbour_correlation < LEAST_CORRELATION:
        return NOT_CLEAR, (
            "the images look like noise or shuffled pixels, in which a network finds patterns, too: neighbouring pixels correlate by "
            f"{arrangement.neighbour_correlation:.2f} only"
        )
    return WORKED, ""
