"""Class labels as files have them (numbers, words, one-hot rows), and the classes of a set in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from sela_tf.data.errors import SourceError
from sela_tf.data.image_set import ImageSet, Splits
from sela_tf.data.left_out import shown_name

_CLASSES_SHOWN = 12
MOST_CLASSES = 2**18
"""The number that class labels stay below: tables of figures have a place for each class up to the largest number."""


class ClassLabels(NamedTuple):
    """The class labels of N images."""

    numbers: np.ndarray
    """Class labels from 0, int64 `[N]`."""
    names: tuple[str, ...] | None = None
    """Names of the classes, by number; None if the labels were numbers."""
    note: str = ""
    """A line for the user about what was made of the values; "" if they were taken as they are."""


def class_labels(values: np.ndarray, count: int, *, key: str, source: str) -> ClassLabels:
    """Returns the class labels that an array stands for.

    Words become the names of classes. Rows of 0 with a single 1 (one-hot) become the place of the 1. Numbers may be floats without a
    fraction.

    Args:
        values: An array `[N]`, `[N, 1]` or `[1, N]`; or `[N, C]`, one-hot.
        count: The number of images N.
        key: The name of the array, for messages.
        source: The name of the data set, for messages.

    Raises:
        SourceError: The values are no classes. The message says what is wrong with them.
    """

    def refuse(problem: str) -> SourceError:
        return SourceError(
            f"{source}: {key} must be {count} whole numbers from 0, or words: {problem}, or leave the classes out with `classes=none`"
        )

    shape, note = list(values.shape), ""
    if values.ndim == 2 and 1 not in values.shape and len(values) == count and values.dtype.kind in "biuf":
        hot = values != 0
        wrong = np.flatnonzero((hot.sum(axis=1) != 1) | (values.max(axis=1) != 1))
        if len(wrong):
            raise refuse(f"row {wrong[0]} of {shape} is not one-hot ({len(wrong)} of {count}). Give one number a row")
        values, note = hot.argmax(axis=1), f"{key}: one-hot rows are taken for {values.shape[1]} classes, by the place of the 1"
    elif values.size == count and values.ndim <= 2:
        values = values.reshape(-1)
    if values.shape != (count,):
        raise refuse(f"Received: {values.dtype} {shape}. Give one for each image")
    if values.dtype.kind in "SU":
        return _named(values, refuse)
    if values.dtype.kind not in "biuf":
        raise refuse(f"Received: {values.dtype} {shape}. Save them as numbers or text")
    if values.dtype.kind == "f":
        wrong = np.flatnonzero(~np.isfinite(values) | (values != np.floor(values)))
        if len(wrong):
            raise refuse(f"{len(wrong)} are no whole numbers, such as {values[wrong[0]]:g} in row {wrong[0]}. Round them")
    wrong = np.flatnonzero((values < 0) | (values >= MOST_CLASSES))
    if len(wrong):
        raise refuse(
            f"{len(wrong)} are negative or too large, such as {values[wrong[0]]:g} in row {wrong[0]}. Leave these images out, or number the "
            f"classes from 0 to at most {MOST_CLASSES - 1}"
        )
    return ClassLabels(values.astype(np.int64), None, note)


def labels_of(arrays: Mapping[str, np.ndarray], images_key: str, *, source: str) -> dict[str, ClassLabels]:
    """Returns the class labels among the arrays of a file, by the names `classes` and `eval_classes`.

    Args:
        arrays: Arrays by their names.
        images_key: The name of the array that is labelled, such as "images".
        source: The name of the data set, for messages.

    Raises:
        SourceError: An array holds no class labels.
    """
    pairs = {
        key: prefix + images_key
        for prefix in ("", "eval_")
        if (key := f"{prefix}classes") in arrays and prefix + images_key in arrays
    }
    return {
        key: class_labels(arrays[key], len(np.atleast_1d(arrays[images])), key=key, source=source) for key, images in pairs.items()
    }


def _named(values: np.ndarray, refuse: Callable[[str], SourceError]) -> ClassLabels:
    """Returns the class labels of words, in the order of the words."""
    if values.dtype.kind == "S":
        try:
            values = np.char.decode(values, "utf-8")
        except UnicodeDecodeError as error:
            raise refuse("some are bytes that are no UTF-8. Decode them") from error
    names, numbers = np.unique(values, return_inverse=True)
    return ClassLabels(numbers.reshape(-1).astype(np.int64), tuple(names.tolist()))


def with_classes_told(splits: Splits) -> Splits:
    """Returns the splits with a line about their classes at the end of the report: names and sizes, or the reason why there are none."""
    words = _in_words(splits.train, splits.without_classes)
    if splits.train.classes is not None and splits.eval is not None and splits.eval.classes is not None:
        only = np.setdiff1d(splits.eval.classes, splits.train.classes)
        shown = ", ".join(_name_of(splits.eval, number) for number in only[:_CLASSES_SHOWN])
        if len(only):
            words += f"; in the images for evaluation only: {shown}{', …' if len(only) > _CLASSES_SHOWN else ''}"
    return splits._replace(report=(*splits.report, words))


def _in_words(images: ImageSet, reason: str) -> str:
    """Returns the number of classes, and the names and sizes of the largest; or the reason why there are none."""
    if images.classes is None:
        return f"no classes in {images.name}" + (f": {reason}" if reason else "")
    numbers, counts = np.unique(images.classes, return_counts=True)
    largest = np.lexsort((numbers, -counts))[:_CLASSES_SHOWN]
    shown = [f"{_name_of(images, number)} {count}" for number, count in zip(numbers[largest], counts[largest], strict=True)]
    more = f" and {len(numbers) - len(shown)} more" if len(numbers) > len(shown) else ""
    return f"{len(numbers)} classes in {images.name}: {', '.join(shown)}{more}"


def _name_of(images: ImageSet, number: int) -> str:
    """Returns the name of a class as it is shown, or its number where classes have no names."""
    return shown_name(images.class_names[number]) if images.class_names else str(number)
