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
    """float32 [B, T], its probability less that of the next one: from 0, where two clusters suit alike, to 1."""


def opinions(logits: tf.Tensor, potentials: tf.Tensor | None = None, *, lam: float = 1.0) -> Opinions:
    """The most probable cluster under softmax(logits + potentials / lam), its probability and its margin.

    With the potentials of a transport this is the cluster that the transport would give a new image: the argmax of lam log p + potentials.
    The network's probabilities are then those of clusters that are equally frequent, or of the marginals that were asked for; only
    solving on a whole set balances it. Without potentials it is the network's plain opinion.

    Args:
        logits: [B, T, K].
        potentials: [T, K], log alpha of the transport of each head.
        lam: of that transport.
    """
    logits = tf.cast(logits, tf.float32)
    if potentials is not None:
        logits += tf.cast(potentials, tf.float32) / lam
    probabilities, clusters = tf.math.top_k(tf.nn.softmax(logits), k=2)
    return Opinions(
        cluster=tf.cast(clusters[..., 0], tf.int64),
        probability=probabilities[..., 0],
        margin=probabilities[..., 0] - probabilities[..., 1],
    )
