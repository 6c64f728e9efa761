"""Weighted k-nearest-neighbour classification of frozen features."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

_BLOCK_ROWS = 1000


def knn_accuracy(
    train_features: np.ndarray,
    train_classes: np.ndarray,
    features: np.ndarray,
    classes: np.ndarray,
    *,
    k: int = 10,
    temperature: float = 0.1,
) -> float:
    """Share of `features` [M, D] whose class the k nearest of `train_features` [N, D] vote for.

    Cosine similarity of L2-normalised features; the vote of a neighbour weighs exp(similarity / temperature): k = 10 and .1 are
    the paper's protocol.
    """
    if not k >= 1:
        raise ValueError(f"`k` must be at least 1. Received: k={k}")
    num_classes = int(max(train_classes.max(), classes.max())) + 1
    bank = tf.math.l2_normalize(tf.constant(train_features, tf.float32), axis=1)
    votes_of = tf.one_hot(train_classes, num_classes)
    correct = 0
    for start in range(0, len(features), _BLOCK_ROWS):
        queries = tf.math.l2_normalize(tf.constant(features[start : start + _BLOCK_ROWS], tf.float32), axis=1)
        similarity, nearest = tf.math.top_k(tf.matmul(queries, bank, transpose_b=True), k=min(k, len(train_features)), sorted=False)
        votes = tf.reduce_sum(tf.exp(similarity / temperature)[..., tf.newaxis] * tf.gather(votes_of, nearest), axis=1)
        correct += int((tf.argmax(votes, axis=1).numpy() == classes[start : start + _BLOCK_ROWS]).sum())
    return correct / len(features)
