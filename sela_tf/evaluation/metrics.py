"""The metrics of a run: those of a network, of its labels, and of chance."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from sela_tf.evaluation.clustering import ClusterMetrics, cluster_metrics
from sela_tf.evaluation.intervals import Answers
from sela_tf.evaluation.knn import knn_correct
from sela_tf.evaluation.linear_probe import linear_probe_correct
from sela_tf.evaluation.outputs import EvaluationOutputs
from sela_tf.evaluation.protocol import LEFT_OUT, EvaluationImages

KNN_NEIGHBOURS = 10

_NO_CLASSES = "the images have no class labels"

_NO_EVAL_CLASSES = "the held-out images have no class labels"


class Evaluation(NamedTuple):
    """The figures of a network, and its answers for each image that they come from."""

    figures: dict[str, Any]
    """Figures by name, as they stand in results.json."""
    answers: Answers
    """Answers for the held-out images."""


def evaluate_outputs(
    outputs: EvaluationOutputs,
    images: EvaluationImages,
    *,
    num_clusters: int,
    statistics_filled: bool = False,
    with_linear_probe: bool = True,
) -> Evaluation:
    """Evaluates a network on the held-out images, from its outputs.

    Args:
        outputs: the network's outputs on `images`.
        images: the images, for their classes and their protocol.
        num_clusters: number of clusters K.
        statistics_filled: the moving statistics were filled first, which the protocol line then says.
        with_linear_probe: fit the linear probe; otherwise its figure is None.

    Returns:
        The figures: "knn" and "linear_probe", accuracies of the embedding; the metrics of `evaluate_labels` of each head's plain argmax;
        "protocol", a text. Where classes are missing, all that needs them is None, and "reason" says why.
    """
    view = "clean view, inference mode" + (", moving statistics of 50 batches" if statistics_filled else "")
    train_classes, classes, protocol = images.training.classes, images.held_out.classes, images.protocol
    clusters = outputs.held_out.clusters
    if train_classes is None or classes is None:
        reason = _NO_CLASSES if train_classes is None else _NO_EVAL_CLASSES
        words = f"{protocol.held_out_words}, {view}. clusters_used: plain argmax of each head, K = {num_clusters}."
        figures = {"knn": None, "linear_probe": None, **evaluate_labels(clusters, None), "reason": reason, "protocol": words}
        return Evaluation(figures, Answers({}, clusters))
    embeddings = outputs.training.embedding, train_classes, outputs.held_out.embedding, classes
    correct = {"knn": knn_correct(*embeddings, k=KNN_NEIGHBOURS)}
    if with_linear_probe:
        correct["linear_probe"] = linear_probe_correct(*embeddings, max_iterations=protocol.max_iterations)
    figures = {
        "knn": int(correct["knn"].sum()) / len(classes),
        "linear_probe": int(correct["linear_probe"].sum()) / len(classes) if with_linear_probe else None,
        **evaluate_labels(clusters, classes),
        "protocol": (
            f"{protocol.held_out_words}, {view}. "
            f"knn: k = {KNN_NEIGHBOURS}, cosine, votes weighted exp(similarity / .1), among {protocol.training_words}. "
            f"linear_probe: scikit-learn's logistic regression{protocol.solver_words} on the standardised embedding of "
            f"{embeddings[0].shape[1]} values. "
            f"{', '.join(ClusterMetrics._fields)}: plain argmax of each head, K = {num_clusters}.{protocol.labels_words}"
        ),
    }
    return Evaluation(figures, Answers(correct, clusters))


def no_metrics() -> dict[str, Any]:
    """Returns the keys of `evaluate_outputs`, each None, with the reason: no evaluation was wanted."""
    empty = dict.fromkeys(("knn", "linear_probe", *ClusterMetrics._fields, "clusters_used"))
    return {**empty, "reason": LEFT_OUT, "protocol": f"{LEFT_OUT}."}


def evaluate_labels(labels: np.ndarray, classes: np.ndarray | None) -> dict[str, Any]:
    """Returns the agreement of each head's labels with the classes, and the number of clusters in use.

    Args:
        labels: integers [T, N].
        classes: integers [N]; None where there are none.

    Returns:
        Lists [T] under the names of `ClusterMetrics` and "clusters_used". Without classes the former are None, and "reason" says why.
    """
    used = {"clusters_used": [len(np.unique(head)) for head in labels]}
    if classes is None:
        return {**dict.fromkeys(ClusterMetrics._fields), **used, "reason": _NO_CLASSES}
    metrics = [cluster_metrics(classes, head) for head in labels]
    return {**{name: [getattr(head, name) for head in metrics] for name in ClusterMetrics._fields}, **used}


def evaluate_chance(classes: np.ndarray | None, num_clusters: int, *, seed: int) -> dict[str, Any]:
    """Returns the metrics of chance: the largest class's share as accuracy, and the agreement of equally large random clusters.

    Args:
        classes: integers [N] of the held-out images; None where there are none, and then all metrics are None.
        num_clusters: number of clusters K.
        seed: seed of the random clusters.
    """
    if classes is None:
        return {"knn": None, "linear_probe": None, **dict.fromkeys(ClusterMetrics._fields), "reason": _NO_CLASSES}
    clusters = chance_clusters(len(classes), num_clusters, seed=seed)
    share = float(np.bincount(classes).max() / len(classes))
    return {
        "knn": share,
        "linear_probe": share,
        **{name: [value] for name, value in cluster_metrics(classes, clusters)._asdict().items()},
    }


def chance_clusters(num_images: int, num_clusters: int, *, seed: int) -> np.ndarray:
    """Returns random clusters of equal sizes, integers [N]."""
    return np.random.default_rng(seed).permutation(np.arange(num_images) % num_clusters)
