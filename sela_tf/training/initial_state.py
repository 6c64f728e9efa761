"""The state that a training starts with: its labels, and its network before the first step."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from sela_tf.data.label_files import read_known_labels, read_run_labels
from sela_tf.runs.network import NetworkDescription, describe_network
from sela_tf.self_labelling.label_table import LabelTable
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
    return describe_network(config, shape, tuple(data.mean.tolist()), tuple(data.variance.tolist()))


def first_network(config: SelaConfig, description: NetworkDescription, strategy: tf.distribute.Strategy) -> keras.Model:
    """Builds a network before its first step, the same for the same seed."""
    keras.utils.set_random_seed(config.seed)
    with strategy.scope():
        return description.build(weights=config.backbone_weights)
