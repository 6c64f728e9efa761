"""What is done to sets of images once they are loaded: parts held out, classes and channels matched, images left out."""

from __future__ import annotations

import dataclasses
import hashlib
import zlib
from collections.abc import Sequence

import numpy as np

from sela_tf.data.errors import SourceError
from sela_tf.data.image_set import ImageSet
from sela_tf.data.stores import Arrays

_SHOWN = 5


def hold_out(images: ImageSet, fraction: float) -> tuple[ImageSet, ImageSet]:
    """Splits off a share for evaluation by a hash of the name, or of the index where there are no names.

    By name, an image stays on its side when others are added or removed.

    Raises:
        SourceError: one of the two parts would be empty.
    """
    keys = images.names or tuple(str(i) for i in range(len(images)))
    held = np.array([is_held_out(key, fraction) for key in keys])
    if not held.any() or held.all():
        raise SourceError(
            f"--eval_fraction={fraction} leaves {int((~held).sum())} of {len(images)} images of {images.name} for training and "
            f"{int(held.sum())} for evaluation: choose another, or give --eval_dataset"
        )
    return images.take(np.flatnonzero(~held)), images.take(np.flatnonzero(held))


def is_held_out(key: str, fraction: float) -> bool:
    """Of an image with this name, or row."""
    return zlib.crc32(hashlib.sha256(key.encode()).digest()) < fraction * 2**32


def unbalanced(images: ImageSet, kind: str, *, seed: int = 0) -> ImageSet:
    """Leaves images out so that classes become unequal (P, on CIFAR-10).

    Args:
        images: with classes.
        kind: "light": half of the last class goes. "heavy": of C classes, class c = 0 … C - 1 keeps (C - c) / C.
        seed: of the choice within a class.

    Raises:
        SourceError: there are no classes.
    """
    if images.classes is None:
        raise SourceError(f"--imbalance={kind} needs class labels, and {images.name} has none, or they are left out")
    present = np.unique(images.classes)
    shares = np.ones(len(present))
    if kind == "light":
        shares[-1] = 0.5
    else:
        shares = 1 - np.arange(len(present)) / len(present)
    random = np.random.default_rng(seed)
    kept = []
    for label, share in zip(present, shares, strict=True):
        members = random.permutation(np.flatnonzero(images.classes == label))
        kept.append(members[: max(1, round(share * len(members)))])
    return images.take(np.sort(np.concatenate(kept)))


def match_input(images: ImageSet, shape: Sequence[int]) -> ImageSet:
    """`images` as a network takes them that was trained on others: of 1 or 3 channels.

    Args:
        images: of any size.
        shape: the network's input, (height, width, C); or (D,) of vectors.

    Raises:
        SourceError: images where vectors are taken, or the other way round; or vectors of another length.
    """
    channels = shape[-1]
    if images.is_vectors != (len(shape) == 1):
        kinds = ("vectors", "images") if images.is_vectors else ("images", "vectors")
        raise SourceError(f"{images.name} has {kinds[0]}, and the network was made for {kinds[1]}: name another data set")
    if images.is_vectors and images.channels != channels:
        raise SourceError(f"{images.name} has vectors of {images.channels} values, and the network takes {channels}")
    if images.channels == channels or images.images is None:
        return dataclasses.replace(images, channels=channels)
    if channels == 3:
        pixels = np.repeat(images.images, 3, axis=-1)
    else:
        pixels = np.rint(images.images @ np.array([0.2989, 0.587, 0.114]))[..., np.newaxis].astype(np.uint8)
    return dataclasses.replace(images, store=Arrays(pixels), channels=channels)


def match_classes(train: ImageSet, held_out: ImageSet) -> tuple[ImageSet, ImageSet]:
    """Both with classes numbered alike, from 0 without gaps: by name where they have names, else by their numbers.

    Raises:
        SourceError: an evaluation class has no counterpart in training.
    """
    if train.classes is None or held_out.classes is None:
        return train, held_out
    if train.class_names and held_out.class_names and train.class_names != held_out.class_names:
        unknown = sorted(set(held_out.class_names) - set(train.class_names))
        if unknown:
            raise SourceError(
                f"{held_out.name} has classes that {train.name} does not have: {', '.join(unknown[:_SHOWN])}. "
                "Name them alike, or leave the classes out with --classes=none"
            )
        numbers = np.array([train.class_names.index(name) for name in held_out.class_names])
        held_out = dataclasses.replace(held_out, classes=numbers[held_out.classes], class_names=train.class_names)
    if train.class_names and held_out.class_names:
        return train, held_out
    _, both = np.unique(np.concatenate([train.classes, held_out.classes]), return_inverse=True)
    return (
        dataclasses.replace(train, classes=both[: len(train)], class_names=None),
        dataclasses.replace(held_out, classes=both[len(train) :], class_names=None),
    )
