"""The source of vectors: embeddings that another network computed, which heads alone cluster."""

from __future__ import annotations

import pathlib

import numpy as np

from sela_tf.data.errors import SourceError
from sela_tf.data.image_set import ImageSet, SourceName, Splits
from sela_tf.data.sources.arrays import read_archive
from sela_tf.data.stores import Arrays


def load_vectors(path: pathlib.Path, *, source: SourceName, memory_limit: int) -> Splits:
    """Loads vectors as float32 `[N, D]`.

    Args:
        path: An .npy file with a matrix `[N, D]`; or an .npz file with the array `features` and, if they exist, `classes`,
            `eval_features` and `eval_classes`.
        source: The name of the source.
        memory_limit: Bytes that the vectors may take.

    Raises:
        SourceError: The file is not such a file or too large, or a value is NaN or infinite.
    """
    name = str(source)
    arrays = {"features": _mapped(name, path)} if path.suffix == ".npy" else read_archive(name, path)
    if "features" not in arrays:
        raise SourceError(f"{name}: {str(path)!r} has no array 'features' (it has {', '.join(arrays)})")

    def part(prefix: str) -> ImageSet | None:
        if prefix + "features" not in arrays:
            return None
        classes = arrays.get(prefix + "classes")
        return vector_set(source, prefix + "features", arrays[prefix + "features"], classes, memory_limit)

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


def vector_set(source: SourceName, key: str, vectors: np.ndarray, classes: np.ndarray | None, memory_limit: int) -> ImageSet:
    """Makes a set of the vectors of the array named `key`, `[N, D]`, and their class labels `[N]`."""
    name = str(source)
    if vectors.ndim != 2 or 0 in vectors.shape or vectors.dtype.kind not in "fiu":
        raise SourceError(f"{name}: {key} must be numbers [N, D], N and D > 0. Received: {vectors.dtype} {list(vectors.shape)}")
    size = 4 * vectors.size
    if size > memory_limit:
        raise SourceError(
            f"{name}: as float32, {key} {list(vectors.shape)} takes {size / 2**30:.1f} GiB, `memory_limit={memory_limit / 2**30:g}` GiB: "
            "raise it"
        )
    with np.errstate(over="ignore"):  # Values that overflow become infinite and are refused below.
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
        name=source.name,
        setting=source.setting,
        channels=values.shape[1],
        store=Arrays(values),
        classes=None if classes is None else classes.astype(np.int64),
        image_size=(),
    )
