"""A Keras callback that says in words when a self-labelling goes wrong, and which flag or argument to change."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
from scipy.special import entr

from sela_tf.callbacks.cluster_sizes import Labels, cluster_sizes, potential_ranges
from sela_tf.callbacks.diagnosis import KINDS, Symptoms, Thresholds, diagnose
from sela_tf.callbacks.network_sample import NetworkSample
from sela_tf.compat.progress import say
from sela_tf.models.inference import steps_taken
from sela_tf.transport.marginals import Marginals, check_marginals

_REPEATABLE = [kind for kind in KINDS if kind != "waiting"]


class Finding(NamedTuple):
    """What was found wrong."""

    kind: str
    """loss, features, clusters, labels, potentials or waiting."""
    epoch: int
    """From 0, at whose end it was found."""
    message: str


class CollapseDoctor(keras.callbacks.Callback):
    """Looks for six ways in which training goes wrong, at the end of every epoch, and says what to change.

    Each is said once until it has passed, in one line, and kept in `findings`; `symptoms` has the last epoch's figures.

    - "loss": it stays at ln K, that of guessing, or above.
    - "features": the sample's images all look the same to the network.
    - "clusters": they die: those of the labels, or, while these are balanced, those of the network's own argmax on the sample.
    - "labels": relabellings change nothing any more, and more of them are to come.
    - "potentials": the transport has to move log p so far, or ever farther, that the balance is forced on the network.
    - "waiting": much of the time is spent waiting for data.

    Args:
        labels: the table that `SelfLabelling` rewrites.
        sample: batches of images, alone or as the first of a tuple, a few for each cluster; without it, features and the network's
            argmax are not looked at.
        relabel_steps: those of `SelfLabelling`; without them, labels that stand still are not looked at.
        waiting_share: returns the share of the epoch's training time that was spent waiting for data, which `model.fit` does not know.
        marginals: sizes that the labels are to have, as the transport's.
        loss: what the logs call the heads' loss, where there are other losses.
        log: called with each finding.
        verbose: 0 for no lines; None for what `fit` was told. `findings` and `log` have them in any case.
        thresholds: any field of `sela_tf.callbacks.diagnosis.Thresholds`, which gives the reasons of its defaults.

    Raises:
        ValueError: a number is not positive, or the sample is empty or has no end; when training starts, if a sample is given and the
            model's heads are not the table's.
    """

    def __init__(
        self,
        labels: Labels,
        *,
        sample: tf.data.Dataset | None = None,
        relabel_steps: Iterable[int] = (),
        waiting_share: Callable[[], float] | None = None,
        marginals: Marginals = "uniform",
        loss: str = "loss",
        log: Callable[[Finding], None] | None = None,
        verbose: int | None = None,
        **thresholds: float,
    ):
        super().__init__()
        self.thresholds = Thresholds(**thresholds)
        for name, value in self.thresholds._asdict().items():
            if not value > 0:
                raise ValueError(f"`{name}` must be positive. Received: {name}={value}")
        self.labels = labels
        self.relabel_steps = list(relabel_steps)
        self.waiting_share, self.loss, self.log, self.verbose = waiting_share, loss, log, verbose
        self.findings: list[Finding] = []
        self.symptoms: Symptoms | None = None
        self._expected_clusters = float(np.exp(entr(check_marginals(marginals, labels.num_clusters)).sum()))
        self._sample = None if sample is None else NetworkSample(sample, labels)
        self._ill_epochs = dict.fromkeys(KINDS, 0)
        self._said = dict.fromkeys(KINDS, False)
        self._counts: np.ndarray | None = None
        self._largest_range, self._growing = 0.0, 0
        self._loss_before = self._network_before = float("nan")

    def on_train_begin(self, logs: dict | None = None) -> None:
        if self._sample is not None:
            self._sample.look_through(self.model)
        if self._counts is None:
            self._counts = self._count()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self.symptoms = self._look(logs or {})
        for kind, diagnosis in diagnose(self.symptoms, self.thresholds).items():
            if diagnosis.ill is None:
                continue
            self._ill_epochs[kind] = self._ill_epochs[kind] + 1 if diagnosis.ill else 0
            due = self._ill_epochs[kind] >= diagnosis.patience_epochs
            if diagnosis.ill and due and not self._said[kind]:
                self._say(Finding(kind, epoch, diagnosis.message))
            self._said[kind] = diagnosis.ill and (due or self._said[kind])

    def state(self) -> dict[str, np.ndarray]:
        """What a continued training needs, to say what it would have said; but for waiting, which depends on the clock."""
        return {
            "ill_epochs": np.array([self._ill_epochs[kind] for kind in _REPEATABLE]),
            "said": np.array([self._said[kind] for kind in _REPEATABLE]),
            "counts": self._count() if self._counts is None else self._counts,
            "figures": np.array([self._loss_before, self._network_before, self._largest_range, self._growing]),
        }

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Puts back what `state` gave, before training starts."""
        self._ill_epochs.update(zip(_REPEATABLE, map(int, state["ill_epochs"]), strict=True))
        self._said.update(zip(_REPEATABLE, map(bool, state["said"]), strict=True))
        self._counts = np.array(state["counts"])
        self._loss_before, self._network_before, self._largest_range, growing = map(float, state["figures"])
        self._growing = int(growing)

    def _count(self) -> np.ndarray:
        """So far: relabellings of a head, those but for each head's first, and the labels that these changed."""
        times = self.labels.num_relabellings
        return np.array([times.sum(), np.maximum(times - 1, 0).sum(), self.labels.num_changes.sum()], np.int64)

    def _look(self, logs: Mapping[str, float]) -> Symptoms:
        counts = self._count()
        relabelled, counted, changes = counts - (counts if self._counts is None else self._counts)
        self._counts = counts
        ranges = potential_ranges(self.labels) if counts[0] else None
        if ranges is not None and relabelled:
            self._growing = self._growing + 1 if ranges.max() > self._largest_range else 0
            self._largest_range = float(ranges.max())
        opinion = None if self._sample is None else self._sample.opinion()
        taken = steps_taken(self.model)
        seen = Symptoms(
            loss=logs.get(self.loss),
            loss_before=_known(self._loss_before),
            features=None if opinion is None else opinion.features,
            labels=[cluster_sizes(head, self.labels.num_clusters) for head in self.labels.labels],
            network=None if opinion is None else opinion.clusters,
            network_clusters_before=_known(self._network_before),
            expected_clusters=self._expected_clusters,
            changed=changes / (counted * self.labels.num_examples) if counted else None,
            to_come=sum(step >= taken for step in self.relabel_steps),
            potential_ranges=ranges,
            growing=self._growing,
            waiting_share=None if self.waiting_share is None else self.waiting_share(),
        )
        self._loss_before, self._network_before = (
            float("nan") if value is None else value for value in (seen.loss, seen.network_clusters)
        )
        return seen

    def _say(self, finding: Finding) -> None:
        self.findings.append(finding)
        say(f"WARNING after epoch {finding.epoch + 1}: {finding.message}", verbose=self.verbose, params=self.params)
        if self.log is not None:
            self.log(finding)


def _known(value: float) -> float | None:
    return value if np.isfinite(value) else None
