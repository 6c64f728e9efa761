"""Monitoring of a training: agreement with the classes, kNN, the clusters, and the doctor's findings, written to the run's files."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import keras
import numpy as np

from sela_tf.callbacks.doctor import CollapseDoctor, Finding
from sela_tf.callbacks.monitors import ClusterMonitor, KNNMonitor
from sela_tf.data.batch_sizes import LABEL_PASS_BATCH
from sela_tf.data.pipeline import inference_batches
from sela_tf.evaluation.clustering import cluster_metrics, entropy_histogram
from sela_tf.files.saves import arrays_under
from sela_tf.models.layer_names import EMBEDDING, HEADS
from sela_tf.runs.workdir import Workdir
from sela_tf.self_labelling.label_pass import HeadLabels
from sela_tf.self_labelling.label_table import LabelTable
from sela_tf.settings.training import SelaConfig
from sela_tf.training.evaluation import protocol_of
from sela_tf.training.images import Data
from sela_tf.training.loop import Clock
from sela_tf.transport.size_bounds import least_equal_shares

_SAMPLE, _SAMPLE_PER_CLUSTER = 1000, 4
"""Images, and images a cluster, that the monitors of the clusters show the network: the larger number, of those there are."""


class ClassAgreement(NamedTuple):
    """The class labels that a run's labels are compared with while it trains."""

    classes: np.ndarray
    """The class labels, int64 [n]."""
    sample: np.ndarray | None
    """The training images that the class labels are of, int64 [n]; None for all."""

    def of(self, labels: np.ndarray) -> dict[str, Any]:
        """Returns the metrics of labels [N] of one head, and the histogram of their clusters' entropies."""
        seen = labels if self.sample is None else labels[self.sample]
        return {**cluster_metrics(self.classes, seen)._asdict(), "entropy_histogram": entropy_histogram(self.classes, seen)}


def class_agreement(config: SelaConfig, data: Data) -> ClassAgreement | None:
    """Returns the classes of the images that the figures are taken on; None where there are no classes, or no figures are wanted."""
    protocol = protocol_of(config, data)
    if data.train.classes is None or protocol.kind == "none":
        return None
    sample = protocol.training_sample
    return ClassAgreement(data.train.classes if sample is None else data.train.classes[sample], sample)


def knn_monitor(config: SelaConfig, data: Data) -> list[keras.callbacks.Callback]:
    """Returns the monitor of the kNN accuracy; none where there are no classes or no figures are wanted."""
    protocol = protocol_of(config, data)
    held_out = protocol.held_out(data.held_out)
    if data.train.classes is None or held_out.classes is None or not config.monitor_examples or protocol.kind == "none":
        return []
    chosen = np.sort(np.random.default_rng(config.seed).permutation(len(data.train))[: config.monitor_examples])
    train = data.train.take(chosen)
    return [
        KNNMonitor(
            EMBEDDING,
            train_batches=inference_batches(train, size=data.size, batch_size=LABEL_PASS_BATCH),
            train_classes=data.train.classes[chosen],
            eval_batches=inference_batches(held_out, size=data.size, batch_size=LABEL_PASS_BATCH),
            eval_classes=held_out.classes,
        )
    ]


def cluster_monitors(
    config: SelaConfig,
    data: Data,
    labels: LabelTable,
    relabel_steps: list[int],
    directory: Workdir,
    clock: Clock,
    devices: int,
    kept: Mapping[str, np.ndarray],
) -> dict[str, ClusterMonitor | CollapseDoctor]:
    """Returns the monitors of the clusters, by name, with the state that a checkpoint kept of them.

    They see the same sample of images in every run of these settings.
    """
    count = min(max(_SAMPLE, _SAMPLE_PER_CLUSTER * config.num_clusters), len(data.train))
    chosen = np.sort(np.random.default_rng(config.seed).permutation(len(data.train))[:count])
    sample = inference_batches(data.train.take(chosen), size=data.size, batch_size=LABEL_PASS_BATCH)
    monitors: dict[str, ClusterMonitor | CollapseDoctor] = {
        "clusters": ClusterMonitor(labels, directory.writer, sample=sample),
        "doctor": CollapseDoctor(
            labels,
            sample=sample,
            relabel_steps=relabel_steps,
            waiting_share=lambda: clock.waiting_share,
            cores_wanted=lambda: clock.cores_wanted / devices,
            marginals=least_equal_shares(config.cluster_sizes, len(data.train), config.num_clusters)
            if config.cluster_sizes
            else config.marginals,
            loss=f"{HEADS}_loss" if config.rotation else "loss",
            log=functools.partial(_log_finding, directory, clock),
        ),
    }
    for name, monitor in monitors.items():
        # A run that began before there were these monitors has no state of them.
        if state := arrays_under(name, kept):
            monitor.restore(state)
    return monitors


def _log_finding(directory: Workdir, clock: Clock, finding: Finding) -> None:
    """Writes a finding of the doctor to metrics.jsonl, or to timings.jsonl if it depends on the clock."""
    write = directory.write_timings if finding.kind == "waiting" else directory.write_metrics
    write("warning", clock.step, {"epoch": finding.epoch, "diagnosis": finding.kind, "message": finding.message})


def log_first_labels(directory: Workdir, agreement: ClassAgreement | None, labels: LabelTable) -> None:
    """Writes how the first labels agree with the classes, where the curve of the agreement begins."""
    if agreement is not None:
        for head, first in enumerate(labels.labels):
            directory.write_metrics("first_labels", 0, {"head": head, **agreement.of(first)})


def log_relabelling(directory: Workdir, agreement: ClassAgreement | None, step: int, outcome: list[HeadLabels]) -> None:
    """Writes the metrics of each head's relabelling, and how its new labels agree with the classes, where there are any."""
    for result in outcome:
        metrics = {} if agreement is None else agreement.of(np.asarray(result.assignment.labels))
        directory.write_metrics("relabel", step, {"head": result.head, **result.metrics, **metrics})
        directory.write_timings("relabel", step, {"head": result.head, "seconds": result.seconds})
