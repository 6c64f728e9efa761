"""The backbones, by the name that the setting `backbone` gives them: networks from images or vectors to named stages."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from sela_tf.models.backbones.alexnet import alexnet
from sela_tf.models.backbones.applications import PREFIX, check_application
from sela_tf.models.backbones.dense import identity, mlp
from sela_tf.models.backbones.errors import BackboneError
from sela_tf.models.backbones.resnet import resnet

Stages = dict[str, tf.Tensor]
"""Symbolic outputs [B, h, w, C] or [B, D] of the stages of a network, by their layers' names, in order."""


class Architecture(NamedTuple):
    """A backbone of this library, over images or over vectors."""

    stages: Callable[..., Stages]
    """A function that builds the stages. It takes symbolic inputs [B, H, W, C], or vectors [B, D], and the keywords `width`, `synchronized`
    and `dtype`."""
    width: int
    """The published number of channels of the first stage."""
    smallest: int
    """The least number of pixels on each side of an image; 0 for a backbone over vectors."""


def _imagenet(**options: Any) -> Architecture:
    """Makes a residual network with the stem for ImageNet; `options` are those of `resnet`."""
    # With 17 pixels or more, no stage but the last sees a single pixel.
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
    """Checks the name of a backbone.

    Raises:
        BackboneError: there is no backbone of this name.
    """
    if name.startswith(PREFIX):
        check_application(name.removeprefix(PREFIX))
    elif name not in BACKBONES:
        raise BackboneError(f"`backbone` must be one of {', '.join(BACKBONES)}, or {PREFIX}NAME. Received: backbone={name!r}")


def check_image_size(backbone: str, size: Sequence[int]) -> None:
    """Checks that a known backbone takes images of a size, or vectors.

    Args:
        backbone: the name of the backbone, as in `build_model`.
        size: (height, width) of the images; () for vectors.

    Raises:
        BackboneError: the images are too small; or they are vectors where the backbone takes images, or images where it takes vectors.
    """
    smallest = 1 if backbone.startswith(PREFIX) else BACKBONES[backbone].smallest
    if bool(smallest) != bool(size):
        raise BackboneError(
            f"`backbone={backbone}` takes {'images' if smallest else 'vectors'}, and the data set has "
            f"{'vectors: give `backbone=identity` or mlp' if smallest else 'images'}"
        )
    if size and min(size) < smallest:
        raise BackboneError(
            f"images of {size[0]} x {size[1]} are too small for {backbone}, which takes {smallest} "
            "pixels or more on each side: give a larger `image_size`, or another `backbone`"
        )
