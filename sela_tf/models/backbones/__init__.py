"""The backbones: networks from images or vectors to named stages, by the name that a setting gives them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from sela_tf.models.backbones.alexnet import alexnet
from sela_tf.models.backbones.applications import PREFIX, check_application
from sela_tf.models.backbones.dense import identity, mlp
from sela_tf.models.backbones.resnet import resnet

Stages = dict[str, tf.Tensor]


class Architecture(NamedTuple):
    """A backbone of our own, over images or over vectors."""

    stages: Callable[..., Stages]
    """Takes inputs [B, H, W, C], or [B, D] of vectors, and the keywords width, synchronized and dtype; returns its named stages, the
    last one last."""
    width: int
    """Channels of its first stage as published."""
    smallest: int
    """Pixels that images have at least on each side; 0 where it takes vectors."""


def _imagenet(**options: Any) -> Architecture:
    # from 17 pixels on, no stage but the last sees a single pixel
    return Architecture(functools.partial(resnet, large_images=True, **options), width=64, smallest=17)


BACKBONES: dict[str, Architecture] = {
    **{f"resnet{6 * n + 2}": Architecture(functools.partial(resnet, blocks=(n, n, n)), width=16, smallest=2) for n in (1, 3, 9)},
    "resnet18": _imagenet(blocks=(2, 2, 2, 2)),
    "resnet50": _imagenet(blocks=(3, 4, 6, 3), bottleneck=True),
    "preact_resnet18": _imagenet(blocks=(2, 2, 2, 2), preactivation=True),
    "preact_resnet50": _imagenet(blocks=(3, 4, 6, 3), bottleneck=True, preactivation=True),
    "alexnet": Architecture(alexnet, width=96, smallest=63),
    "identity": Architecture(identity, width=0, smallest=0),
    "mlp": Architecture(mlp, width=512, smallest=0),
}


def check_backbone(name: str) -> None:
    """Raises:
    ValueError: there is no such backbone.
    """
    if name.startswith(PREFIX):
        check_application(name.removeprefix(PREFIX))
    elif name not in BACKBONES:
        raise ValueError(f"`backbone` must be one of {', '.join(BACKBONES)}, or {PREFIX}NAME. Received: backbone={name!r}")


def check_image_size(backbone: str, size: Sequence[int]) -> None:
    """Refuses images that a known backbone does not take.

    Args:
        backbone: as in `build_model`.
        size: (height, width); () of vectors.

    Raises:
        ValueError: they are too small; or vectors where images are taken, or the other way round.
    """
    smallest = 1 if backbone.startswith(PREFIX) else BACKBONES[backbone].smallest
    if bool(smallest) != bool(size):
        raise ValueError(
            f"--backbone={backbone} takes {'images' if smallest else 'vectors'}, and the data set has "
            f"{'vectors: give --backbone=identity or mlp' if smallest else 'images'}"
        )
    if size and min(size) < smallest:
        raise ValueError(
            f"images of {size[0]} x {size[1]} are too small for {backbone}, which takes {smallest} "
            "pixels or more on each side: give a larger --image_size, or another --backbone"
        )
