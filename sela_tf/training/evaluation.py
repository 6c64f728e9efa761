"""The verdict on a run: its figures, taken on the images that its settings choose."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from sela_tf.compat.activity import Activity
from sela_tf.evaluation.judging import Judging
from sela_tf.evaluation.metrics import no_metrics
from sela_tf.evaluation.outputs import EvaluationOutputs, evaluation_outputs
from sela_tf.evaluation.protocol import LEFT_OUT, EvaluationProtocol, evaluation_images, evaluation_protocol
from sela_tf.settings.training import SelaConfig
from sela_tf.training.images import Data, augmentation
from sela_tf.training.initial_state import description_of, first_network


def protocol_of(config: SelaConfig, data: Data) -> EvaluationProtocol:
    """Returns the protocol that says which images the figures of a run are taken on."""
    return evaluation_protocol(config.evaluate, len(data.train), len(data.held_out), seed=config.seed)


class Verdict(NamedTuple):
    """The figures of a run, and the outputs of its network on the images that they are taken on."""

    figures: dict[str, dict[str, Any]]
    """The objects of results.json that hold figures."""
    outputs: EvaluationOutputs | None
    """The outputs of the trained network, without embeddings, for the report; None where nothing was evaluated."""


def outputs_of_run(
    config: SelaConfig,
    data: Data,
    model: keras.Model,
    *,
    potentials: np.ndarray,
    lam: float,
    strategy: tf.distribute.Strategy | None = None,
) -> EvaluationOutputs | None:
    """Runs a trained network over the images that it is judged by; the arguments are those of `judge`. None where nothing is judged."""
    protocol = protocol_of(config, data)
    if protocol.kind == "none":
        return None
    images = evaluation_images(data.train, data.held_out, data.size, protocol)
    return evaluation_outputs(model, images, strategy=strategy, potentials=potentials, lam=lam)


def judge(
    config: SelaConfig,
    data: Data,
    model: keras.Model,
    *,
    labels: np.ndarray,
    potentials: np.ndarray,
    lam: float,
    strategy: tf.distribute.Strategy | None = None,
) -> Verdict:
    """Judges a trained network and its labels beside the untrained network, raw pixels and chance.

    Args:
        config: the settings of the run.
        data: all images of the run; the protocol chooses those that count.
        model: the trained network.
        labels: the labels of the final transport, integers [T, N].
        potentials: the potentials of the final transport, [T, K].
        lam: the lambda of the final transport.
        strategy: the strategy that the model was built under; None for one device.
    """
    protocol = protocol_of(config, data)
    if protocol.kind == "none":
        networks = ("trained", "untrained", "raw_pixels", "chance", "training_labels")
        derived = ("random_clusters", "intervals", "compared", "without_classes")
        return Verdict({**{name: no_metrics() for name in networks}, **{name: {"reason": LEFT_OUT} for name in derived}}, None)
    images = evaluation_images(data.train, data.held_out, data.size, protocol)
    judging = Judging(
        images, augmentation=augmentation(config), num_clusters=config.num_clusters, seed=config.seed, strategy=strategy
    )
    sampled = labels if protocol.training_sample is None else labels[:, protocol.training_sample]
    with Activity("evaluation", total=4) as shown:
        shown.begin("trained network")
        trained = judging.network(model, potentials=potentials, lam=lam)
        shown.begin("untrained network")
        first = first_network(config, description_of(config, data), strategy or tf.distribute.get_strategy())
        untrained = judging.network(first, fill_statistics=True)
        shown.begin("raw pixels")
        raw_pixels = judging.raw_pixels()
        shown.begin("intervals")
        figures = judging.figures(trained=trained, untrained=untrained, raw_pixels=raw_pixels, labels=sampled)
    return Verdict(figures, trained.outputs)
