"""The figures at the end of a run: of a network, of its labels, and of chance; and the table that shows them."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from sela_tf.data.image_set import ImageSet
from sela_tf.data.pipeline import inference_batches
from sela_tf.evaluation.clustering import ClusterMetrics, cluster_metrics
from sela_tf.evaluation.knn import knn_accuracy
from sela_tf.evaluation.linear_probe import linear_probe_accuracy
from sela_tf.models import EMBEDDING
from sela_tf.models.features import FeatureExtractor
from sela_tf.models.heads import find_multi_head

KNN_NEIGHBOURS = 10
_BATCH = 500
_NO_CLASSES = "the images have no class labels"
_NO_EVAL_CLASSES = "the held-out images have no class labels"


def evaluate_network(
    model: keras.Model,
    train: ImageSet,
    held_out: ImageSet,
    *,
    size: tuple[int, ...],
    strategy: tf.distribute.Strategy | None = None,
    settle: bool = False,
) -> dict[str, Any]:
    """KNN and linear probe of the embedding, and each head's plain argmax against the classes, on the held-out images.

    A network before its first step is done justice with `settle`, which fills its moving statistics from the training images. What
    needs classes is None where there are none, with a `reason`.
    """
    if settle:
        FeatureExtractor(model, strategy).settle(inference_batches(train, size=size, batch_size=_BATCH))
    clusters = plain_clusters(model, held_out, size=size, strategy=strategy)
    view = "clean view, inference mode" + (", moving statistics of 50 batches" if settle else "")
    num_clusters = find_multi_head(model).num_clusters
    if train.classes is None or held_out.classes is None:
        reason = _NO_CLASSES if train.classes is None else _NO_EVAL_CLASSES
        protocol = f"{len(held_out)} held-out images, {view}. clusters_used: plain argmax of each head, K = {num_clusters}."
        return {"knn": None, "linear_probe": None, **evaluate_labels(clusters, None), "reason": reason, "protocol": protocol}
    embedding = FeatureExtractor(keras.Model(model.inputs, model.get_layer(EMBEDDING).output), strategy)
    bank, features = (
        embedding.collect(inference_batches(images, size=size, batch_size=_BATCH), len(images)) for images in (train, held_out)
    )
    return {
        "knn": knn_accuracy(bank, train.classes, features, held_out.classes, k=KNN_NEIGHBOURS),
        "linear_probe": linear_probe_accuracy(bank, train.classes, features, held_out.classes),
        **evaluate_labels(clusters, held_out.classes),
        "protocol": (
            f"{len(held_out)} held-out images, {view}. "
            f"knn: k = {KNN_NEIGHBOURS}, cosine, votes weighted exp(similarity / .1), among all {len(train)} training images. "
            f"linear_probe: scikit-learn's logistic regression on the standardised embedding of {bank.shape[1]} values. "
            f"nmi, ami, ari, hungarian, purity, entropy: plain argmax of each head, K = {num_clusters}."
        ),
    }


def plain_clusters(
    model: keras.Model, images: ImageSet, *, size: tuple[int, ...], strategy: tf.distribute.Strategy | None = None
) -> np.ndarray:
    """The plain argmax of each head on the clean views: int64 [T, N]."""
    heads = find_multi_head(model)
    logits = FeatureExtractor(keras.Model(model.inputs, keras.layers.Flatten(name="all_heads")(heads.output)), strategy)
    outputs = logits.collect(inference_batches(images, size=size, batch_size=_BATCH), len(images))
    return outputs.reshape(len(images), heads.num_heads, heads.num_clusters).argmax(axis=2).T


def evaluate_labels(labels: np.ndarray, classes: np.ndarray | None) -> dict[str, Any]:
    """Agreement of the labels [T, N] of each head with the classes [N], and how many clusters are used: lists [T]."""
    used = {"clusters_used": [len(np.unique(head)) for head in labels]}
    if classes is None:
        return {**dict.fromkeys(ClusterMetrics._fields), **used, "reason": _NO_CLASSES}
    metrics = [cluster_metrics(classes, head) for head in labels]
    return {**{name: [getattr(head, name) for head in metrics] for name in ClusterMetrics._fields}, **used}


def evaluate_chance(classes: np.ndarray | None, num_clusters: int, *, seed: int) -> dict[str, Any]:
    """What no knowledge reaches: the largest class's share, and equally large clusters at random."""
    if classes is None:
        return {"knn": None, "linear_probe": None, **dict.fromkeys(ClusterMetrics._fields), "reason": _NO_CLASSES}
    clusters = np.random.default_rng(seed).permutation(np.arange(len(classes)) % num_clusters)
    share = float(np.bincount(classes).max() / len(classes))
    return {
        "knn": share,
        "linear_probe": share,
        **{name: [value] for name, value in cluster_metrics(classes, clusters)._asdict().items()},
    }


def table(results: Mapping[str, Any]) -> str:
    """The results beside the untrained network and chance, for a terminal."""
    columns = ["trained", "untrained", "chance"]
    names = {
        "knn": "kNN accuracy",
        "linear_probe": "linear probe",
        "nmi": "NMI",
        "ami": "AMI",
        "ari": "ARI",
        "hungarian": "Hungarian accuracy",
        "purity": "mean purity",
        "entropy": "mean entropy, nats",
    }
    heads = len(results["trained"]["clusters_used"])
    if results["trained"]["knn"] is None:
        used = ", ".join(map(str, results["trained"]["clusters_used"]))
        return (
            f"{results['trained']['reason'].capitalize()}: kNN, linear probe, NMI, AMI, ARI and Hungarian accuracy are left out.\n"
            f"Clusters in use on the held-out images, a head: {used} of {results['config']['num_clusters']}."
        )
    rows = [["held-out images", *columns]]
    for key, name in names.items():
        values = [results[column][key] for column in columns]
        if isinstance(values[0], list):
            for head in range(heads):
                rows.append([f"{name}, head {head}" if heads > 1 else name, *(_number(value, head) for value in values)])
        else:
            rows.append([name, *(_number([value], 0) for value in values)])
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = ["  ".join(cell.ljust(widths[0]) if i == 0 else cell.rjust(widths[i]) for i, cell in enumerate(row)) for row in rows]
    return "\n".join(
        [
            lines[0],
            "-" * len(lines[0]),
            *lines[1:],
            "",
            *textwrap.wrap(
                results["trained"]["protocol"] + " untrained: before the first step, its moving statistics taken from 50 batches.",
                100,
            ),
        ]
    )


def _number(values: Sequence[float], head: int) -> str:
    return f"{values[min(head, len(values) - 1)]:.3f}"
