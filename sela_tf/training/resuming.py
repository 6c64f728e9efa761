"""The checkpoint that a stopped run goes on from: found, held to the images and the release, and put back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sela_tf.compat.releases import RELEASE, RELEASES_WITHOUT_RECORD
from sela_tf.runs import checkpoint
from sela_tf.runs.names import LABELS, WEIGHTS
from sela_tf.runs.workdir import Workdir
from sela_tf.settings.fields import ConfigError
from sela_tf.training.experiment import Experiment


def newest_checkpoint(directory: Workdir) -> checkpoint.Checkpoint | None:
    """Returns the newest whole checkpoint; None for a run that begins."""
    saved, passed_over = checkpoint.load_newest(directory.checkpoints)
    for line in passed_over:
        print(f"checkpoint passed over: {line}", flush=True)
    if saved is None and (passed_over or directory.has_network):
        raise ConfigError(
            f"`workdir={directory.path}`: its checkpoints are gone or damaged, so the run cannot be continued: name another directory"
        )
    return saved


def put_back(directory: Workdir, experiment: Experiment, saved: checkpoint.Checkpoint | None) -> int:
    """Puts the state of a checkpoint back, if there is one; returns the steps that were taken."""
    if saved is None:
        return 0
    _check_same_release(saved.meta, directory)
    _check_same_images(experiment, saved.meta, directory.path)
    experiment.restore(saved.arrays)
    return saved.step


def _check_same_images(experiment: Experiment, meta: Mapping[str, Any], workdir: object) -> None:
    """Refuses to continue a run on images that are not its own.

    Args:
        experiment: the experiment with the present images.
        meta: the metadata of the checkpoint.
        workdir: the run's directory, for the message.

    Raises:
        ConfigError: the images were changed.
    """
    if meta["data_fingerprint"] != experiment.fingerprint:
        raise ConfigError(
            f"`workdir={workdir}` was trained on {meta['num_examples']} images, and those of "
            f"`dataset={experiment.config.dataset}` ({experiment.labels.num_examples}) are not the same any more: restore them, or name another "
            "directory"
        )


def _check_same_release(meta: Mapping[str, Any], directory: Workdir) -> None:
    """Refuses to continue a run on another release of TensorFlow, whose Keras may lay out the state otherwise and rounds otherwise.

    Args:
        meta: the metadata of the checkpoint.
        directory: the run's directory, for the message.

    Raises:
        ConfigError: the checkpoint was written on another release.
    """
    written = (meta["tensorflow"],) if "tensorflow" in meta else RELEASES_WITHOUT_RECORD
    if RELEASE in written:
        return
    path = directory.path
    finished = f"`backbone_weights={path / WEIGHTS}`, and with `num_relabellings=0` also `labels_from={path / LABELS}`"
    raise ConfigError(
        f"`workdir={path}` holds a checkpoint of TensorFlow {' or '.join(written)}, and this is {RELEASE}: continue it there"
        + (
            f", or start from it in another directory: {finished}"
            if directory.has_network
            else "; a finished run can be started from anywhere"
        )
    )
