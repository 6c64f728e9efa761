"""Vectors that stand for images: somebody else's embeddings, to be clustered by heads alone."""

from __future__ import annotations

import pathlib

import numpy as np

from sela_tf.data.errors import SourceError
from sela_tf.data.image_set import ImageSet, Splits
from sela_tf.data.sources.arrays import read_archive
from sela_tf.data.stores import Arrays


def load_vectors(path: pathlib.Path, *, name: str, memory_limit: int) -> Splits:
    """A matrix [N, D] of an .npy file; or of an .npz file `features`, and where there are any `classes`, `eval_features`,
    `eval_classes`.

    Raises:
        SourceError: the file is no such file or too large, or a value is NaN or infinite.
    """
    arrays = {"features": _mapped(name, path)} if path.suffix == ".npy" else read_archive(name, path)
    if "features" not in arrays:
        raise SourceError(f"{name}: {str(path)!r} has no array 'features' (it has {', '.join(arrays)})")

    def part(prefix: str) -> ImageSet | None:
        if prefix + "features" not in arrays:
            return None
        classes = arrays.get(prefix + "classes")
        return _vector_set(name, prefix + "features", arrays[prefix + "features"], classes, memory_limit)

    train, held_out = part(""), part("eval_")
    if train is None or (held_out is not None and held_out.channels != train.channels):
        raise SourceError(
            f"{name}: eval_features must have as many columns as features. Received: {arrays['eval_features'].shape} and "
            f"{arrays['features'].shape}"
        )
    return Splits(train, held_out)


def _mapped(name: str, path: pathlib.Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise SourceError(f"{name}: {str(path)!r} is not an npy file of numbers, or not a whole one") from error


def _vector_set(name: str, key: str, vectors: np.ndarray, classes: np.ndarray | None, memory_limit: int) -> ImageSet:
    if vectors.ndim != 2 or 0 in vectors.shape or vectors.dtype.kind not in "fiu":
        raise SourceError(f"{name}: {key} must be numbers [N, D], N and D > 0. Received: {vectors.dtype} {list(vectors.shape)}")
    size = 4 * vectors.size
    if size > memory_limit:
        raise SourceError(
            f"{name}: as float32, {key} {list(vectors.shape)} takes {size / 2**30:.1f} GiB, --memory_limit={memory_limit / 2**30:g} GiB: "
            "raise it"
        )
    with np.errstate(over="ignore"):  # which the next lines refuse
        values = np.ascontiguousarray(vectors, np.float32)
    wrong = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(wrong):
        raise SourceError(
            f"{name}: {key} must be finite numbers, also as float32. Row {wrong[0]} is not ({len(wrong)} of {len(values)})"
        )
    if classes is not None:
        classes = classes.reshape(-1)
        if classes.shape != values.shape[:1] or classes.dtype.kind not in "iu" or classes.min() < 0:
            raise SourceError(
                f"{name}: the classes of {key} must be {len(values)} integers from 0. Received: {classes.dtype} {list(classes.shape)}"
            )
    return ImageSet(
        name=name,
        channels=values.shape[1],
        store=Arrays(values),
        classes=None if classes is None else classes.astype(np.int64),
        image_size=(),
    )
