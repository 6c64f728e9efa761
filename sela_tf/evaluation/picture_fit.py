"""The difference of two pictures that is left when one is moved, scaled, sharpened and brightened to fit the other."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

_FINE, _COARSE = 32, 16
"""Sides of the pictures that are compared, in pixels; the motion is looked for in the coarse ones."""
_RIDGE = 1e-3
_KEPT = 3
"""Neighbours of each image that are compared finely."""
_BLOCK = 256
_LONGEST, _LARGEST = 2.5 / 16, 0.12
"""The motion that is allowed, as a share of the side, and the change of scale."""
_FLAT = 1.0
"""Standard deviation, in levels of 256, up to which a picture is of one colour."""


def smoothed_pictures(thumbnails: np.ndarray, side: int) -> np.ndarray:
    """Returns thumbnails of at most `side` x `side` pixels, smoothed by a binomial filter of 3 x 3, float32 [n, h, w, c].

    Args:
        thumbnails: uint8 or float [n, h, w, c].
        side: the longest side in pixels.
    """
    size = [min(side, length) for length in thumbnails.shape[1:3]]
    kernel = np.outer([0.25, 0.5, 0.25], [0.25, 0.5, 0.25]).astype(np.float32)
    kernels = tf.constant(np.repeat(kernel[..., np.newaxis, np.newaxis], thumbnails.shape[-1], axis=2))
    found = []
    for start in range(0, len(thumbnails), 1000):
        block = tf.image.resize(tf.constant(thumbnails[start : start + 1000]), size, method="area")
        block = tf.pad(block, [[0, 0], [1, 1], [1, 1], [0, 0]], "SYMMETRIC")
        found.append(tf.nn.depthwise_conv2d(block, kernels, [1, 1, 1, 1], "VALID").numpy())
    return np.concatenate(found)


def unit_pictures(pictures: np.ndarray) -> np.ndarray:
    """Returns pictures [n, h, w, c] as rows of mean 0 and norm 1, float32 [n, h w c]; zeros for pictures of one colour."""
    rows = pictures.reshape(len(pictures), -1)
    rows = rows - rows.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.where(norms > _FLAT * np.sqrt(rows.shape[1]), rows / np.maximum(norms, 1e-6), 0.0).astype(np.float32)


def picture_differences(nearest: np.ndarray, thumbnails: np.ndarray) -> np.ndarray:
    """Returns the share of a neighbour's variance that no small change of the image explains, float32 [n, k] in [0, 1].

    The change is found by least squares, with the image's gradients as regressors (Lucas and Kanade, 1981): first the motion between coarse
    pictures, for all neighbours; then, for the best three, between fine pictures after that motion. The other neighbours get the largest of
    the three. Pictures of one colour differ by 1 from all.

    Args:
        nearest: integers [n, k].
        thumbnails: uint8 [n, h, w, c].
    """
    fine = smoothed_pictures(thumbnails, _FINE)
    coarse = smoothed_pictures(fine, _COARSE)
    kept = min(_KEPT, nearest.shape[1])
    coarse_rows = unit_pictures(coarse)
    found = np.ones(nearest.shape, np.float32)
    for start in range(0, len(nearest), _BLOCK):
        block = np.arange(start, min(start + _BLOCK, len(nearest)))[:, np.newaxis]
        others = nearest[block[:, 0]]
        differences, motion = _fit(coarse_rows[block[:, 0]].reshape(-1, *coarse.shape[1:]), coarse_rows[others], sharpen=False)
        best = np.argsort(differences, axis=1, kind="stable")[:, :kept]
        moved = _moved(
            fine[np.repeat(block[:, 0], kept)], motion[np.arange(len(block))[:, np.newaxis], best].reshape(-1, 4), coarse.shape[1:3]
        )
        targets = unit_pictures(fine[np.take_along_axis(others, best, axis=1).ravel()])
        finely, _ = _fit(unit_pictures(moved).reshape(moved.shape), targets[:, np.newaxis], sharpen=True)
        finely = finely.reshape(-1, kept)
        block_found = np.maximum(differences, finely.max(axis=1, keepdims=True))
        np.put_along_axis(block_found, best, finely, axis=1)
        found[block[:, 0]] = block_found
    is_flat = np.logical_not(coarse_rows.any(axis=1))
    found[is_flat] = 1.0
    found[np.isin(nearest, np.flatnonzero(is_flat))] = 1.0
    return np.clip(found, 0.0, 1.0)


def _fit(images: np.ndarray, others: np.ndarray, *, sharpen: bool) -> tuple[np.ndarray, np.ndarray]:
    """Fits each of `images` to its `others` by least squares, with a small penalty on all but the contrast.

    Args:
        images: float [B, h, w, c], of mean 0 and norm 1.
        others: float [B, k, h w c], of mean 0 and norm 1.
        sharpen: also by the Laplacian of the image.

    Returns:
        (the share of the variance that is left, [B, k]; the motion [B, k, 4] in pixels down and right, and the change of scale).
    """
    height, width = images.shape[1:3]
    y = (np.arange(height, dtype=np.float32) - (height - 1) / 2)[:, np.newaxis, np.newaxis]
    x = (np.arange(width, dtype=np.float32) - (width - 1) / 2)[:, np.newaxis]
    down, right = np.gradient(images, axis=(1, 2))
    parts = [images, down, right, y * down, x * right]
    if sharpen:
        parts.append(np.gradient(down, axis=1) + np.gradient(right, axis=2))
    basis = np.stack([part.reshape(len(images), -1) for part in parts], axis=1)
    basis -= basis.mean(axis=2, keepdims=True)
    # A motion of the border, half a side from the middle, is punished as that of the middle.
    penalty = _RIDGE * np.array([0.0, 1.0, 1.0, height**2 / 16, width**2 / 16, 1.0])[: len(parts)] + 1e-6
    products = basis @ others.transpose(0, 2, 1)
    coefficients = np.linalg.solve(basis @ basis.transpose(0, 2, 1) + np.diag(penalty).astype(np.float32), products)
    contrast = np.maximum(np.abs(coefficients[:, 0]), 0.3)
    return 1.0 - (coefficients * products).sum(axis=1), (coefficients[:, 1:5] / contrast[:, np.newaxis]).transpose(0, 2, 1)


def _moved(pictures: np.ndarray, motion: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Returns pictures [B, h, w, c] after a motion [B, 4] that was found in pictures of another size; the edge is repeated."""
    height, width = pictures.shape[1:3]
    down = np.clip(motion[:, 0] / size[0], -_LONGEST, _LONGEST) * height
    right = np.clip(motion[:, 1] / size[1], -_LONGEST, _LONGEST) * width
    tall, wide = np.clip(motion[:, 2:], -_LARGEST, _LARGEST).T
    zero = np.zeros_like(down)
    left, top = right - wide * (width - 1) / 2, down - tall * (height - 1) / 2
    transforms = np.stack([1 + wide, zero, left, zero, 1 + tall, top, zero, zero], axis=1).astype(np.float32)
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=pictures,
        transforms=transforms,
        output_shape=[height, width],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="NEAREST",
    ).numpy()
