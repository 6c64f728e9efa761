"""The finished run that a new one continues: its network, its labels, and what became of its images."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sela_tf.data.image_set import ImageSet
from sela_tf.data.label_files import places_in_run
from sela_tf.reporting.changes import changes_of_labels
from sela_tf.runs.flagfile import read_config
from sela_tf.runs.labels import read_labels
from sela_tf.runs.network import NetworkDescription, load_run, read_description
from sela_tf.self_labelling.label_pass import HeadLabels
from sela_tf.self_labelling.label_table import LabelTable
from sela_tf.settings.fields import ConfigError

_SHARE_OF_EPOCHS, _SHARE_OF_RATE = 1 / 4, 1 / 4
"""The epochs and the learning rate of a run that continues another one, as shares of those of a training from the start."""


class EarlierRun(NamedTuple):
    """A finished run, read from its directory."""

    path: str
    network: NetworkDescription
    weights: list[np.ndarray]
    """The weights of the network, in Keras' order."""
    labels: dict[str, np.ndarray]
    """The arrays of its labels.npz, of M images."""


class Continuation(NamedTuple):
    """The relation of a run to the earlier one that it continues. It is kept in checkpoints, so that the earlier run is read once."""

    network: NetworkDescription
    """The network of the earlier run."""
    labels: np.ndarray
    """The labels that the earlier run gave the images, int64 `[T, N]`; -1 for new images."""
    removed: np.ndarray
    """The number of images of each cluster of the earlier run that are not there any more, int64 `[T, K]`."""
    moved_at_start: np.ndarray
    """The number of images that the first labels took out of their cluster of the earlier run, int64 `[T]`."""
    cluster_names: np.ndarray | None = None
    """The names of the clusters, strings `[T, K]`; None where they have none."""

    def state(self) -> dict[str, np.ndarray]:
        """Returns the arrays that a checkpoint needs."""
        arrays = {name: value for name, value in self._asdict().items() if isinstance(value, np.ndarray)}
        smallest = np.promote_types(np.int8, np.min_scalar_type(int(self.labels.max())))
        return {**arrays, "labels": self.labels.astype(smallest), "network": np.array(json.dumps(self.network.to_json()))}

    @classmethod
    def of_state(cls, state: Mapping[str, np.ndarray]) -> Continuation | None:
        """Returns what `state` gave; None for a run that continues no other, of which there is nothing."""
        if not state:
            return None
        network = NetworkDescription.from_json(json.loads(str(state["network"])))
        fields: dict[str, Any] = {**state, "labels": state["labels"].astype(np.int64), "network": network}
        return cls(**fields)

    def changes(self, labels: np.ndarray) -> dict[str, Any]:
        """Returns what became of the clusters, see `changes_of_labels`, with final labels, integers `[T, N]`."""
        return changes_of_labels(
            self.labels, labels, removed=self.removed, moved_at_start=self.moved_at_start, cluster_names=self.cluster_names
        )


def read_earlier_run(workdir: str | os.PathLike[str]) -> EarlierRun:
    """Reads the run that is continued.

    Raises:
        ConfigError: there is no run, it is not finished, or its files are damaged.
    """
    try:
        network = read_description(workdir)
        labels = read_labels(workdir, (network.num_heads, network.num_clusters))
        weights = load_run(workdir).get_weights()
    except ConfigError as error:
        raise ConfigError(f"`continue_from={workdir}`: {error}") from error
    return EarlierRun(os.fspath(workdir), network, weights, labels)


def settings_to_continue(workdir: str | os.PathLike[str]) -> dict[str, tuple[Any, str]]:
    """Returns the settings that are chosen for a run that continues the one in `workdir`, each with its reason."""
    earlier = read_config(workdir)
    if earlier.continue_from:
        names, why = (
            ("epochs", "learning_rate", "num_relabellings", "monitor_epochs"),
            "as that run, which continued another one, had it",
        )
        return {name: (getattr(earlier, name), why) for name in names}
    epochs = math.ceil(_SHARE_OF_EPOCHS * earlier.epochs)
    relabellings = math.ceil(_SHARE_OF_EPOCHS * earlier.num_relabellings)
    return {
        "epochs": (epochs, f"{_SHARE_OF_EPOCHS:.0%} of the {earlier.epochs} of the run that is continued"),
        "learning_rate": (
            _SHARE_OF_RATE * earlier.learning_rate,
            f"{_SHARE_OF_RATE:.0%} of that run's: the network is trained already",
        ),
        "num_relabellings": (max(relabellings, 2), f"{_SHARE_OF_EPOCHS:.0%} of that run's, the first before the first step"),
    }


def continuation_of(earlier: EarlierRun, images: ImageSet) -> Continuation:
    """Returns the relation of a new run to an earlier one.

    Args:
        earlier: the run that is continued.
        images: the N training images.

    Raises:
        SourceError: the images cannot be matched with those of the earlier run.
    """
    places = places_in_run(images, earlier.labels, setting=f"`continue_from={earlier.path}`")
    theirs = earlier.labels["labels"].astype(np.int64)
    is_gone = np.ones(theirs.shape[1], bool)
    is_gone[places[places >= 0]] = False
    removed = [np.bincount(head[is_gone], minlength=earlier.network.num_clusters) for head in theirs]
    return Continuation(
        earlier.network,
        np.where(places < 0, -1, theirs[:, places]),
        np.stack(removed),
        np.zeros(len(theirs), np.int64),
        earlier.labels.get("cluster_names"),
    )


def start_table(labels: LabelTable, earlier: EarlierRun, continuation: Continuation) -> None:
    """Gives a table the labels and the potentials of an earlier run. New images keep the label that they have, until `take_first_labels`."""
    theirs = continuation.labels
    state = labels.state()
    lam = np.full(labels.num_heads, earlier.labels["lam"], np.float32)
    labels.restore(
        {
            **state,
            "labels": np.where(theirs < 0, state["labels"], theirs),
            "potentials": earlier.labels["potentials"].astype(np.float32),
            "lam": lam,
        }
    )


def take_first_labels(labels: LabelTable, outcome: Sequence[HeadLabels], continuation: Continuation) -> Continuation:
    """Writes the labels that a run begins with, and prints a line for each head; returns the continuation with the number that moved.

    All images are labelled by one transport, from the potentials of the earlier run. If the labels of its images were held instead, each
    cluster would have room for an equal share of the new images only, whatever they show. On the digits, with new images of two classes
    alone, these have a mean log p of -0.8 in this way and of -3.6 with labels held; 6 % of the old labels change, and 5 % where the new
    images are like the old ones.
    """
    moved = continuation.moved_at_start.copy()
    for head in outcome:
        made = head.assignment
        if head.usable:
            labels.assign(head.head, made.labels, made.potentials, made.lam)
        old = continuation.labels[head.head]
        now = labels.labels[head.head]
        moved[head.head] = ((old >= 0) & (old != now)).sum()
        note = "" if made.converged else f"; NOT CONVERGED (marginal error {made.marginal_error})"
        print(
            f"first labels of head {head.head}: {(old < 0).sum()} new images; {moved[head.head]} of {(old >= 0).sum()} others change their "
            f"cluster, {head.seconds:.1f} s{note}",
            flush=True,
        )
    return continuation._replace(moved_at_start=moved)
