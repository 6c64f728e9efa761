"""From logits to the cluster of an image, and how sure the network is of it."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf


class Opinions(NamedTuple):
    """Of each head on each image."""

    cluster: tf.Tensor
    """int64 [B, T]."""
    probability: tf.Tensor
    """float32 [B, T], of that cluster."""
    margin: tf.Tensor
    """float32 [B, T], its probability less that of the best other one: from 0, where two clusters suit alike, to 1; negative only
    where the cluster was given."""


def opinions(
    logits: tf.Tensor, potentials: tf.Tensor | None = None, *, lam: float = 1.0, clusters: tf.Tensor | None = None
) -> Opinions:
    """The most probable cluster under softmax(logits + potentials / lam), its probability and its margin.

    With the potentials of a transport this is the cluster that the transport would give a new image: the argmax of lam log p + potentials.
    The network's probabilities are then those of clusters that are equally frequent, or of the marginals that were asked for; only
    solving on a whole set balances it. Without potentials it is the network's plain opinion.

    Args:
        logits: [B, T, K].
        potentials: [T, K], log alpha of the transport of each head.
        lam: of that transport.
        clusters: int64 [B, T] that are wanted instead, as labels that were balanced exactly.
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
    return Opinions(clusters, probability, probability - others)
