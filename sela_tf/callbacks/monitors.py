"""Keras callbacks that measure the representation and the clusters at the end of every epoch."""

from __future__ import annotations

import os
from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf

from sela_tf.callbacks.label_statistics import ClusterSizes, Labels, potential_ranges
from sela_tf.callbacks.network_sample import NetworkSample
from sela_tf.evaluation.knn import knn_accuracy
from sela_tf.models.build import cut_at
from sela_tf.models.inference import BatchedInference, check_indices, steps_taken

_MOST_OF_A_HISTOGRAM = 100_000
"""Most values that are given to a histogram: TensorFlow makes 30 float64 numbers of each."""


class KNNMonitor(keras.callbacks.Callback):
    """A Keras callback that measures the weighted kNN accuracy of a layer's output at the end of every epoch.

    The classes of the evaluation images are predicted from the nearest training images. The accuracy is "knn" in the logs of the callbacks
    that follow.

    Args:
        layer: the name of the layer, whose output is [B, D].
        train_batches: batches of (training images, indices 0 … N - 1), among which the neighbours are searched.
        train_classes: the classes of the training images, integers [N] from 0.
        eval_batches: batches of (evaluation images, indices 0 … M - 1), whose classes are predicted.
        eval_classes: the classes of the evaluation images, integers [M] from 0.
        k: the number of neighbours.

    Raises:
        ValueError: at once, if the classes do not fit the data sets, each of which is gone through once for this check; when training
            starts, if the model has no such layer, or the layer's output is no vector.
    """

    def __init__(
        self,
        layer: str,
        *,
        train_batches: tf.data.Dataset,
        train_classes: np.ndarray,
        eval_batches: tf.data.Dataset,
        eval_classes: np.ndarray,
        k: int = 10,
    ):
        super().__init__()
        if not k >= 1:
            raise ValueError(f"`k` must be at least 1. Received: k={k}")
        self.layer = layer
        self.train_batches, self.train_classes = train_batches, _checked("train_classes", train_classes, train_batches)
        self.eval_batches, self.eval_classes = eval_batches, _checked("eval_classes", eval_classes, eval_batches)
        self.k = k
        self._inference: BatchedInference | None = None

    def on_train_begin(self, logs: dict | None = None) -> None:
        names = [layer.name for layer in self.model.layers]
        if self.layer not in names:
            raise ValueError(f"`layer` must be one of the model's: {', '.join(names)}. Received: layer={self.layer!r}")
        output = self.model.get_layer(self.layer).output
        if len(output.shape) != 2:
            raise ValueError(f"`layer` must put out vectors [B, D]. Received: layer={self.layer!r} of shape {tuple(output.shape)}")
        self._inference = BatchedInference(cut_at(self.model, self.layer), self.model.distribute_strategy)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        if self._inference is None or logs is None:
            return
        train_outputs = self._inference.collect(self.train_batches, len(self.train_classes))
        eval_outputs = self._inference.collect(self.eval_batches, len(self.eval_classes))
        logs["knn"] = knn_accuracy(train_outputs, self.train_classes, eval_outputs, self.eval_classes, k=self.k)


def _checked(name: str, classes: np.ndarray, batches: tf.data.Dataset) -> np.ndarray:
    """Returns `classes` as an array.

    Raises:
        ValueError: `classes` are not one integer from 0 for each image of `batches`.
    """
    classes = np.asarray(classes)
    if classes.ndim != 1 or classes.dtype.kind not in "iu" or not len(classes) or classes.min() < 0:
        raise ValueError(f"`{name}` must be integers [N] from 0. Received: {classes.dtype} {classes.shape}")
    try:
        check_indices(batches, len(classes))
    except ValueError as error:
        raise ValueError(f"`{name}` must have one entry for each image. Received: {len(classes)} entries, and: {error}") from error
    return classes


class ClusterMonitor(keras.callbacks.Callback):
    """A Keras callback that writes statistics of every head's clusters to TensorBoard at the end of every epoch.

    Scalars of head t are under "clusters/head<t>/", at the optimizer's step: `in_use`, `information_share` (the entropy of the sizes / ln K),
    `smallest`, `largest`, `changed` (the share of the labels that changed since the epoch before) and `potential_range` (of the potentials
    / lam, in nats); with a sample also `network_in_use` and `network_effective` (exp of the entropy) of the network's own argmax.
    Histograms are `sizes`, `num_changes` and `potentials`.

    The logs of the callbacks that follow have one number for all heads, that of the worst head: `clusters_in_use`, `information_share`,
    `smallest_cluster`, `largest_cluster`, `labels_changed` (the mean over heads), `potential_range`, `network_clusters_in_use`,
    `network_effective_clusters`.

    Args:
        labels: the table that `SelfLabelling` rewrites.
        writer: a directory for TensorBoard, or a writer made by `tf.summary.create_file_writer`, which its owner closes.
        sample: batches of images, alone or as the first of a tuple, for the network's own argmax.

    Raises:
        ValueError: the sample is empty or infinite; when training starts, if a sample is given and the model's heads are not the table's.
    """

    def __init__(
        self,
        labels: Labels,
        writer: str | os.PathLike[str] | tf.summary.SummaryWriter,
        *,
        sample: tf.data.Dataset | None = None,
    ):
        super().__init__()
        self.labels = labels
        self._given = writer
        self._writer: tf.summary.SummaryWriter | None = None
        self._sample = None if sample is None else NetworkSample(sample, labels)
        self._before: np.ndarray | None = None

    def on_train_begin(self, logs: dict | None = None) -> None:
        if self._sample is not None:
            self._sample.set_model(self.model)
        if self._before is None:
            self._before = self._compact()
        path = isinstance(self._given, str | os.PathLike)
        self._writer = tf.summary.create_file_writer(os.fspath(self._given)) if path else self._given

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        if self._writer is None:
            return
        labels = self._compact()
        changed = (labels != self._before).mean(axis=1)
        self._before = labels
        sizes = [ClusterSizes.of(head, self.labels.num_clusters) for head in labels]
        ranges = potential_ranges(self.labels)
        outputs = self._sample.outputs() if self._sample is not None else None
        network = None if outputs is None else outputs.clusters
        with self._writer.as_default(steps_taken(self.model)):
            for head in range(self.labels.num_heads):
                own = {} if network is None else _of_network(network[head])
                of_labels = {"changed": changed[head], "potential_range": ranges[head]}
                self._write(head, {**_of_labels(sizes[head]), **of_labels, **own}, sizes[head].sizes)
        self._writer.flush()
        if logs is not None:
            logs.update(_worst(sizes, changed, ranges, network))

    def on_train_end(self, logs: dict | None = None) -> None:
        if self._writer is not None and self._writer is not self._given:
            self._writer.close()
        self._writer = None

    def state(self) -> dict[str, np.ndarray]:
        """Returns the arrays that a continued training needs to count changes since the epoch before; callable once training has started."""
        return {"labels": self._compact() if self._before is None else self._before}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Restores the arrays of `state`, before training starts."""
        self._before = np.array(state["labels"])

    def _compact(self) -> np.ndarray:
        """Returns the labels [T, N] in the smallest unsigned integer type that holds K - 1."""
        return self.labels.labels.astype(np.min_scalar_type(self.labels.num_clusters - 1))

    def _write(self, head: int, scalars: Mapping[str, float], sizes: np.ndarray) -> None:
        """Writes the scalars and histograms of one head at the default writer's step."""
        place = f"clusters/head{head}"
        for name, value in scalars.items():
            tf.summary.scalar(f"{place}/{name}", float(value))
        stride = -(-self.labels.num_examples // _MOST_OF_A_HISTOGRAM)
        tf.summary.histogram(f"{place}/sizes", sizes)
        tf.summary.histogram(f"{place}/num_changes", self.labels.num_changes[head, ::stride])
        tf.summary.histogram(f"{place}/potentials", self.labels.potentials[head])


def _of_labels(clusters: ClusterSizes) -> dict[str, float]:
    """Returns the scalars of the labels' clusters, by their names in TensorBoard."""
    return {name: getattr(clusters, name) for name in ("in_use", "information_share", "smallest", "largest")}


def _of_network(clusters: ClusterSizes) -> dict[str, float]:
    """Returns the scalars of the clusters of the network's own argmax, by their names in TensorBoard."""
    return {f"network_{name}": getattr(clusters, name) for name in ("in_use", "effective")}


def _worst(
    sizes: list[ClusterSizes], changed: np.ndarray, ranges: np.ndarray, network: list[ClusterSizes] | None
) -> dict[str, float]:
    """Returns one number for all heads, mostly that of the worst head, by its key in the logs; for stopping rules and tables."""
    values: dict[str, float] = {
        "clusters_in_use": min(head.in_use for head in sizes),
        "information_share": min(head.information_share for head in sizes),
        "smallest_cluster": min(head.smallest for head in sizes),
        "largest_cluster": max(head.largest for head in sizes),
        "labels_changed": float(changed.mean()),
        "potential_range": float(ranges.max()),
    }
    if network is not None:
        values["network_clusters_in_use"] = min(head.in_use for head in network)
        values["network_effective_clusters"] = min(head.effective for head in network)
    return values
