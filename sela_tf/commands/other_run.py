"""The agreement of a run's clusters with those of another run of the same images, such as one with another seed."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from sela_tf.evaluation.bootstrap import bootstrap_interval
from sela_tf.evaluation.outputs import NetworkPasses, Passes, evaluation_batches
from sela_tf.evaluation.protocol import EvaluationImages, small_samples
from sela_tf.evaluation.raw_pixels import RawPixels
from sela_tf.evaluation.stability import Agreement, clusterings_agreement
from sela_tf.models.inference import BatchedInference
from sela_tf.runs.network import read_description
from sela_tf.settings.fields import ConfigError
from sela_tf.settings.training import SelaConfig
from sela_tf.training.initial_state import first_network


class OneRun(NamedTuple):
    """A finished run whose clusters are compared with another one's."""

    workdir: str
    """The directory of the run."""
    config: SelaConfig
    """The settings of the run."""
    model: keras.Model
    """The trained network."""
    images: EvaluationImages
    """The images that it is evaluated on."""


def compare_runs(one: OneRun, other: OneRun, strategy: tf.distribute.Strategy) -> dict[str, Any]:
    """Compares the clusters of the same held-out images by two runs, head by head, and those that nothing was learned for.

    Args:
        one: a run.
        other: another one.
        strategy: the strategy that the networks were built under.

    Returns:
        "workdir" of the other run; "agreement": adjusted mutual information, mean of the heads, of the "trained" networks, of both
        "untrained" ones, and of k-means on "raw_pixels" with the seeds of the runs; "intervals" of these.

    Raises:
        ConfigError: the runs hold out other images.
    """
    held_out = [run.images.held_out.fingerprint() for run in (one, other)]
    if held_out[0] != held_out[1]:
        raise ConfigError(
            f"`other_run={other.workdir}` holds out {len(other.images.held_out)} images, which are not the {len(one.images.held_out)} of "
            f"`workdir={one.workdir}`: name a run of the same images, with the same `eval_fraction` and `evaluate`"
        )
    clusters = [_clusters(run, strategy) for run in (one, other)]
    heads = min(one.config.num_heads, other.config.num_heads)
    agreement: dict[str, Agreement] = {}
    for name in clusters[0]:
        agreement[name] = clusterings_agreement(*(each[name][:heads] for each in clusters), seed=one.config.seed)
    return {
        "workdir": other.workdir,
        "agreement": {name: found.value for name, found in agreement.items()},
        "intervals": {name: bootstrap_interval(found.value, found.resampled, high=1.0) for name, found in agreement.items()},
    }


def _clusters(run: OneRun, strategy: tf.distribute.Strategy) -> dict[str, np.ndarray]:
    """Returns the clusters [T, M] of the held-out images by the trained and the untrained network, and by k-means on raw pixels."""
    batches = evaluation_batches(run.images)
    untrained = first_network(run.config, read_description(run.workdir), strategy)
    BatchedInference(untrained, strategy).fill_moving_statistics(batches.training)
    raw = RawPixels(
        batches.training,
        batches.num_training,
        rows=small_samples(run.images, seed=run.config.seed).training,
        num_clusters=run.config.num_clusters,
        seed=run.config.seed,
    )
    passes: dict[str, Passes] = {
        "trained": NetworkPasses(run.model, strategy=strategy, embedding=False),
        "untrained": NetworkPasses(untrained, strategy=strategy, embedding=False),
        "raw_pixels": raw,
    }
    return {name: each.outputs(batches.held_out, batches.num_held_out).clusters for name, each in passes.items()}
