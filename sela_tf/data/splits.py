"""Changes to loaded image sets: images held out or left out, and classes and channels matched."""

from __future__ import annotations

import dataclasses
import hashlib
import zlib
from collections.abc import Sequence

import numpy as np

from sela_tf.data.errors import NAMES_SHOWN, SourceError
from sela_tf.data.image_set import ImageSet
from sela_tf.data.stores import Arrays, DecodedFiles


def hold_out(images: ImageSet, fraction: float) -> tuple[ImageSet, ImageSet]:
    """Splits off a share of the images for evaluation, by a hash of the name, or of the index if images have no names.

    With names, an image stays in its part when other images are added or removed.

    Args:
        images: The images to split.
        fraction: The share held out, between 0 and 1.

    Returns:
        The images to train on, and those held out.

    Raises:
        SourceError: One of the two parts would be empty.
    """
    keys = images.names or tuple(str(i) for i in range(len(images)))
    held = np.array([is_held_out(key, fraction) for key in keys])
    if not held.any() or held.all():
        raise SourceError(
            f"`eval_fraction={fraction}` leaves {int((~held).sum())} of {len(images)} images of {images.full_name} for training and "
            f"{int(held.sum())} for evaluation: choose another, or give `eval_dataset`"
        )
    return images.take(np.flatnonzero(~held)), images.take(np.flatnonzero(held))


def is_held_out(key: str, fraction: float) -> bool:
    """Returns True if the image with the name (or row) `key` belongs to the `fraction` that is held out."""
    return zlib.crc32(hashlib.sha256(key.encode()).digest()) < fraction * 2**32


def unbalanced(images: ImageSet, kind: str, *, seed: int = 0) -> ImageSet:
    """Leaves images out so that classes have unequal sizes, as the paper does on CIFAR-10 (arXiv 1911.05371, imbalanced data).

    Args:
        images: Images with class labels.
        kind: "light" leaves out half of the last class. "heavy" keeps the share (C - c) / C of class c = 0 … C - 1.
        seed: The seed of the choice of images within a class.

    Raises:
        SourceError: The images have no class labels.
    """
    if images.classes is None:
        raise SourceError(f"`imbalance={kind}` needs class labels, and {images.full_name} has none, or they are left out")
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
    """Returns `images` with the number of channels that a network takes.

    Colour becomes gray by its luma (ITU-R BT.601), gray becomes colour by repetition.

    Args:
        images: Images of any size, or vectors.
        shape: The shape of the network's input: (height, width, C), or (D,) for vectors.

    Raises:
        SourceError: The network takes vectors and these are images, or the reverse; or the vectors have another length.
    """
    channels = shape[-1]
    if images.is_vectors != (len(shape) == 1):
        kinds = ("vectors", "images") if images.is_vectors else ("images", "vectors")
        raise SourceError(f"{images.full_name} has {kinds[0]}, and the network was made for {kinds[1]}: name another data set")
    if images.is_vectors and images.channels != channels:
        raise SourceError(f"{images.full_name} has vectors of {images.channels} values, and the network takes {channels}")
    if images.channels == channels:
        return images
    if images.images is None:
        # Files have their channels when they are decoded.
        store = images.store.files if isinstance(images.store, DecodedFiles) else images.store
        return dataclasses.replace(images, store=store, channels=channels)
    if channels == 3:
        pixels = np.repeat(images.images, 3, axis=-1)
    else:
        # `decoding.to_channels` has the same weights and rounds otherwise, which would change a quarter of all colours by one.
        pixels = np.rint(images.images @ np.array([0.2989, 0.587, 0.114]))[..., np.newaxis].astype(np.uint8)
    return dataclasses.replace(images, store=Arrays(pixels), channels=channels)


def match_classes(train: ImageSet, held_out: ImageSet) -> tuple[ImageSet, ImageSet]:
    """Returns both sets with the same numbers for the same classes, from 0 without gaps.

    Classes are matched by name if both sets have class names, else by number. Sets are returned unchanged if one has no classes.

    Raises:
        SourceError: A class of `held_out` is not among those of `train`.
    """
    if train.classes is None or held_out.classes is None:
        return train, held_out
    if train.class_names and held_out.class_names and train.class_names != held_out.class_names:
        unknown = sorted(set(held_out.class_names) - set(train.class_names))
        if unknown:
            raise SourceError(
                f"{held_out.full_name} has classes that {train.full_name} does not have: {', '.join(unknown[:NAMES_SHOWN])}. "
                "Name them alike, or leave the classes out with `classes=none`"
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
