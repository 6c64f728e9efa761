"""Residual networks of He et al. 2016: those for small images (arXiv 1512.03385, section 4.2), those for ImageNet (table 1), and the latter
with pre-activation (arXiv 1603.05027)."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf

from sela_tf.models.batch_norm import FusedBatchNormalization

_EXPANSION = 4
"""The ratio of a bottleneck's output channels to those of its 3 x 3 convolution."""


def resnet(
    inputs: tf.Tensor,
    *,
    blocks: Sequence[int],
    width: int,
    bottleneck: bool = False,
    preactivation: bool = False,
    large_images: bool = False,
    synchronized: bool = False,
    dtype: str | None = None,
) -> dict[str, tf.Tensor]:
    """Builds the stages of a residual network.

    The stages have `width`, 2 `width`, 4 `width`, … channels, with bottlenecks four times as many, and the resolution halves between them.
    Where the shape changes, the shortcut is a 1 x 1 convolution. Convolutions have no biases, and start from He et al.'s normal initialiser
    in its fan-out form.

    Args:
        inputs: normalised images [B, H, W, C].
        blocks: the number of blocks of each stage.
        width: the channels of the first stage.
        bottleneck: blocks of 1 x 1, 3 x 3 (with the stride) and 1 x 1 convolutions instead of two of 3 x 3.
        preactivation: batch normalisation and ReLU before each convolution instead of after it.
        large_images: a stem of stride 4 (7 x 7 convolution and max pooling) instead of one 3 x 3 convolution.
        synchronized: batch statistics of all replicas together.
        dtype: a precision policy; None for Keras' global one.

    Returns:
        The stages "stem", "stage1", "stage2", …, each [B, h, w, c].
    """

    def convolution(x: tf.Tensor, channels: int, kernel: int, stride: int, name: str) -> tf.Tensor:
        # PyTorch pads by (kernel - 1) / 2 on both sides, and "same" pads less at the top left when the stride is 2. Explicit padding
        # would remove this shift by half a pixel, but oneDNN's fast kernels do not support it.
        initializer = keras.initializers.VarianceScaling(scale=2.0, mode="fan_out", distribution="untruncated_normal")
        options = {"strides": stride, "padding": "same", "use_bias": False, "kernel_initializer": initializer, "dtype": dtype}
        return keras.layers.Conv2D(channels, kernel, name=f"{name}_conv", **options)(x)

    def norm(x: tf.Tensor, name: str) -> tf.Tensor:
        return FusedBatchNormalization(synchronized=synchronized, dtype=dtype, name=f"{name}_bn")(x)

    def relu(x: tf.Tensor, name: str) -> tf.Tensor:
        return keras.layers.ReLU(dtype=dtype, name=name)(x)

    def block(x: tf.Tensor, channels: int, stride: int, name: str, output: str) -> tf.Tensor:
        shapes = [(channels, 3, stride), (channels, 3, 1)]
        if bottleneck:
            shapes = [(channels, 1, 1), (channels, 3, stride), (_EXPANSION * channels, 1, 1)]
        steps = [f"{name}_{letter}" for letter in "abc"[: len(shapes)]]
        projects = stride != 1 or x.shape[-1] != shapes[-1][0]
        shortcut = y = x
        for i, (step, shape) in enumerate(zip(steps, shapes, strict=True)):
            if preactivation:
                y = relu(norm(y, step), f"{step}_relu")
                shortcut = y if projects and i == 0 else shortcut
                y = convolution(y, *shape, step)
            else:
                y = norm(convolution(y, *shape, step), step)
                y = relu(y, f"{step}_relu") if step != steps[-1] else y
        if projects:
            shortcut = convolution(shortcut, shapes[-1][0], 1, stride, f"{name}_shortcut")
            shortcut = shortcut if preactivation else norm(shortcut, f"{name}_shortcut")
        total = keras.layers.Add(dtype=dtype, name=output if preactivation else f"{name}_add")
        y = total([y, shortcut])
        return y if preactivation else relu(y, output)

    x = convolution(inputs, width, 7 if large_images else 3, 2 if large_images else 1, "stem")
    if not preactivation:
        x = relu(norm(x, "stem"), "stem_relu" if large_images else "stem")
    if large_images:
        x = keras.layers.MaxPooling2D(3, 2, padding="same", dtype=dtype, name="stem")(x)
    stages = {"stem": x}
    for stage, num_blocks in enumerate(blocks, 1):
        # The sum of the last pre-activation block still lacks its normalisation.
        lacks_norm = preactivation and stage == len(blocks)
        for i in range(1, num_blocks + 1):
            name = f"stage{stage}_block{i}"
            output = f"stage{stage}" if i == num_blocks and not lacks_norm else f"{name}_sum" if preactivation else name
            x = block(x, width * 2 ** (stage - 1), 2 if stage > 1 and i == 1 else 1, name, output)
        if lacks_norm:
            x = relu(norm(x, f"stage{stage}"), f"stage{stage}")
        stages[f"stage{stage}"] = x
    return stages
