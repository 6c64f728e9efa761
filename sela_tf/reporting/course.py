"""The numbers behind the pictures of a run, from the rows of its metrics.jsonl; built once, for whoever draws them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

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


def gallery(
    labels: np.ndarray,
    held_out_clusters: np.ndarray,
    *,
    num_clusters: int,
    classes: np.ndarray | None,
    class_names: Sequence[str] | None,
    confidence: np.ndarray,
    seed: int,
) -> dict[str, list[dict[str, Any]]]:
    """Clusters to be looked at, and members of each, chosen at random.

    Args:
        labels: [N], of the training images.
        held_out_clusters: [M].
        num_clusters: K.
        classes: [N]; None where there are none.
        class_names: of the classes.
        confidence: [N], the network's probability of each training image's label.
        seed: of the random choices.

    Returns:
        "best", the clusters of lowest entropy of the classes, or of highest mean confidence without classes, the best first, and
        "random", others: each a dictionary of "cluster", "size", "confidence", "members" and "held_out_members" (indices); with classes
        also "entropy" in nats, and "class" and "share" of its most frequent one.
    """
    random = np.random.default_rng([seed, 7])
    described = []
    for cluster in range(num_clusters):
        members = np.flatnonzero(labels == cluster)
        if len(members):
            described.append(_described(cluster, members, held_out_clusters, classes, class_names, confidence, random))
    best = sorted(described, key=lambda one: one["entropy"] if classes is not None else -one["confidence"])[:NUM_CLUSTERS_SHOWN]
    others = [one for one in described if one not in best]
    chosen = random.permutation(len(others))[:NUM_CLUSTERS_SHOWN]
    return {"best": best, "random": [others[i] for i in sorted(chosen)]}


def _described(
    cluster: int,
    members: np.ndarray,
    held_out_clusters: np.ndarray,
    classes: np.ndarray | None,
    class_names: Sequence[str] | None,
    confidence: np.ndarray,
    random: np.random.Generator,
) -> dict[str, Any]:
    def some(indices: np.ndarray) -> list[int]:
        return random.permutation(indices)[:NUM_MEMBERS_SHOWN].tolist()

    found: dict[str, Any] = {
        "cluster": cluster,
        "size": len(members),
        "confidence": float(confidence[members].mean()),
        "members": some(members),
        "held_out_members": some(np.flatnonzero(held_out_clusters == cluster)),
    }
    if classes is not None:
        counts = np.bincount(classes[members])
        shares = counts[counts > 0] / len(members)
        most = int(counts.argmax())
        found["entropy"] = float(entr(shares).sum())
        found["class"], found["share"] = str(class_names[most] if class_names else most), float(counts[most] / len(members))
    return found
