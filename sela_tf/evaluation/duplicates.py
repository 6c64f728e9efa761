"""Groups of images that are the same, or nearly the same."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from sela_tf.evaluation.picture_fit import picture_differences

_USUAL = 2
"""The place, from 0, of the neighbour that tells how much pictures of a kind differ: a pair and a third picture may be one."""
_RATIO, _DIFFERENCE = 0.35, 0.05
"""Near-duplicates differ by less than these: as a share of what such pictures differ by, and as a share of the variance."""
_SAME = 1e-6
"""Cosine distance of embeddings that differ by rounding only."""


class Duplicates(NamedTuple):
    """A group of images that are the same."""

    images: tuple[int, ...]
    """Rows of at least two images, increasing."""
    kind: str
    """The sort of the group: "exact" if all have the same pixels, otherwise "near"."""
    spans: bool
    """True if some of them are held out and some are not."""
    difference: float
    """The difference of the most similar pair, relative to that of other images of its kind; 0 for the same pixels."""


def find_duplicates(
    nearest: np.ndarray, *, embedding: np.ndarray, thumbnails: np.ndarray | None, held_out: np.ndarray
) -> list[Duplicates]:
    """Finds images that are the same, the surest groups first.

    Two images are nearly the same if one of them, moved, scaled, sharpened and brightened a little, is the other one, and if they differ
    much less from each other than from other images that are like them. Images are compared with their neighbours only.

    Args:
        nearest: integers [n, k], rows of the neighbours of each of n images, by any measures; a row may come twice.
        embedding: float [n, D], compared where there are no thumbnails.
        thumbnails: uint8 [n, h, w, c]; None for vectors.
        held_out: bool [n].
    """
    count = len(held_out)
    same = _first_of_the_same(embedding if thumbnails is None else thumbnails)
    differences = _cosine_distances(nearest, embedding) if thumbnails is None else picture_differences(nearest, thumbnails)
    usual = _usual(nearest, differences)
    first, second = np.repeat(np.arange(count), nearest.shape[1]), nearest.ravel()
    ratio = (differences / np.maximum(np.minimum(usual[:, np.newaxis], usual[nearest]), _SAME)).ravel()
    near = (ratio < _RATIO) & (differences.ravel() < _DIFFERENCE)
    first, second, ratio = first[near], second[near], ratio[near]
    pairs = sparse.coo_array(
        (np.ones(len(first) + count), (np.append(first, np.arange(count)), np.append(second, same))), shape=(count, count)
    )
    _, component = connected_components(pairs, directed=False)
    closest = np.full(count, np.inf)
    np.minimum.at(closest, first, ratio)
    np.minimum.at(closest, second, ratio)
    return _groups(component, same, closest, held_out)


def _first_of_the_same(values: np.ndarray) -> np.ndarray:
    """Returns for each of `values` [n, ...] the first row that has the same bytes, int64 [n]."""
    rows: dict[bytes, int] = {}
    digests = (hashlib.blake2b(np.ascontiguousarray(value).data, digest_size=16).digest() for value in values)
    return np.array([rows.setdefault(digest, row) for row, digest in enumerate(digests)])


def _cosine_distances(nearest: np.ndarray, embedding: np.ndarray) -> np.ndarray:
    """Returns one minus the cosine of each image and its neighbours, float32 [n, k]."""
    unit = embedding / np.maximum(np.linalg.norm(embedding, axis=1, keepdims=True), 1e-12)
    columns = [1.0 - np.einsum("nd,nd->n", unit, unit[column]) for column in nearest.T]
    return np.maximum(np.stack(columns, axis=1), 0.0).astype(np.float32)


def _usual(nearest: np.ndarray, differences: np.ndarray) -> np.ndarray:
    """Returns the third-smallest difference of each image to another one, float [n]; the largest where there are fewer."""
    by_row = np.argsort(nearest, axis=1, kind="stable")
    again = np.zeros(nearest.shape, bool)
    np.put_along_axis(again, by_row[:, 1:], np.diff(np.take_along_axis(nearest, by_row, axis=1), axis=1) == 0, axis=1)
    ordered = np.sort(np.where(again, np.inf, differences), axis=1)
    usual = ordered[:, min(_USUAL, ordered.shape[1] - 1)]
    return np.where(np.isfinite(usual), usual, differences.max(axis=1))


def _groups(component: np.ndarray, same: np.ndarray, closest: np.ndarray, held_out: np.ndarray) -> list[Duplicates]:
    """Returns the components of at least two images, the surest first."""
    order = np.argsort(component, kind="stable")
    found = []
    for members in np.split(order, np.flatnonzero(np.diff(component[order])) + 1):
        if len(members) < 2:
            continue
        num_different = len(np.unique(same[members]))
        difference = float(closest[members].min()) if num_different == len(members) else 0.0
        spans = bool(held_out[members].any() and not held_out[members].all())
        found.append(Duplicates(tuple(members.tolist()), "exact" if num_different == 1 else "near", spans, difference))
    return sorted(found, key=lambda group: (group.difference, group.images))
