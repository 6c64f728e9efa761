"""The figures at the end of a run: of a network, of its labels, and of chance; and the table that shows them."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from sela_tf.data.batch_sizes import EVALUATION_BATCH
from sela_tf.data.image_set import ImageSet
from sela_tf.data.pipeline import inference_batches
from sela_tf.evaluation.clustering import ClusterMetrics, cluster_metrics
from sela_tf.evaluation.knn import knn_accuracy
from sela_tf.evaluation.linear_probe import linear_probe_accuracy
from sela_tf.evaluation.outputs import Look, look
from sela_tf.evaluation.protocol import LEFT_OUT, EvaluationProtocol, evaluation_protocol
from sela_tf.models.heads import find_multi_head
from sela_tf.models.inference import BatchedInference

KNN_NEIGHBOURS = 10


_NO_CLASSES = "the images have no class labels"


_NO_EVAL_CLASSES = "the held-out images have no class labels"


class Looks(NamedTuple):
    """A network on the images that it is evaluated on."""

    training: Look | None
    """None where neither the kNN's bank nor the report wants it."""
    held_out: Look

    def without_embeddings(self) -> Looks:
        """The clusters alone, which take little memory."""
        training = None if self.training is None else self.training.without_embedding()
        return Looks(training, self.held_out.without_embedding())


def look_at_both(
    model: keras.Model,
    train: ImageSet,
    held_out: ImageSet,
    *,
    size: tuple[int, ...],
    strategy: tf.distribute.Strategy | None = None,
    settle: bool = False,
    potentials: np.ndarray | None = None,
    lam: float = 1.0,
    always_training: bool = False,
) -> Looks:
    """One pass over each set, whose embeddings are kept where there are classes to judge them by.

    Args:
        model: of `build_model`.
        train: N images; they are looked at if there are classes, or with `always_training`.
        held_out: M images.
        size: (height, width) that the network sees; () of vectors.
        strategy: that the model was built under; None for one device.
        settle: fill the moving statistics from the training images first, which does a network before its first step justice.
        potentials: [T, K] of the final transport, for the corrected clusters.
        lam: of that transport.
        always_training: look at the training images in any case.
    """
    if settle:
        BatchedInference(model, strategy).settle(inference_batches(train, size=size, batch_size=EVALUATION_BATCH))
    judged = train.classes is not None and held_out.classes is not None
    seen = functools.partial(look, model, size=size, strategy=strategy, embedding=judged, potentials=potentials, lam=lam)
    return Looks(seen(train) if judged or always_training else None, seen(held_out))


def evaluate_network(
    model: keras.Model,
    train: ImageSet,
    held_out: ImageSet,
    *,
    size: tuple[int, ...],
    strategy: tf.distribute.Strategy | None = None,
    settle: bool = False,
    protocol: EvaluationProtocol | None = None,
) -> dict[str, Any]:
    """KNN and linear probe of the embedding, and each head's plain argmax against the classes, on the held-out images.

    A network before its first step is done justice with `settle`, which fills its moving statistics from the training images. What
    needs classes is None where there are none, with a `reason`. The images are those that the protocol chose; without one, a set
    that is evaluated on in full.
    """
    looks = look_at_both(model, train, held_out, size=size, strategy=strategy, settle=settle)
    num_clusters = find_multi_head(model).num_clusters
    return evaluate_looks(looks, train.classes, held_out.classes, num_clusters=num_clusters, settled=settle, protocol=protocol)


def evaluate_looks(
    looks: Looks,
    train_classes: np.ndarray | None,
    classes: np.ndarray | None,
    *,
    num_clusters: int,
    settled: bool = False,
    protocol: EvaluationProtocol | None = None,
) -> dict[str, Any]:
    """The figures of `evaluate_network`, from what was seen already.

    Args:
        looks: at the images that the protocol chose.
        train_classes: integers [n] of the training images; None where there are none.
        classes: integers [m] of the held-out images; None where there are none.
        num_clusters: K.
        settled: the moving statistics were filled first, as the protocol line then says.
        protocol: of which it gives the words, and the limit of iterations; by default that of an evaluation in full.
    """
    view = "clean view, inference mode" + (", moving statistics of 50 batches" if settled else "")
    clusters = looks.held_out.clusters
    if protocol is None:
        size = 0 if looks.training is None else looks.training.num_images
        protocol = evaluation_protocol("full", size, looks.held_out.num_images)
    if train_classes is None or classes is None or looks.training is None:
        reason = _NO_CLASSES if train_classes is None else _NO_EVAL_CLASSES
        words = f"{protocol.held_out_words}, {view}. clusters_used: plain argmax of each head, K = {num_clusters}."
        return {"knn": None, "linear_probe": None, **evaluate_labels(clusters, None), "reason": reason, "protocol": words}
    bank, queries = looks.training.embedding, looks.held_out.embedding
    return {
        "knn": knn_accuracy(bank, train_classes, queries, classes, k=KNN_NEIGHBOURS),
        "linear_probe": linear_probe_accuracy(bank, train_classes, queries, classes, max_iterations=protocol.max_iterations),
        **evaluate_labels(clusters, classes),
        "protocol": (
            f"{protocol.held_out_words}, {view}. "
            f"knn: k = {KNN_NEIGHBOURS}, cosine, votes weighted exp(similarity / .1), among {protocol.training_words}. "
            f"linear_probe: scikit-learn's logistic regression{protocol.solver_words} on the standardised embedding of "
            f"{bank.shape[1]} values. "
            f"{', '.join(ClusterMetrics._fields)}: plain argmax of each head, K = {num_clusters}.{protocol.labels_words}"
        ),
    }


def no_figures() -> dict[str, Any]:
    """The keys of `evaluate_network`, with null for each, and the reason, where an evaluation was not wanted."""
    empty = dict.fromkeys(("knn", "linear_probe", *ClusterMetrics._fields, "clusters_used"))
    return {**empty, "reason": LEFT_OUT, "protocol": f"{LEFT_OUT}."}


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
