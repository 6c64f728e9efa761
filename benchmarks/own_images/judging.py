"""Figures of features: kNN, linear probe and k-means on the held-out images, with every single answer, so that methods can be paired."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from sklearn.metrics import adjusted_mutual_info_score

from benchmarks.own_images.packing import pack
from benchmarks.own_images.pictures import FINE
from sela_tf.data.image_set import ImageSet
from sela_tf.evaluation.kmeans import kmeans_clusters
from sela_tf.evaluation.knn import knn_correct
from sela_tf.evaluation.linear_probe import linear_probe_correct
from sela_tf.training.images import Data


class Features(NamedTuple):
    """The features of the images of a set."""

    training: np.ndarray
    """Features of the training images, float32 `[N, D]`."""
    held_out: np.ndarray
    """Features of the held-out images, float32 `[M, D]`."""
    clusters: np.ndarray | None = None
    """Clusters of the held-out images by each head, integers `[T, M]`; None where there are no heads."""


def judge(features: Features, data: Data, *, num_clusters: int) -> dict[str, Any]:
    """Returns the figures of a method, and its answers for each held-out image.

    Args:
        features: The features.
        data: The images, with class labels.
        num_clusters: The number of clusters of k-means.

    Returns:
        "figures": "knn" and "linear", accuracies; "ami" of k-means on the held-out images; "ami_heads", the mean over the heads, where
        there are heads; the first three with "fine_" before them where file names begin with a finer class. "answers": packed, "knn" and
        "linear", right or wrong; "clusters", those of k-means, then those of each head; "classes".
    """
    bank, queries = features.training, features.held_out
    clusters = kmeans_clusters(queries, num_clusters)
    figures: dict[str, float] = {}
    answers: dict[str, Any] = {}
    for prefix, (known, classes) in _classes(data).items():
        correct = {
            "knn": knn_correct(bank, known, queries, classes),
            "linear": linear_probe_correct(bank, known, queries, classes),
        }
        for name, each in correct.items():
            figures[prefix + name] = float(np.mean(each))
            answers[prefix + name] = pack(each)
        figures[f"{prefix}ami"] = float(adjusted_mutual_info_score(classes, clusters))
        answers[f"{prefix}classes"] = pack(classes)
    heads = np.zeros((0, len(clusters)), int) if features.clusters is None else features.clusters
    if len(heads):
        classes = data.held_out.classes
        figures["ami_heads"] = float(np.mean([adjusted_mutual_info_score(classes, head) for head in heads]))
    answers["clusters"] = pack(np.concatenate([clusters[np.newaxis], heads]))
    return {"figures": figures, "answers": answers}


def _classes(data: Data) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns the classes of training and held-out images, under "", and finer ones, where there are any, under "fine_"."""
    train, held_out = data.train, data.held_out
    assert train.classes is not None
    assert held_out.classes is not None
    found = {"": (train.classes, held_out.classes)}
    names, held_out_names = _fine_classes(train), _fine_classes(held_out)
    if names and held_out_names:
        numbers = {name: number for number, name in enumerate(sorted({*names, *held_out_names}))}
        found["fine_"] = np.array([numbers[name] for name in names]), np.array([numbers[name] for name in held_out_names])
    return found


def _fine_classes(images: ImageSet) -> list[str]:
    """Returns what stands before FINE in each file's name; nothing if a name has no such part."""
    names = [name.rpartition("/")[2] for name in images.names or ()]
    return [name.partition(FINE)[0] for name in names] if all(FINE in name for name in names) else []
