"""The small-image residual networks of He et al. 2016 (arXiv 1512.03385, section 4.2): 6n+2 layers in three stages."""

from __future__ import annotations

import keras
import tensorflow as tf

from sela_tf.models.batch_norm import FusedBatchNormalization


def resnet(
    inputs: tf.Tensor,
    *,
    blocks_per_stage: int,
    width: int = 16,
    synchronized: bool = False,
    dtype: str | None = None,
) -> dict[str, tf.Tensor]:
    """Stages of a residual network over `inputs` [B, H, W, C].

    The 6n+2 family has n blocks a stage: 1 for ResNet-8, 3 for ResNet-20, 9 for ResNet-56. Three stages of `width`, 2 `width` and
    4 `width` channels, halving the resolution between them; where the shape changes, the shortcut is a 1 x 1 convolution with
    batch normalisation (option B). Convolutions start from He et al.'s normal initialiser in its fan-out form, without biases.

    Returns:
        The named stages: "stem", "stage1", "stage2", "stage3", each [B, h, w, c], in order.
    """

    def convolution(x: tf.Tensor, channels: int, kernel: int, stride: int, name: str) -> tf.Tensor:
        # PyTorch pads by (kernel - 1) / 2 on both sides; "same" pads less at the top left when the stride is 2. The loss of
        # oneDNN's kernels that explicit paddings bring is not worth the half pixel.
        initializer = keras.initializers.VarianceScaling(scale=2.0, mode="fan_out", distribution="untruncated_normal")
        x = keras.layers.Conv2D(
            channels,
            kernel,
            strides=stride,
            padding="same",
            use_bias=False,
            kernel_initializer=initializer,
            dtype=dtype,
            name=f"{name}_conv",
        )(x)
        return FusedBatchNormalization(synchronized=synchronized, dtype=dtype, name=f"{name}_bn")(x)

    def relu(x: tf.Tensor, name: str) -> tf.Tensor:
        return keras.layers.ReLU(dtype=dtype, name=name)(x)

    x = relu(convolution(inputs, width, 3, 1, "stem"), "stem")
    stages = {"stem": x}
    for stage in (1, 2, 3):
        channels = width * 2 ** (stage - 1)
        for block in range(1, blocks_per_stage + 1):
            name = f"stage{stage}_block{block}"
            stride = 2 if stage > 1 and block == 1 else 1
            shortcut = x
            x = relu(convolution(x, channels, 3, stride, f"{name}_a"), f"{name}_a_relu")
            x = convolution(x, channels, 3, 1, f"{name}_b")
            if shortcut.shape[1:] != x.shape[1:]:
                shortcut = convolution(shortcut, channels, 1, stride, f"{name}_shortcut")
            x = keras.layers.Add(dtype=dtype, name=f"{name}_add")([x, shortcut])
            x = relu(x, f"stage{stage}" if block == blocks_per_stage else name)
        stages[f"stage{stage}"] = x
    return stages
