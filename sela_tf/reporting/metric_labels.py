"""The metrics of a run and their labels in tables and pictures.

A new metric of the clusters takes a field of `sela_tf.evaluation.clustering.ClusterMetrics`, its computation there, and an entry here.
"""

from __future__ import annotations

from typing import NamedTuple


class Metric(NamedTuple):
    """The labels of a metric."""

    label: str
    """The label in tables."""
    short_label: str | None = None
    """The label in report.png, where there is little room; None for a metric that report.json and report.png leave out."""


METRIC_LABELS = {
    "knn": Metric("kNN accuracy", "kNN"),
    "linear_probe": Metric("linear probe", "linear probe"),
    "nmi": Metric("NMI", "NMI"),
    "ami": Metric("AMI", "AMI"),
    "ari": Metric("ARI", "ARI"),
    "hungarian": Metric("Hungarian accuracy", "Hungarian acc."),
    "purity": Metric("mean purity"),
    "entropy": Metric("mean entropy, nats"),
}
"""Metrics by their key in results.json, in the order of the tables."""

REPORT_LABELS = {key: metric.short_label for key, metric in METRIC_LABELS.items() if metric.short_label is not None}
"""Labels in report.png, by key."""

CLUSTER_LABELS = {key: metric.label for key, metric in METRIC_LABELS.items() if key not in ("knn", "linear_probe")}
"""Labels in tables of the metrics that compare clusters with classes, by key."""

STABILITY_LABELS = {
    "view_agreement": Metric("cluster of two views, AMI", "views, AMI"),
    "neighbour_stability": Metric("neighbours of two views", "neighbours"),
    "head_agreement": Metric("agreement of heads, AMI"),
}
"""Measures that need no classes, by key."""
