"""A Keras layer of T linear classification heads over K clusters, computed as one matrix product."""

from __future__ import annotations

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable("sela_tf")
class MultiHead(keras.layers.Layer):
    """A Keras layer: the heads h_1 … h_T of the paper, from inputs [B, D] to logits [B, T, K].

    The kernel [D, T, K] starts from a normal distribution of mean 0 and standard deviation .01, and the bias [T, K] from zero, as in the
    reference code.

    Args:
        num_heads: the number T of heads, at least 1; 10 in the paper's best settings.
        num_clusters: the number K of clusters of each head, at least 2; in the paper 3000 on ImageNet, 128 on CIFAR.
        **kwargs: the arguments of `keras.layers.Layer`.

    Raises:
        ValueError: a number is out of range; when the layer is built, the inputs are no vectors.
    """

    def __init__(self, num_heads: int, num_clusters: int, **kwargs):
        super().__init__(**kwargs)
        if num_heads < 1:
            raise ValueError(f"`num_heads` must be at least 1. Received: num_heads={num_heads}")
        if num_clusters < 2:
            raise ValueError(f"`num_clusters` must be at least 2. Received: num_clusters={num_clusters}")
        self.num_heads = int(num_heads)
        self.num_clusters = int(num_clusters)

    def build(self, input_shape: tuple) -> None:
        if len(input_shape) != 2:
            raise ValueError(f"MultiHead takes features [B, D]: pool or flatten first. Received: input_shape={tuple(input_shape)}")
        self.kernel = self.add_weight(
            shape=(int(input_shape[-1]), self.num_heads, self.num_clusters),
            initializer=keras.initializers.RandomNormal(stddev=0.01),
            name="kernel",
        )
        self.bias = self.add_weight(shape=(self.num_heads, self.num_clusters), initializer="zeros", name="bias")
        super().build(input_shape)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        kernel = tf.reshape(tf.convert_to_tensor(self.kernel), [-1, self.num_heads * self.num_clusters])
        logits = tf.matmul(inputs, tf.cast(kernel, inputs.dtype))
        return tf.reshape(logits, [-1, self.num_heads, self.num_clusters]) + tf.cast(self.bias, logits.dtype)

    def head_logits(self, inputs: tf.Tensor, head: int) -> tf.Tensor:
        """Returns the logits float32 [B, K] of one head for `inputs` [B, D], where those of all T heads would not fit into memory."""
        return tf.matmul(tf.cast(inputs, tf.float32), self.head_kernel(head)) + self.head_bias(head)

    def head_kernel(self, head: int) -> tf.Tensor:
        """Returns the kernel of one head, float32 [D, K]."""
        return tf.cast(self.kernel, tf.float32)[:, head]

    def head_bias(self, head: int) -> tf.Tensor:
        """Returns the bias of one head, float32 [K]."""
        return tf.cast(self.bias, tf.float32)[head]

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return (input_shape[0], self.num_heads, self.num_clusters)

    def get_config(self) -> dict:
        return {**super().get_config(), "num_heads": self.num_heads, "num_clusters": self.num_clusters}


def find_multi_head(model: keras.Model) -> MultiHead:
    """Returns the one MultiHead layer of `model`.

    Raises:
        ValueError: there is none, or there are several, whose labels cannot be told apart.
    """
    heads = [layer for layer in model.layers if isinstance(layer, MultiHead)]
    if len(heads) != 1:
        names = ", ".join(layer.name for layer in (heads or model.layers))
        raise ValueError(
            f"The model must have exactly one sela_tf.MultiHead layer at its top level. Received: {len(heads)} among the layers "
            f"of {model.name!r} ({names})"
        )
    return heads[0]


def check_heads(heads: MultiHead, num_heads: int, num_clusters: int) -> None:
    """Checks that a layer has the heads and clusters of a label table.

    Args:
        heads: the layer of the model.
        num_heads: the heads T of the table.
        num_clusters: the clusters K of the table.

    Raises:
        ValueError: one of the two numbers differs.
    """
    if (heads.num_heads, heads.num_clusters) != (num_heads, num_clusters):
        raise ValueError(
            f"The model has {heads.num_heads} heads of {heads.num_clusters} clusters, the label table {num_heads} of {num_clusters}"
        )
