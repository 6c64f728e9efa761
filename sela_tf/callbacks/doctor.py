"""A Keras callback that reports a collapse of the self-labelling in words, with the setting to change."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from scipy.special import entr

from sela_tf.callbacks.diagnosis import KINDS, Symptoms, Thresholds, diagnose
from sela_tf.callbacks.label_statistics import ClusterSizes, Labels, potential_ranges
from sela_tf.callbacks.network_sample import NetworkSample
from sela_tf.compat.progress import say
from sela_tf.models.inference import steps_taken
from sela_tf.transport.marginals import Marginals, check_marginals

_REPEATABLE = [kind for kind in KINDS if kind != "waiting"]
"""The kinds whose diagnoses repeat with the seed; waiting depends on the clock. A saved state may lack the last ones, which are newer."""


class Finding(NamedTuple):
    """A failure of the training that `CollapseDoctor` found."""

    kind: str
    """The kind of failure: "loss", "features", "clusters", "labels", "potentials", "waiting" or "images"."""
    epoch: int
    """The epoch, counted from 0, at whose end the failure was found."""
    message: str
    """The failure and its remedy in words, in one line."""


class CollapseDoctor(keras.callbacks.Callback):
    """A Keras callback that looks for seven failures of a self-labelling at the end of every epoch, and says what to change.

    A failure is reported once until it has passed, in one printed line, and kept in the list `findings`. `symptoms` has the statistics of
    the last epoch.

    - "loss": the loss stays at ln K, that of guessing, or above.
    - "features": the sample's images all look the same to the heads.
    - "clusters": clusters of the labels die or, while the labels are balanced, clusters of the network's own argmax on the sample.
    - "labels": relabellings no longer change the labels, and more of them are to come.
    - "potentials": the potentials of the transport are so large, or grow so, that the balance is forced on the network.
    - "waiting": much of the training time is spent waiting for data.
    - "images": many images of the sample are identical.

    Args:
        labels: the table that `SelfLabelling` rewrites.
        sample: batches of images, alone or as the first of a tuple, a few images for each cluster. Without it the heads' inputs and the
            network's argmax are not looked at.
        relabel_steps: the steps given to `SelfLabelling`. Without them, labels that no longer change are not looked at.
        waiting_share: a function that returns the share of the epoch's training time that was spent waiting for data, which `model.fit`
            does not know.
        cores_wanted: a function that returns the number of cores that make views as fast as the devices take them.
        marginals: the shares that the clusters are to have, as in `sela_tf.assign_labels`.
        loss: the key of the heads' loss in the logs, where there are other losses.
        log: a function that is called with each finding.
        verbose: 0 for no lines; None for the `verbose` of `fit`. `findings` and `log` have the findings in any case.
        **thresholds: any field of `sela_tf.callbacks.diagnosis.Thresholds`, which gives the reasons of its defaults.

    Raises:
        ValueError: a threshold is not positive, or the sample is empty or infinite; when training starts, if a sample is given and the
            model's heads are not the table's.
    """

    def __init__(
        self,
        labels: Labels,
        *,
        sample: tf.data.Dataset | None = None,
        relabel_steps: Iterable[int] = (),
        waiting_share: Callable[[], float] | None = None,
        cores_wanted: Callable[[], float] | None = None,
        marginals: Marginals = "uniform",
        loss: str = "loss",
        log: Callable[[Finding], None] | None = None,
        verbose: int | None = None,
        **thresholds: float,
    ):
        super().__init__()
        # Keras 2 has them from `fit` alone.
        self.params: dict[str, Any] | None = None
        self.thresholds = Thresholds(**thresholds)
        for name, value in self.thresholds._asdict().items():
            if not value > 0:
                raise ValueError(f"`{name}` must be positive. Received: {name}={value}")
        self.labels = labels
        self.relabel_steps = list(relabel_steps)
        self.waiting_share, self.cores_wanted = waiting_share, cores_wanted
        self.loss, self.log, self.verbose = loss, log, verbose
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
            self._sample.set_model(self.model)
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
        """Returns the arrays that a continued training needs to report what an uninterrupted one would; "waiting" is left out, because it
        depends on the clock."""
        findings = [(each.kind, str(each.epoch), each.message) for each in self.findings if each.kind in _REPEATABLE]
        return {
            "ill_epochs": np.array([self._ill_epochs[kind] for kind in _REPEATABLE]),
            "said": np.array([self._said[kind] for kind in _REPEATABLE]),
            "counts": self._count() if self._counts is None else self._counts,
            "figures": np.array([self._loss_before, self._network_before, self._largest_range, self._growing]),
            "findings": np.array(findings, str).reshape(-1, len(Finding._fields)),
        }

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Restores the arrays of `state`, before training starts."""
        self._ill_epochs.update(zip(_REPEATABLE, map(int, state["ill_epochs"]), strict=False))
        self._said.update(zip(_REPEATABLE, map(bool, state["said"]), strict=False))
        self._counts = np.array(state["counts"])
        self._loss_before, self._network_before, self._largest_range, growing = map(float, state["figures"])
        self._growing = int(growing)
        # A checkpoint of an earlier revision has none.
        self.findings = [Finding(str(kind), int(epoch), str(words)) for kind, epoch, words in state.get("findings", ())]

    def _count(self) -> np.ndarray:
        """Returns three totals since the start, int64 [3]: relabellings of a head, those without each head's first, and the labels that the
        latter changed."""
        times = self.labels.num_relabellings
        return np.array([times.sum(), np.maximum(times - 1, 0).sum(), self.labels.num_changes.sum()], np.int64)

    def _look(self, logs: Mapping[str, float]) -> Symptoms:
        """Collects the statistics of the epoch that ends, and keeps those that the next epoch is compared with."""
        counts = self._count()
        relabelled, counted, changes = counts - (counts if self._counts is None else self._counts)
        self._counts = counts
        ranges = potential_ranges(self.labels) if counts[0] else None
        if ranges is not None and relabelled:
            self._growing = self._growing + 1 if ranges.max() > self._largest_range else 0
            self._largest_range = float(ranges.max())
        outputs = None if self._sample is None else self._sample.outputs()
        taken = steps_taken(self.model)
        seen = Symptoms(
            loss=logs.get(self.loss),
            loss_before=_known(self._loss_before),
            head_inputs=None if outputs is None else outputs.head_inputs,
            labels=[ClusterSizes.of(head, self.labels.num_clusters) for head in self.labels.labels],
            network=None if outputs is None else outputs.clusters,
            network_clusters_before=_known(self._network_before),
            expected_clusters=self._expected_clusters,
            changed=changes / (counted * self.labels.num_examples) if counted else None,
            to_come=sum(step >= taken for step in self.relabel_steps),
            potential_ranges=ranges,
            growing=self._growing,
            waiting_share=None if self.waiting_share is None else self.waiting_share(),
            cores_wanted=None if self.cores_wanted is None else self.cores_wanted(),
            same_images=None if self._sample is None else self._sample.same_images,
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
    """Returns None for NaN, which stands for an unknown value in the saved state."""
    return value if np.isfinite(value) else None
