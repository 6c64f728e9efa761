"""The checkpoint that a stopped run goes on from: found, held to the images and the release, and put back."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from sela_tf.compat.releases import RELEASE, RELEASES_WITHOUT_RECORD
from sela_tf.files import saves
from sela_tf.models.finite import DivergedError, not_finite
from sela_tf.runs.names import LABELS, WEIGHTS
from sela_tf.runs.workdir import Workdir
from sela_tf.settings.fields import ConfigError
from sela_tf.training.experiment import Experiment
from sela_tf.transport.errors import NotFiniteError


def newest_checkpoint(directory: Workdir) -> saves.Checkpoint | None:
    """Returns the newest whole checkpoint; None for a run that begins.

    Raises:
        ConfigError: the run has begun, and its checkpoints are gone or damaged.
    """
    if directory.restart:
        return None
    saved, passed_over = saves.load_newest(directory.checkpoints)
    while saved is not None and (wrong := _not_finite(saved.arrays)):
        # Earlier versions saved what had diverged.
        passed_over.append(f"step {saved.step} has numbers that are not finite ({wrong[0]})")
        saved, damaged = saves.load_newest(directory.checkpoints, before=saved.step)
        passed_over += damaged
    for line in passed_over:
        print(f"checkpoint passed over: {line}", flush=True)
    if saved is None and (passed_over or directory.has_begun):
        raise ConfigError(
            f"`workdir={directory.path}`: the run has begun, and no checkpoint of it is there and whole (in {directory.checkpoints}): put one back, "
            "name another directory, or begin anew in this one with `restart`"
        )
    return saved


def check_finite(state: Mapping[str, np.ndarray], step: int) -> None:
    """Checks that what a checkpoint will hold of the network, the optimizer and the potentials are finite numbers.

    Raises:
        DivergedError: they are not.
    """
    if wrong := _not_finite(state):
        raise DivergedError(
            f"By step {step} {len(wrong)} of {len(state)} arrays of the training are not finite, such as {wrong[0]}"
        )


@contextlib.contextmanager
def way_out_of_divergence(directory: Workdir) -> Iterator[None]:
    """Adds to the error of a training that diverges in the context what is safe and how to go on.

    Raises:
        DivergedError: the training diverged.
    """
    try:
        yield
    except (DivergedError, NotFiniteError) as error:
        meta = saves.newest_meta(directory.checkpoints)
        kept = f"The checkpoint of step {meta['step']} is whole. " if meta else ""
        lower = f"`learning_rate={directory.config.learning_rate / 10:g}`"
        raise DivergedError(
            f"{error}. {kept}A run keeps its learning rate: begin anew with a lower one, by `restart` and {lower}, or in another directory"
        ) from error


def _not_finite(state: Mapping[str, np.ndarray]) -> list[str]:
    """Returns the names of the arrays of a checkpoint that must be finite and are not."""
    places = ("model/", "optimizer/", "table/potentials")
    return not_finite({name: values for name, values in state.items() if name.startswith(places)})


def put_back(directory: Workdir | None, experiment: Experiment, saved: saves.Checkpoint | None) -> int:
    """Puts the state of a checkpoint back, if there is one; returns the steps that were taken.

    A worker that is not the chief has no directory: the chief has looked at the release, and told all that it is theirs.

    Raises:
        ConfigError: the checkpoint is of another release of TensorFlow.
        SourceError: the data are not those of the run any more.
    """
    if saved is not None:
        if directory is not None:
            _check_same_release(saved.meta, directory)
        experiment.provenance.go_on_from(saved, workdir="of worker 0" if directory is None else directory.path)
    # What was accepted once is not accepted for ever.
    experiment.config = dataclasses.replace(experiment.config, accept_changed_data=False)
    if saved is None:
        return 0
    experiment.restore(saved.arrays)
    return saved.step


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
