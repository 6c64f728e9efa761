"""A SavedModel that TensorFlow Serving can load, and that needs neither sela_tf nor Keras."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from sela_tf.data.augment import clean_view
from sela_tf.data.decoding import decode_image, readable, to_channels
from sela_tf.data.records import IMAGE_KEY
from sela_tf.files.atomic import whole_directory
from sela_tf.models.build import cut_at
from sela_tf.models.layer_names import EMBEDDING
from sela_tf.serving.predictions import opinions
from sela_tf.serving.warm_up import write_warm_up_requests

Answers = dict[str, tf.Tensor]
"""embedding float32 [B, D]; cluster int64, probability and margin float32 [B, T]; valid bool [B]. Of an input that is not valid the
cluster is -1, and the other numbers are zero."""

_PARALLEL = 16
"""Images that are decoded at a time, if there are threads for them."""
_AS_IT_IS = tf.data.Options()
"""To optimise a data set and to tune its threads costs more than a batch takes."""
_AS_IT_IS.autotune.enabled = False
_AS_IT_IS.experimental_optimization.apply_default_optimizations = False


class ServedModel(tf.Module):
    """What any kind of input is answered with: the network, and the potentials of its last transport.

    Args:
        model: one input [B, …] to logits [B, T, K], with a layer "embedding".
        potentials: [T, K], to correct for the prior (see `opinions`); None for the network's plain opinion.
        lam: of that transport.
    """

    def __init__(self, model: keras.Model, potentials: np.ndarray | None = None, lam: float = 1.0):
        super().__init__(name="sela")
        self.network = cut_at(model, EMBEDDING, model.output)
        self.potentials = None if potentials is None else tf.Variable(potentials, trainable=False, dtype=tf.float32)
        self._lam = float(lam)

    def signatures(self) -> dict[str, Callable[..., Answers]]:
        """By the names that clients ask for."""
        raise NotImplementedError

    def answers(self, inputs: tf.Tensor, valid: tf.Tensor) -> Answers:
        """Of inputs [B, …] as the network takes them, of which some (bool [B]) may not be valid."""
        # TensorFlow's fused convolutions fail on an empty batch, which is given one row that nobody sees
        count = tf.shape(inputs)[0]
        some = tf.cond(count > 0, lambda: inputs, lambda: tf.zeros([1, *inputs.shape[1:]], inputs.dtype))
        embedding, logits = self.network(tf.ensure_shape(some, inputs.shape), training=False)
        found = {"embedding": tf.cast(embedding, tf.float32), **opinions(logits, self.potentials, lam=self._lam)._asdict()}
        blank = {"cluster": -1}
        masked = {
            name: tf.where(valid[:, tf.newaxis], values[:count], tf.constant(blank.get(name, 0), values.dtype))
            for name, values in found.items()
        }
        return {**masked, "valid": valid}


class ServedImages(ServedModel):
    """Images of any size, as encoded files, in a tf.Example or as pixels; seen as training's evaluation sees them.

    Args:
        model: images [B, H, W, C] in [0, 255], C of 1 or 3, to logits [B, T, K].
        potentials: likewise.
        lam: likewise.
    """

    def __init__(self, model: keras.Model, potentials: np.ndarray | None = None, lam: float = 1.0):
        super().__init__(model, potentials, lam)
        height, width, self._channels = model.input.shape[1:]
        self._size = (height, width)

    def signatures(self) -> dict[str, Callable[..., Answers]]:
        return {"serving_default": self.encoded, "images": self.__call__, "examples": self.examples}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])
    def encoded(self, image_bytes: tf.Tensor) -> Answers:
        """Of jpeg, png, gif or bmp files; what is no such image is not valid."""

        def view(data: tf.Tensor) -> tf.Tensor:
            return clean_view(decode_image(data, self._channels), self._size)

        # an empty string is no image: what is too large, or would be decoded wrongly, is not decoded
        image_bytes = tf.where(readable(image_bytes), image_bytes, "")
        return self.answers(*_each(image_bytes, view, [*self._size, self._channels]))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
    def examples(self, examples: tf.Tensor) -> Answers:
        """Of serialized tf.Examples that hold such a file."""
        feature = {IMAGE_KEY: tf.io.FixedLenFeature([], tf.string)}
        image_bytes, _ = _each(examples, lambda example: tf.io.parse_single_example(example, feature)[IMAGE_KEY], [])
        return self.encoded(image_bytes)

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, None], tf.float32, name="images")])
    def __call__(self, images: tf.Tensor) -> Answers:
        """Of [B, h, w, C] in [0, 255], C from 1 to 4; what holds a NaN or an infinity is not valid."""
        known = tf.debugging.Assert((tf.shape(images)[-1] >= 1) & (tf.shape(images)[-1] <= 4), ["1 to 4 channels, not", images])
        with tf.control_dependencies([known]):
            valid = tf.reduce_all(tf.math.is_finite(images), axis=[1, 2, 3])
        images = tf.where(valid[:, tf.newaxis, tf.newaxis, tf.newaxis], images, 0.0)
        views = clean_view(to_channels(images, self._channels), self._size)
        return self.answers(tf.ensure_shape(views, [None, *self._size, self._channels]), valid)


class ServedVectors(ServedModel):
    """Vectors that stand for images.

    Args:
        model: vectors [B, D] to logits [B, T, K].
        potentials: likewise.
        lam: likewise.
    """

    def __init__(self, model: keras.Model, potentials: np.ndarray | None = None, lam: float = 1.0):
        super().__init__(model, potentials, lam)
        spec = tf.TensorSpec([None, model.input.shape[1]], tf.float32, name="vectors")
        self.__call__ = tf.function(self._call, input_signature=[spec])

    def signatures(self) -> dict[str, Callable[..., Answers]]:
        return {"serving_default": self.__call__}

    def _call(self, vectors: tf.Tensor) -> Answers:
        """Of [B, D]; what holds a NaN or an infinity is not valid."""
        valid = tf.reduce_all(tf.math.is_finite(vectors), axis=1)
        return self.answers(tf.where(valid[:, tf.newaxis], vectors, 0.0), valid)


def _each(items: tf.Tensor, function: Callable[[tf.Tensor], tf.Tensor], shape: Sequence[int]) -> tuple[tf.Tensor, tf.Tensor]:
    """The values [B, *shape] of `function` for the items [B], and whether it has one, bool [B]; there is zero, or "", where it fails.

    In a graph nothing catches an error but a data set, which leaves out the element that made it. It is one for the whole batch,
    because one for each item takes forty times as long; and what `function` does is best little, because a data set prepares it anew
    in every call.
    """

    def numbered(index: tf.Tensor, item: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return index, tf.ensure_shape(function(item), shape)

    count = tf.shape(items, tf.int64)[0]
    found = tf.data.Dataset.from_tensor_slices(items).enumerate().map(numbered, num_parallel_calls=_PARALLEL).ignore_errors()
    # one batch of all of them; and since an empty batch cannot be taken out of a data set, with a last row that is cut off
    dtype = found.element_spec[1].dtype
    last = tf.data.Dataset.from_tensors((count, tf.zeros(shape, dtype)))
    places, values = found.concatenate(last).batch(count + 1).with_options(_AS_IT_IS).get_single_element()
    places = places[:, tf.newaxis]
    filled = tf.tensor_scatter_nd_update(tf.zeros([count + 1, *shape], dtype), places, values)[:-1]
    valid = tf.scatter_nd(places, tf.ones_like(places[:, 0]), [count + 1])[:-1] > 0
    return tf.ensure_shape(filled, [None, *shape]), valid


def export_saved_model(
    model: keras.Model,
    path: str | os.PathLike[str],
    *,
    potentials: np.ndarray | None = None,
    lam: float = 1.0,
    warm_up: bool = False,
    check: Callable[[pathlib.Path], None] | None = None,
) -> None:
    """Writes one SavedModel into the new directory `path`: whole, or not at all.

    Its signatures are `serving_default` (image_bytes: files), `examples` (serialized tf.Examples with the key "image/encoded") and
    `images` (float32 [B, h, w, C] in [0, 255]); what is loaded is itself callable as the latter. Of a network over vectors there is only
    `serving_default` (vectors: float32 [B, D]). All give `Answers`.

    Args:
        model: images [B, H, W, C], or vectors [B, D], to logits [B, T, K], with a layer "embedding", as `sela_tf.load_run` gives it.
        path: of the directory; TensorFlow Serving wants a number as its name.
        potentials: [T, K], to correct for the prior; None for the network's plain opinion.
        lam: of the transport that they are of.
        warm_up: add requests for TensorFlow Serving to run before it reports that it is ready; needs tensorflow-serving-api.
        check: called with the unfinished directory when it is complete; what it raises keeps `path` from being made.

    Raises:
        FileExistsError: `path` is there already.
    """
    served = (ServedImages if len(model.input.shape) == 4 else ServedVectors)(model, potentials, lam)
    path = pathlib.Path(path)
    if path.exists():
        raise FileExistsError(f"{path} is there already")
    path.parent.mkdir(parents=True, exist_ok=True)
    # TensorFlow Serving loads every directory whose name is a number.
    with whole_directory(path, unfinished=path.with_name(f".unfinished-{path.name}-{os.getpid()}")) as unfinished:
        # no debug information: it holds where in the sources of this machine each operation was made
        options = tf.saved_model.SaveOptions(save_debug_info=False)
        tf.saved_model.save(served, str(unfinished), signatures=served.signatures(), options=options)
        if warm_up:
            write_warm_up_requests(unfinished, model.input.shape[1:], image_key=IMAGE_KEY)
        if check is not None:
            check(unfinished)


class Signature(NamedTuple):
    """Of a SavedModel on disk, by the names that clients use."""

    inputs: dict[str, tf.TensorSpec]
    outputs: dict[str, tf.TensorSpec]


def read_signatures(path: pathlib.Path) -> dict[str, Signature]:
    """Those of the SavedModel in the directory `path`."""
    saved = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())

    def specs(tensors: Mapping[str, Any]) -> dict[str, tf.TensorSpec]:
        return {
            name: tf.TensorSpec(tf.TensorShape(info.tensor_shape), tf.as_dtype(info.dtype))
            for name, info in sorted(tensors.items())
        }

    found = saved.meta_graphs[0].signature_def
    # TensorFlow adds one of its own, __saved_model_init_op
    return {
        name: Signature(specs(each.inputs), specs(each.outputs))
        for name, each in sorted(found.items())
        if not name.startswith("__")
    }
