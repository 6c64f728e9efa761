"""The state that a training starts with: its labels, and its network before the first step."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from sela_tf.data.label_files import read_run_labels, read_run_shape
from sela_tf.models.backbones.applications import IMAGENET, PREFIX, MissingWeightsError, imagenet_weights
from sela_tf.models.build import cut_at
from sela_tf.models.keras_files import check_keras_file
from sela_tf.models.layer_names import EMBEDDING, NORMALIZATION
from sela_tf.runs.names import FLAGS, NETWORK, WEIGHTS
from sela_tf.runs.network import NetworkDescription, describe_network, load_run, read_description
from sela_tf.self_labelling.label_table import LabelTable
from sela_tf.settings.fields import CHOSEN, ConfigError
from sela_tf.settings.training import SelaConfig
from sela_tf.training.earlier_run import settings_to_continue
from sela_tf.training.images import Data

KERAS_FILE = ".keras"
"""The ending of the name of a Keras model on disk."""


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
    if weights == IMAGENET:
        if config.backbone is CHOSEN or not config.backbone.startswith(PREFIX):
            raise ConfigError(f"`backbone_weights={weights}` is for `backbone={PREFIX}NAME`, such as {PREFIX}MobileNetV2: name one")
        _published_weights(config)
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
            if own not in (CHOSEN, other):
                raise ConfigError(f"`backbone_weights={weights}` is of a run with `{name}={other}`. Received: `{name}={own}`")
    elif config.backbone is CHOSEN:
        raise ConfigError(f"`backbone_weights={weights}` is of a network that it does not name: give its `backbone`")
    elif not config.backbone.startswith(PREFIX) and not weights.endswith(KERAS_FILE):
        raise ConfigError(
            f"`backbone_weights={weights}`: weights of {config.backbone} are read from a Keras model, NAME{KERAS_FILE}, or from the directory of "
            f"a finished run: give its {WEIGHTS}, beside its {FLAGS} or {NETWORK}"
        )


def _published_weights(config: SelaConfig) -> str:
    """Returns the file with the weights that Keras publishes of the backbone.

    Raises:
        ConfigError: it is not in the cache of Keras, and `download` is not given.
    """
    try:
        return imagenet_weights(config.backbone.removeprefix(PREFIX), download=config.download)
    except MissingWeightsError as error:
        raise ConfigError(
            f"`backbone_weights={IMAGENET}`: {error}. Put it there, or let Keras do so with `download=True`"
        ) from error


def settings_of_files(config: SelaConfig) -> dict[str, tuple[Any, str]]:
    """Returns the settings that follow from the files of `backbone_weights`, `labels_from` and `continue_from`, each with its reason.

    Raises:
        ConfigError: such a file cannot be read.
    """
    found: dict[str, tuple[Any, str]] = {}
    if (run := _run_of_weights(config)) is not None:
        theirs, why = read_description(run), "as the run of `backbone_weights` has it"
        found |= {"backbone": (theirs.backbone, why), "width": (theirs.width, why)}
    if config.labels_from:
        heads, clusters = read_run_shape(config.labels_from)
        why = "as `labels_from` has them"
        found |= {"num_heads": (heads, why), "num_clusters": (clusters, why)}
    if config.continue_from:
        found |= settings_to_continue(config.continue_from)
    return found


def first_network(config: SelaConfig, description: NetworkDescription, strategy: tf.distribute.Strategy) -> keras.Model:
    """Builds a network before its first step, the same for the same seed.

    Raises:
        ConfigError: the weights that the backbone is to start from cannot be read, or do not fit the images.
    """
    check_backbone_weights(config)
    weights, run = config.backbone_weights, _run_of_weights(config)
    keras.utils.set_random_seed(config.seed)
    with strategy.scope():
        own_file = run is not None or weights.endswith(KERAS_FILE)
        network = description.build(weights="" if own_file else _published_weights(config) if weights == IMAGENET else weights)
        if own_file and run is None:
            _take_layers(network, config)
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


def _take_layers(network: keras.Model, config: SelaConfig) -> None:
    """Gives the backbone of a network the weights that the layers of the same names have in a Keras model on disk.

    Raises:
        ConfigError: the file is no Keras model, or lacks layers of the backbone.
    """
    setting = f"`backbone_weights={config.backbone_weights}`"
    try:
        # Code in the file is not run: it is refused here, whatever this release of Keras does.
        check_keras_file(config.backbone_weights)
        theirs = dict(_layers(keras.models.load_model(config.backbone_weights, compile=False)))
    except (ValueError, OSError, TypeError, KeyError, AttributeError, IndexError, RuntimeError) as error:
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise ConfigError(f"{setting} is not a Keras model, or not a whole one ({why})") from error
    # The inputs are normalised by the statistics of these images.
    own = [(name, layer) for name, layer in _layers(cut_at(network, EMBEDDING)) if layer.weights and name != NORMALIZATION]

    def shapes(layer: keras.Layer) -> list[tuple[int, ...]]:
        return [tuple(weight.shape) for weight in layer.weights]

    missing = [name for name, layer in own if name not in theirs or shapes(theirs[name]) != shapes(layer)]
    if missing:
        raise ConfigError(
            f"{setting} lacks {len(missing)} of the {len(own)} layers with weights of `backbone={config.backbone}`, such as {missing[0]!r}: its "
            "layers must have the names and the shapes of the backbone's"
        )
    for name, layer in own:
        layer.set_weights(theirs[name].get_weights())


def _layers(model: keras.Model) -> Iterator[tuple[str, keras.Layer]]:
    """Yields the layers of a model by name, those of the models within it included."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _layers(layer)
        else:
            yield layer.name, layer


def _run_of_weights(config: SelaConfig) -> pathlib.Path | None:
    """Returns the directory of the run whose weights the backbone is to start from; None for other weights, or none."""
    path = pathlib.Path(config.backbone_weights).expanduser()
    of_a_run = path.name == WEIGHTS and any((path.parent / name).exists() for name in (NETWORK, FLAGS))
    return path.parent if of_a_run else None
