"""Weighted k-nearest-neighbour classification of embeddings."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

_QUERY_ROWS, _BANK_ROWS = 1000, 4096


def knn_accuracy(
    bank: np.ndarray,
    bank_classes: np.ndarray,
    queries: np.ndarray,
    classes: np.ndarray,
    *,
    k: int = 10,
    temperature: float = 0.1,
) -> float:
    """Share of `queries` [M, D] whose class the k nearest of `bank` [N, D] vote for: see `knn_classes`."""
    num_classes = int(max(bank_classes.max(), classes.max())) + 1
    found = knn_classes(bank, bank_classes, queries, num_classes=num_classes, k=k, temperature=temperature)
    return int((found == classes).sum()) / len(queries)


def knn_classes(
    bank: np.ndarray,
    bank_classes: np.ndarray,
    queries: np.ndarray,
    *,
    num_classes: int,
    k: int = 10,
    temperature: float = 0.1,
    bank_rows: int = _BANK_ROWS,
) -> np.ndarray:
    """The classes int64 [M] that the k nearest of `bank` [N, D] give to `queries` [M, D].

    Cosine similarity of L2-normalised embeddings; the vote of a neighbour weighs exp(similarity / temperature): k = 10 and .1 are
    the paper's protocol. Where fewer than k are there, all vote. Beyond its arguments and its result it holds 1000 queries and a block of
    the bank with their squares and similarities, and the votes of these queries: about 16 (1000 + bank_rows) D + 8000 bank_rows +
    8000 (num_classes + 5 k) bytes, at D = 4096 and a thousand classes 400 MB, however large N and M are.

    Args:
        bank: the embeddings [N, D] among which neighbours are searched.
        bank_classes: integers [N] from 0 to num_classes - 1.
        queries: the embeddings [M, D] whose classes are predicted.
        num_classes: C.
        k: neighbours.
        temperature: of the votes.
        bank_rows: rows of the bank that are compared at a time, which changes memory and not the result.

    Raises:
        ValueError: `k` or `bank_rows` is not positive.
    """
    for name, value in (("k", k), ("bank_rows", bank_rows)):
        if not value >= 1:
            raise ValueError(f"`{name}` must be at least 1. Received: {name}={value}")
    found = np.empty(len(queries), np.int64)
    for start in range(0, len(queries), _QUERY_ROWS):
        rows = slice(start, start + _QUERY_ROWS)
        similarity, nearest = _nearest(_normalised(queries[rows]), bank, k, bank_rows)
        # a vote for each neighbour, by (query, class)
        ballots = np.arange(len(nearest))[:, np.newaxis] * num_classes + bank_classes[nearest]
        weights = np.exp(similarity / temperature)
        votes = np.bincount(ballots.ravel(), weights.ravel(), minlength=len(nearest) * num_classes)
        found[rows] = votes.reshape(-1, num_classes).argmax(axis=1)
    return found


def _nearest(queries: tf.Tensor, bank: np.ndarray, k: int, bank_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Similarities float32 and places int64 in the bank, both [q, min(k, N)], the nearest first; of equal ones the first."""
    similarity = tf.zeros([len(queries), 0])
    nearest = tf.zeros([len(queries), 0], tf.int64)
    for start in range(0, len(bank), bank_rows):
        block = tf.matmul(queries, _normalised(bank[start : start + bank_rows]), transpose_b=True)
        values, places = tf.math.top_k(block, k=min(k, block.shape[1]))
        # those of before come first, as they do in the bank: top_k keeps the order of equal ones
        values = tf.concat([similarity, values], axis=1)
        places = tf.concat([nearest, tf.cast(places, tf.int64) + start], axis=1)
        similarity, order = tf.math.top_k(values, k=min(k, values.shape[1]))
        nearest = tf.gather(places, order, batch_dims=1)
    return similarity.numpy(), nearest.numpy()


def _normalised(vectors: np.ndarray) -> tf.Tensor:
    return tf.math.l2_normalize(tf.constant(vectors, tf.float32), axis=1)
