"""Weighted k-nearest-neighbour classification of embeddings."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf

_QUERY_ROWS, _BANK_ROWS = 1000, 4096


class Neighbours(NamedTuple):
    """The k nearest neighbours of each of N images, the nearest first."""

    nearest: np.ndarray
    """Rows of the neighbours, int64 [N, k]."""
    similarity: np.ndarray
    """Similarity of the two, float32 [N, k]: the cosine of embeddings, for one."""


def neighbours(embedding: np.ndarray, *, k: int = 10) -> Neighbours:
    """Finds the nearest neighbours of each image among the others, by the cosine of their embeddings.

    Blocks of images are compared with blocks of images, so that memory does not grow with N^2; time does.

    Args:
        embedding: embeddings [N, D].
        k: number of neighbours; at most N - 1 are found.
    """
    return without_themselves(nearest_in(embedding, embedding, k=k + 1), np.arange(len(embedding)))


def without_themselves(found: Neighbours, own: np.ndarray) -> Neighbours:
    """Returns one neighbour less of each of N images, which is the image itself where it is among them.

    Args:
        found: the k + 1 nearest images of each, [N, k + 1].
        own: the row of each image among those that were searched, integers [N]; -1 where it is not there.
    """
    others = found.nearest != own[:, np.newaxis]
    # An image with more than k copies need not be among its own neighbours: then the last one goes.
    others[others.all(axis=1), -1] = False
    return Neighbours(*(part[others].reshape(len(others), found.nearest.shape[1] - 1) for part in found))


def knn_accuracy(
    bank: np.ndarray,
    bank_classes: np.ndarray,
    queries: np.ndarray,
    classes: np.ndarray,
    *,
    k: int = 10,
    temperature: float = 0.1,
) -> float:
    """Returns the accuracy, in [0, 1], of a weighted kNN classifier (`knn_classes`) on held-out embeddings.

    Args:
        bank: embeddings [N, D] among which neighbours are searched.
        bank_classes: integers [N], from 0.
        queries: held-out embeddings [M, D].
        classes: integers [M], from 0.
        k: number of neighbours.
        temperature: temperature of the votes.

    Raises:
        ValueError: `k` is not positive.
    """
    correct = knn_correct(bank, bank_classes, queries, classes, k=k, temperature=temperature)
    return int(correct.sum()) / len(queries)


def knn_correct(
    bank: np.ndarray,
    bank_classes: np.ndarray,
    queries: np.ndarray,
    classes: np.ndarray,
    *,
    k: int = 10,
    temperature: float = 0.1,
) -> np.ndarray:
    """Returns the queries whose class `knn_accuracy` finds, bool [M]; the arguments are the same."""
    num_classes = int(max(bank_classes.max(), classes.max())) + 1
    return knn_classes(bank, bank_classes, queries, num_classes=num_classes, k=k, temperature=temperature) == classes


def nearest_images(bank: np.ndarray, queries: np.ndarray, *, k: int = 10) -> np.ndarray:
    """Returns the rows of the k nearest neighbours of each query by the cosine, int64 [M, min(k, N)], the nearest first.

    Args:
        bank: embeddings [N, D] among which neighbours are searched.
        queries: embeddings [M, D].
        k: number of neighbours.
    """
    return nearest_in(bank, queries, k=k).nearest


def nearest_in(bank: np.ndarray, queries: np.ndarray, *, k: int = 10) -> Neighbours:
    """Returns the rows of `nearest_images` and their similarities; a query that is in the bank is its own neighbour."""
    blocks = [
        _nearest(_normalised(queries[start : start + _QUERY_ROWS]), bank, k, _BANK_ROWS)
        for start in range(0, len(queries), _QUERY_ROWS)
    ]
    similarity, nearest = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    return Neighbours(nearest, similarity)


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
    """Returns the class of each of `queries` by a weighted vote of its k nearest neighbours.

    The similarity is the cosine. The vote of a neighbour weighs exp(similarity / temperature). The defaults k = 10 and .1 are the paper's
    protocol. A bank of fewer than k rows votes as a whole.

    Memory does not grow with N or M: about 16 (1000 + bank_rows) D + 8000 bank_rows + 8000 (num_classes + 5 k) bytes beyond the arguments
    and the result, which is 400 MB for D = 4096 and a thousand classes.

    Args:
        bank: embeddings [N, D] among which neighbours are searched.
        bank_classes: integers [N] from 0 to num_classes - 1.
        queries: embeddings [M, D] to classify.
        num_classes: number of classes C.
        k: number of neighbours.
        temperature: temperature of the votes.
        bank_rows: rows of the bank that are compared at a time. It changes the memory, not the result.

    Returns:
        Classes int64 [M].

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
        # One bin for each (query, class) sums the votes of all queries in a single call.
        ballots = np.arange(len(nearest))[:, np.newaxis] * num_classes + bank_classes[nearest]
        weights = np.exp(similarity / temperature)
        votes = np.bincount(ballots.ravel(), weights.ravel(), minlength=len(nearest) * num_classes)
        found[rows] = votes.reshape(-1, num_classes).argmax(axis=1)
    return found


def _nearest(queries: tf.Tensor, bank: np.ndarray, k: int, bank_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the nearest rows of the bank for each of `queries` [Q, D], normalised.

    Returns:
        Similarities float32 and bank indices int64, both [Q, min(k, N)], the nearest first. Ties go to the lower index.
    """
    similarity = tf.zeros([len(queries), 0])
    nearest = tf.zeros([len(queries), 0], tf.int64)
    for start in range(0, len(bank), bank_rows):
        block = tf.matmul(queries, _normalised(bank[start : start + bank_rows]), transpose_b=True)
        values, places = tf.math.top_k(block, k=min(k, block.shape[1]))
        # `top_k` keeps the order of equal values: earlier rows of the bank must come first.
        values = tf.concat([similarity, values], axis=1)
        places = tf.concat([nearest, tf.cast(places, tf.int64) + start], axis=1)
        similarity, order = tf.math.top_k(values, k=min(k, values.shape[1]))
        nearest = tf.gather(places, order, batch_dims=1)
    return similarity.numpy(), nearest.numpy()


def _normalised(vectors: np.ndarray) -> tf.Tensor:
    """Returns `vectors` [N, D] as float32, each row divided by its L2 norm."""
    return tf.math.l2_normalize(tf.constant(vectors, tf.float32), axis=1)
