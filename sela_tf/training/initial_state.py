"""The state that a training starts with: its labels, and its network before the first step."""

from __future__ import annotations

import os
import pathlib

import keras
import numpy as np
import tensorflow as tf

from sela_tf.data.label_files import read_known_labels, read_run_labels
from sela_tf.models.backbones.applications import PREFIX
from sela_tf.models.build import cut_at
from sela_tf.models.layer_names import EMBEDDING
from sela_tf.runs.names import FLAGS, NETWORK, WEIGHTS
from sela_tf.runs.network import NetworkDescription, describe_network, load_run, read_description
from sela_tf.self_labelling.label_table import LabelTable
from sela_tf.settings.fields import ConfigError
from sela_tf.settings.training import SelaConfig
from sela_tf.training.images import Data, tell


def label_table(config: SelaConfig, data: Data, strategy: tf.distribute.Strategy) -> LabelTable:
    """Returns the table of the labels that training starts with: random ones, or another run's; on every device of the strategy.

    Raises:
        SourceError: the other run's labels are not of these images.
    """
    initial = None
    if config.labels_from:
        initial = read_run_labels(config.labels_from, data.train, config.num_heads, config.num_clusters)
    with strategy.scope():
        return LabelTable(config.num_heads, config.num_clusters, len(data.train), seed=config.seed, initial=initial)


def known_labels(config: SelaConfig, data: Data) -> np.ndarray | None:
    """Returns the clusters that are known, int64 [N] with -1 for the others; None where no file names any.

    Raises:
        SourceError: the file cannot be read so.
    """
    if not config.known_labels:
        return None
    known = read_known_labels(config.known_labels, data.train, config.num_clusters, others=[data.held_out, *data.left_out])
    if known.num_left_out:
        tell(f"`known_labels`: {known.num_left_out} labels are of images that are not trained on, and are left out")
    return known.labels


def description_of(config: SelaConfig, data: Data) -> NetworkDescription:
    """Returns the description of the network that the settings ask for, for these images."""
    shape = (*data.size, data.train.channels)
    return describe_network(config, shape, tuple(data.mean.tolist()), tuple(data.variance.tolist()), data.train.rules)


def check_backbone_weights(config: SelaConfig) -> None:
    """Checks that the weights that the backbone is to start from can be its own, before any image is read.

    Raises:
        ConfigError: the file is missing, or is of another network than the settings ask for.
    """
    weights, run = config.backbone_weights, _run_of_weights(config)
    if not weights:
        return
    if not os.path.isfile(weights):
        raise ConfigError(f"`backbone_weights={weights}`: there is no such file")
    if run is not None:
        try:
            theirs = read_description(run)
        except ConfigError as error:
            raise ConfigError(f"`backbone_weights={weights}`: {error}") from error
        for name in ("backbone", "width"):
            own, other = getattr(config, name), getattr(theirs, name)
            if own != other:
                raise ConfigError(f"`backbone_weights={weights}` is of a run with `{name}={other}`. Received: `{name}={own}`")
    elif not config.backbone.startswith(PREFIX):
        raise ConfigError(
            f"`backbone_weights={weights}`: weights of {config.backbone} are read from the directory of a finished run alone: give its "
            f"{WEIGHTS}, beside its {FLAGS} or {NETWORK}"
        )


def first_network(config: SelaConfig, description: NetworkDescription, strategy: tf.distribute.Strategy) -> keras.Model:
    """Builds a network before its first step, the same for the same seed.

    Raises:
        ConfigError: the weights that the backbone is to start from cannot be read, or do not fit the images.
    """
    check_backbone_weights(config)
    run = _run_of_weights(config)
    keras.utils.set_random_seed(config.seed)
    with strategy.scope():
        network = description.build(weights="" if run else config.backbone_weights)
        if run:
            try:
                trained = load_run(run)
            except ConfigError as error:
                raise ConfigError(f"`backbone_weights={config.backbone_weights}`: {error}") from error
            try:
                # The heads stay new.
                cut_at(network, EMBEDDING).set_weights(cut_at(trained, EMBEDDING).get_weights())
            except ValueError as error:
                raise ConfigError(
                    f"`backbone_weights={config.backbone_weights}` is of inputs of shape {trained.input.shape[1:]}, and does not fit inputs of "
                    f"shape {network.input.shape[1:]}"
                ) from error
    return network


def _run_of_weights(config: SelaConfig) -> pathlib.Path | None:
    """Returns the directory of the run whose weights the backbone is to start from; None for other weights, or none."""
    path = pathlib.Path(config.backbone_weights).expanduser()
    of_a_run = path.name == WEIGHTS and any((path.parent / name).exists() for name in (NETWORK, FLAGS))
    return path.parent if of_a_run else None
