"""The source of vectors: embeddings that another network computed, which heads alone cluster."""

from __future__ import annotations

import pathlib

import numpy as np

from sela_tf.data.classes import ClassLabels, labels_of
from sela_tf.data.errors import SourceError
from sela_tf.data.image_set import ImageSet, SourceName, Splits
from sela_tf.data.sources.array_files import lacks, read_arrays
from sela_tf.data.stores import Arrays


def load_vectors(path: pathlib.Path, *, source: SourceName, use_classes: bool = True, memory_limit: int) -> Splits:
    """Loads vectors as float32 `[N, D]`.

    Args:
        path: An npy file with a matrix `[N, D]`; or an npz file with the array `features` and, if they exist, `classes`,
            `eval_features` and `eval_classes`. Its content decides on its kind, not its name.
        source: The name of the source.
        use_classes: False leaves class labels out, whatever they are.
        memory_limit: Bytes that the vectors may take.

    Raises:
        SourceError: The file is not such a file or too large, or a value is NaN or infinite.
    """
    name = str(source)
    keys = ["features", "eval_features", *(["classes", "eval_classes"] if use_classes else [])]
    found = read_arrays(path, keys, alone="features", source=name, memory_limit=memory_limit)
    arrays = found.arrays
    if "features" not in arrays:
        raise lacks(path, found, "'features'", source=name)
    labels = labels_of(arrays, "features", source=name)

    def part(prefix: str) -> ImageSet | None:
        key = prefix + "features"
        return vector_set(source, key, arrays[key], labels.get(prefix + "classes"), memory_limit) if key in arrays else None

    train, held_out = part(""), part("eval_")
    if train is None or (held_out is not None and held_out.channels != train.channels):
        raise SourceError(
            f"{name}: eval_features must have as many columns as features. Received: {arrays['eval_features'].shape} and "
            f"{arrays['features'].shape}"
        )
    return Splits(train, held_out, tuple(each.note for each in labels.values() if each.note))


def vector_set(source: SourceName, key: str, vectors: np.ndarray, labels: ClassLabels | None, memory_limit: int) -> ImageSet:
    """Makes a set of the vectors of the array named `key`, `[N, D]`, and their class labels."""
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
    return ImageSet(
        name=source.name,
        setting=source.setting,
        channels=values.shape[1],
        store=Arrays(values),
        classes=None if labels is None else labels.numbers,
        class_names=None if labels is None else labels.names,
        image_size=(),
    )
