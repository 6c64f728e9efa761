"""The choice of the clusters and images that a run's galleries show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import entr

NUM_CLUSTERS_SHOWN, NUM_MEMBERS_SHOWN = 8, 12


class GallerySource(NamedTuple):
    """The labels and predictions of one head that the images of galleries are chosen from."""

    labels: np.ndarray
    """Labels of all training images, integers [N]."""
    num_clusters: int
    classes: np.ndarray | None
    """Classes of all training images, integers [N]; None where there are none."""
    class_names: Sequence[str] | None
    confidence: np.ndarray
    """Probability of the network's plain cluster, float [n], for each training image of the sample."""
    held_out_clusters: np.ndarray
    """Predicted clusters, integers [m], of each held-out image of the sample."""
    held_out_confidence: np.ndarray
    """Probability of the network's plain cluster, float [m], for each held-out image of the sample."""
    training_sample: np.ndarray | None = None
    """Increasing indices [n] of the training images that the network was run on; None for all."""
    held_out_sample: np.ndarray | None = None
    """Increasing indices [m] of the held-out images that the network was run on; None for all."""


def choose_gallery(source: GallerySource, *, seed: int) -> dict[str, list[dict[str, Any]]]:
    """Chooses clusters to show, and members of each at random among the images that the network was run on.

    Args:
        source: labels, classes and predictions of one head.
        seed: seed of the choice.

    Returns:
        "best": the clusters of lowest class entropy or, without classes, of highest mean confidence on held-out images, the best first: on
        training images a network is sure of nearly all of its labels. "random": others. A cluster is a dictionary of "cluster", "size",
        "confidence", the indices "members" and "held_out_members", "held_out_size" and "held_out_confidence" (0 without members); with
        classes also "entropy" in nats, and "class" and "share" of its most frequent class. Size, entropy and share are taken over all
        training images. A cluster without a training image that the network was run on is left out.
    """
    random = np.random.default_rng([seed, 7])
    shown = np.arange(len(source.labels)) if source.training_sample is None else source.training_sample
    members = _by_cluster(source.labels, source.num_clusters)
    members_shown = _by_cluster(source.labels[shown], source.num_clusters)
    held_out = _by_cluster(source.held_out_clusters, source.num_clusters)
    described = []
    for cluster in range(source.num_clusters):
        if not len(members_shown[cluster]):
            continue
        held_out_members = held_out[cluster]
        held_out_confidence = source.held_out_confidence[held_out_members]
        if source.held_out_sample is not None:
            held_out_members = source.held_out_sample[held_out_members]
        found: dict[str, Any] = {
            "cluster": cluster,
            "size": len(members[cluster]),
            "confidence": float(source.confidence[members_shown[cluster]].mean()),
            "members": _some(shown[members_shown[cluster]], random),
            "held_out_members": _some(held_out_members, random),
            "held_out_size": len(held_out_members),
            "held_out_confidence": float(held_out_confidence.mean()) if len(held_out_members) else 0.0,
        }
        if source.classes is not None:
            found |= _classes_of(source.classes[members[cluster]], source.class_names)
        described.append(found)
    best = sorted(described, key=lambda one: -one["held_out_confidence"] if source.classes is None else one["entropy"])
    best = best[:NUM_CLUSTERS_SHOWN]
    others = [one for one in described if one not in best]
    chosen = random.permutation(len(others))[:NUM_CLUSTERS_SHOWN]
    return {"best": best, "random": [others[i] for i in sorted(chosen)]}


def _by_cluster(clusters: np.ndarray, num_clusters: int) -> list[np.ndarray]:
    """Returns the increasing indices of the members of each of K clusters, from clusters [N]."""
    # One sort is faster than a search for each cluster.
    order = np.argsort(clusters, kind="stable")
    return np.split(order, np.searchsorted(clusters[order], np.arange(1, num_clusters)))


def _some(indices: np.ndarray, random: np.random.Generator) -> list[int]:
    """Returns at most NUM_MEMBERS_SHOWN of the indices, drawn at random."""
    return random.permutation(indices)[:NUM_MEMBERS_SHOWN].tolist()


def _classes_of(classes: np.ndarray, names: Sequence[str] | None) -> dict[str, Any]:
    """Returns the entropy, in nats, of the classes of a cluster's members, and the most frequent class with its share."""
    counts = np.bincount(classes)
    shares = counts[counts > 0] / len(classes)
    most = int(counts.argmax())
    return {
        "entropy": float(entr(shares).sum()),
        "class": str(names[most] if names else most),
        "share": float(counts[most] / len(classes)),
    }
