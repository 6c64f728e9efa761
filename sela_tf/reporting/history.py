"""The numbers behind the pictures of a run, from the rows of its metrics.jsonl; built once, for whoever draws them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import entr

NUM_CLUSTERS_SHOWN, NUM_MEMBERS_SHOWN = 8, 12


def course(rows: Iterable[Mapping[str, Any]], *, num_heads: int) -> dict[str, Any]:
    """The course of a training, all of it numbers and lists.

    Returns:
        "loss": [step, mean loss since the row before]; "knn": [step, accuracy]; "relabellings": for each head rows of "step" and of
        what `relabel` measured, the first of them of the labels at the start where there are classes.
    """
    rows = list(rows)
    relabellings: list[list[dict[str, Any]]] = [[] for _ in range(num_heads)]
    for row in rows:
        if row["kind"] in ("first_labels", "relabel"):
            relabellings[row["head"]].append({key: value for key, value in row.items() if key != "head"})
    return {
        "loss": [[row["step"], row["loss"]] for row in rows if row["kind"] == "train"],
        "knn": [[row["step"], row["knn"]] for row in rows if row["kind"] == "epoch" and "knn" in row],
        "relabellings": relabellings,
    }


def objective(relabellings: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
    """E(p, q) through both steps of one head: (steps, values), each relabelling before and after it."""
    points = [
        (row["step"], row[f"objective_{when}"]) for row in relabellings if row["kind"] == "relabel" for when in ("before", "after")
    ]
    return [step for step, _ in points], [value for _, value in points]


class Galleries(NamedTuple):
    """The labels and opinions that galleries are chosen from."""

    labels: np.ndarray
    """[N], of all training images."""
    num_clusters: int
    classes: np.ndarray | None
    """[N]; None where there are none."""
    class_names: Sequence[str] | None
    confidence: np.ndarray
    """[n], the network's probability of its own cluster of each training image that it was shown."""
    held_out_clusters: np.ndarray
    """[m], of each held-out image that it was shown."""
    training_sample: np.ndarray | None = None
    """[n], increasing: those training images; None for all."""
    held_out_sample: np.ndarray | None = None
    """[m], increasing: those held-out images; None for all."""


def gallery(source: Galleries, *, seed: int) -> dict[str, list[dict[str, Any]]]:
    """Clusters to be looked at, and members of each, chosen at random among the images that the network was shown.

    Returns:
        "best", the clusters of lowest entropy of the classes, or of highest mean confidence without classes, the best first, and
        "random", others: each a dictionary of "cluster", "size", "confidence", "members" and "held_out_members" (indices); with classes
        also "entropy" in nats, and "class" and "share" of its most frequent one. Size, entropy and share are those of all training
        images; a cluster without any that the network was shown is left out.
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
        if source.held_out_sample is not None:
            held_out_members = source.held_out_sample[held_out_members]
        found: dict[str, Any] = {
            "cluster": cluster,
            "size": len(members[cluster]),
            "confidence": float(source.confidence[members_shown[cluster]].mean()),
            "members": _some(shown[members_shown[cluster]], random),
            "held_out_members": _some(held_out_members, random),
        }
        if source.classes is not None:
            found |= _classes_of(source.classes[members[cluster]], source.class_names)
        described.append(found)
    key = "confidence" if source.classes is None else "entropy"
    best = sorted(described, key=lambda one: -one[key] if source.classes is None else one[key])[:NUM_CLUSTERS_SHOWN]
    others = [one for one in described if one not in best]
    chosen = random.permutation(len(others))[:NUM_CLUSTERS_SHOWN]
    return {"best": best, "random": [others[i] for i in sorted(chosen)]}


def _by_cluster(clusters: np.ndarray, num_clusters: int) -> list[np.ndarray]:
    """The places of each cluster in [N], increasing; one sort instead of K searches."""
    order = np.argsort(clusters, kind="stable")
    return np.split(order, np.searchsorted(clusters[order], np.arange(1, num_clusters)))


def _some(indices: np.ndarray, random: np.random.Generator) -> list[int]:
    return random.permutation(indices)[:NUM_MEMBERS_SHOWN].tolist()


def _classes_of(classes: np.ndarray, names: Sequence[str] | None) -> dict[str, Any]:
    """Entropy of the classes of a cluster's members, and its most frequent one."""
    counts = np.bincount(classes)
    shares = counts[counts > 0] / len(classes)
    most = int(counts.argmax())
    return {
        "entropy": float(entr(shares).sum()),
        "class": str(names[most] if names else most),
        "share": float(counts[most] / len(classes)),
    }
