"""The cluster of an image from a network's logits, and how certain it is."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf


class Predictions(NamedTuple):
    """The predictions of each head for each image."""

    cluster: tf.Tensor
    """Cluster, int64 [B, T]."""
    probability: tf.Tensor
    """Probability of that cluster, float32 [B, T]."""
    margin: tf.Tensor
    """Probability of that cluster less that of the best other one, float32 [B, T]: 0 for a tie, 1 for certainty. It is negative only
    where the cluster was given and is not the most probable one."""


def predictions(
    logits: tf.Tensor, potentials: tf.Tensor | None = None, *, lam: float = 1.0, clusters: tf.Tensor | None = None
) -> Predictions:
    """Returns the most probable cluster under softmax(logits + potentials / lam), its probability and its margin.

    With the potentials of a transport this is the cluster that the transport would give a new image: the argmax of lam log p + potentials.
    Its probabilities are corrected for a prior under which clusters have equal shares, or those that `marginals` asked for. The clusters
    of a set of images are then about balanced; only a transport solved on the whole set balances them exactly. Without potentials it is
    the network's plain argmax.

    Args:
        logits: logits [B, T, K].
        potentials: potentials [T, K], log alpha of each head's transport; None for no correction.
        lam: lambda of that transport.
        clusters: int64 [B, T], clusters to use instead of the most probable ones, such as labels that were balanced exactly.
    """
    logits = tf.cast(logits, tf.float32)
    if potentials is not None:
        logits += tf.cast(potentials, tf.float32) / lam
    probabilities = tf.nn.softmax(logits)
    if clusters is None:
        clusters = tf.argmax(probabilities, axis=-1)
    probability = tf.gather(probabilities, clusters, batch_dims=2)
    chosen = tf.one_hot(clusters, probabilities.shape[-1], on_value=True, off_value=False)
    others = tf.reduce_max(tf.where(chosen, 0.0, probabilities), axis=-1)
    return Predictions(clusters, probability, probability - others)
