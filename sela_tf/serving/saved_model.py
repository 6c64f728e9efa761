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

from sela_tf.compat.releases import tensorflow_variable
from sela_tf.data.augment import clean_view
from sela_tf.data.channels import shown_pixels, to_channels
from sela_tf.data.decoding import decode_image
from sela_tf.data.headers import readable
from sela_tf.data.pixel_rules import DEFAULT_RULES, PixelRules
from sela_tf.data.records import IMAGE_KEY
from sela_tf.files.atomic import whole_directory
from sela_tf.files.locks import sole_writer
from sela_tf.models.build import cut_at
from sela_tf.models.layer_names import EMBEDDING
from sela_tf.serving.predictions import predictions
from sela_tf.serving.warm_up import write_warm_up_requests

Answers = dict[str, tf.Tensor]
"""The outputs of every signature: "embedding" float32 [B, D]; "cluster" int64, "probability" and "margin" float32 [B, T]; "valid" bool
[B]. For an input that is not valid, the cluster is -1 and the other numbers are 0. Where clusters have names, also "name", UTF-8 string
[B, T], empty for a cluster without a name and for an input that is not valid."""

_PARALLEL = 16
"""The number of images that are decoded in parallel, if there are as many threads."""
_NOT_OPTIMISED = tf.data.Options()
"""The options of the data set within a call. Optimising it and tuning its threads would take longer than a batch."""
_NOT_OPTIMISED.autotune.enabled = False
_NOT_OPTIMISED.experimental_optimization.apply_default_optimizations = False


class ServedModel(tf.Module):
    """The part of a served model that is the same for every kind of input: the network, the potentials of its last transport, and names.

    Args:
        model: a network from one input [B, …] to logits [B, T, K], with a layer "embedding".
        potentials: potentials [T, K], which correct for the prior (`predictions`); None for the network's plain argmax.
        lam: lambda of that transport.
        names: names of the clusters, text [T, K]; None where they have none.
    """

    def __init__(self, model: keras.Model, potentials: np.ndarray | None = None, lam: float = 1.0, names: np.ndarray | None = None):
        super().__init__(name="sela")
        network = cut_at(model, EMBEDDING, model.output)
        # A server restores the variables that this object tracks. Where Keras 3's own are tracked, the restored ones are copies that
        # no signature reads, and every request fails (keras-team/keras#20095). So TensorFlow's are tracked, and a function hides the network.
        self.variables_of_network = [tensorflow_variable(variable) for variable in network.variables]
        self._run = lambda inputs: network(inputs, training=False)
        self.potentials = None if potentials is None else tf.Variable(potentials, trainable=False, dtype=tf.float32)
        self._lam = float(lam)
        # An empty last name is that of the cluster -1.
        self._names = None if names is None else np.append(names, [[""]] * len(names), axis=1)

    def signatures(self) -> dict[str, Callable[..., Answers]]:
        """Returns the functions that are exported, by the names of their signatures."""
        raise NotImplementedError

    def answers(self, inputs: tf.Tensor, valid: tf.Tensor) -> Answers:
        """Returns the answers for inputs [B, …] in the form that the network takes.

        Args:
            inputs: inputs [B, …]; rows that are not valid may hold anything finite.
            valid: bool [B], which rows are valid.
        """
        # TensorFlow's fused convolutions fail on an empty batch, so an empty one gets a row whose output is cut off.
        count = tf.shape(inputs)[0]
        some = tf.cond(count > 0, lambda: inputs, lambda: tf.zeros([1, *inputs.shape[1:]], inputs.dtype))
        embedding, logits = self._run(tf.ensure_shape(some, inputs.shape))
        found = {"embedding": tf.cast(embedding, tf.float32), **predictions(logits, self.potentials, lam=self._lam)._asdict()}
        blank = {"cluster": -1}
        masked = {
            name: tf.where(valid[:, tf.newaxis], values[:count], tf.constant(blank.get(name, 0), values.dtype))
            for name, values in found.items()
        }
        answers = {**masked, "valid": valid}
        if self._names is not None:
            table = tf.constant(self._names)
            places = tf.math.floormod(masked["cluster"], table.shape[1])
            answers["name"] = tf.transpose(tf.gather(table, tf.transpose(places), batch_dims=1))
        return answers


class ServedImages(ServedModel):
    """A served model of images of any size: encoded files, tf.Examples or pixels. The network sees the clean view of evaluation.

    Args:
        model: a network from images [B, H, W, C] in [0, 255], with 1 or 3 channels C, to logits [B, T, K].
        potentials: potentials [T, K]; None for the network's plain argmax.
        lam: lambda of their transport.
        names: names of the clusters, text [T, K]; None where they have none.
        pixel_rules: the rules by which files become pixels, those of training.
    """

    def __init__(
        self,
        model: keras.Model,
        potentials: np.ndarray | None = None,
        lam: float = 1.0,
        names: np.ndarray | None = None,
        pixel_rules: PixelRules = DEFAULT_RULES,
    ):
        super().__init__(model, potentials, lam, names)
        height, width, self._channels = model.input.shape[1:]
        self._size, self._rules = (height, width), pixel_rules

    def signatures(self) -> dict[str, Callable[..., Answers]]:
        return {"serving_default": self.encoded, "images": self.__call__, "examples": self.examples}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])
    def encoded(self, image_bytes: tf.Tensor) -> Answers:
        """Returns the answers for encoded jpeg, png, gif, bmp or webp files, strings [B]. Anything else is not valid."""

        def view(data: tf.Tensor) -> tf.Tensor:
            return clean_view(decode_image(data, self._channels, self._rules), self._size)

        # An empty string is no image, so a file that is too large, or would be decoded wrongly, is not decoded.
        image_bytes = tf.where(readable(image_bytes, self._rules), image_bytes, "")
        return self.answers(*_each(image_bytes, view, [*self._size, self._channels]))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
    def examples(self, examples: tf.Tensor) -> Answers:
        """Returns the answers for serialized tf.Examples [B] that hold such a file under "image/encoded"."""
        feature = {IMAGE_KEY: tf.io.FixedLenFeature([], tf.string)}
        image_bytes, _ = _each(examples, lambda example: tf.io.parse_single_example(example, feature)[IMAGE_KEY], [])
        return self.encoded(image_bytes)

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, None], tf.float32, name="images")])
    def __call__(self, images: tf.Tensor) -> Answers:
        """Returns the answers for images [B, h, w, C] in [0, 255] with 1 to 4 channels, of which even numbers include transparency.

        One with NaN or infinity is not valid. Where there is transparency, values are rounded first.
        """
        known = tf.debugging.Assert((tf.shape(images)[-1] >= 1) & (tf.shape(images)[-1] <= 4), ["1 to 4 channels, not", images])
        with tf.control_dependencies([known]):
            valid = tf.reduce_all(tf.math.is_finite(images), axis=[1, 2, 3])
        images = tf.where(valid[:, tf.newaxis, tf.newaxis, tf.newaxis], images, 0.0)

        def laid() -> tf.Tensor:
            whole = tf.saturate_cast(tf.round(images), tf.uint8)
            return tf.cast(shown_pixels(whole, self._channels, self._rules), tf.float32)

        has_alpha = (tf.shape(images)[-1] % 2 == 0) & (not self._rules.are_old)
        pixels = tf.cond(has_alpha, laid, lambda: to_channels(images, self._channels))
        views = clean_view(pixels, self._size)
        return self.answers(tf.ensure_shape(views, [None, *self._size, self._channels]), valid)


class ServedVectors(ServedModel):
    """A served model of vectors that stand for images.

    Args:
        model: a network from vectors [B, D] to logits [B, T, K].
        potentials: potentials [T, K]; None for the network's plain argmax.
        lam: lambda of their transport.
        names: names of the clusters, text [T, K]; None where they have none.
    """

    def __init__(self, model: keras.Model, potentials: np.ndarray | None = None, lam: float = 1.0, names: np.ndarray | None = None):
        super().__init__(model, potentials, lam, names)
        spec = tf.TensorSpec([None, model.input.shape[1]], tf.float32, name="vectors")
        self.__call__ = tf.function(self._call, input_signature=[spec])

    def signatures(self) -> dict[str, Callable[..., Answers]]:
        return {"serving_default": self.__call__}

    def _call(self, vectors: tf.Tensor) -> Answers:
        """Returns the answers for vectors [B, D]. One with NaN or infinity is not valid."""
        valid = tf.reduce_all(tf.math.is_finite(vectors), axis=1)
        return self.answers(tf.where(valid[:, tf.newaxis], vectors, 0.0), valid)


def _each(items: tf.Tensor, function: Callable[[tf.Tensor], tf.Tensor], shape: Sequence[int]) -> tuple[tf.Tensor, tf.Tensor]:
    """Applies `function` to each item, and survives its errors.

    A TensorFlow graph has no way to catch an error other than a data set, which drops the element that caused it. One data set serves the
    whole batch, because one for each item takes forty times as long. `function` should be small, because a data set traces its graph
    anew in every call.

    Args:
        items: items [B].
        function: a function from an item to a tensor of `shape`.
        shape: shape of its result.

    Returns:
        (values [B, *shape], 0 or "" where `function` failed; bool [B], True where it succeeded).
    """

    def numbered(index: tf.Tensor, item: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return index, tf.ensure_shape(function(item), shape)

    count = tf.shape(items, tf.int64)[0]
    found = tf.data.Dataset.from_tensor_slices(items).enumerate().map(numbered, num_parallel_calls=_PARALLEL).ignore_errors()
    # All elements are taken as one batch. A last row, cut off below, is added because a data set gives no empty batch.
    dtype = found.element_spec[1].dtype
    last = tf.data.Dataset.from_tensors((count, tf.zeros(shape, dtype)))
    places, values = found.concatenate(last).batch(count + 1).with_options(_NOT_OPTIMISED).get_single_element()
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
    names: np.ndarray | None = None,
    pixel_rules: PixelRules = DEFAULT_RULES,
    warm_up: bool = False,
    check: Callable[[pathlib.Path], None] | None = None,
) -> None:
    """Writes one SavedModel into the new directory `path`, whole or not at all.

    The SavedModel needs neither sela_tf nor Keras. Its signatures are `serving_default` (image_bytes: encoded files, strings [B]),
    `examples` (serialized tf.Examples [B] with the key "image/encoded") and `images` (float32 [B, h, w, C] in [0, 255]). The loaded object
    is callable like `images`. A network over vectors has only `serving_default` (vectors: float32 [B, D]). All signatures return
    `Answers`.

    Args:
        model: a network from images [B, H, W, C], or vectors [B, D], to logits [B, T, K], with a layer "embedding", as `sela_tf.load_run`
            returns it.
        path: path of the directory; TensorFlow Serving needs a number as its name.
        potentials: potentials [T, K], which correct for the prior; None for the network's plain argmax.
        lam: lambda of the transport that the potentials belong to.
        names: names of the clusters, text [T, K], empty where a cluster has none; None to leave them out of the answers.
        pixel_rules: the rules by which image files become pixels, those of training; by default transparent parts become white.
        warm_up: add requests that TensorFlow Serving runs before it reports that it is ready; needs tensorflow-serving-api.
        check: called with the complete, not yet renamed directory. If it raises, `path` is not made.

    Raises:
        FileExistsError: `path` exists.
        HeldError: another process is writing it.
        StorageError: the disk is full, or cannot be written for another reason.
        ImportError: tensorflow-serving-api is needed and missing.
    """
    is_of_images = len(model.input.shape) == 4
    served = (
        ServedImages(model, potentials, lam, names, pixel_rules) if is_of_images else ServedVectors(model, potentials, lam, names)
    )
    path = pathlib.Path(path)
    if path.exists():
        raise FileExistsError(f"{path} is there already")
    path.parent.mkdir(parents=True, exist_ok=True)
    # TensorFlow Serving loads every directory whose name is a number.
    with sole_writer(path), whole_directory(path) as unfinished:
        # Debug information would hold paths of this machine's sources.
        options = tf.saved_model.SaveOptions(save_debug_info=False)
        tf.saved_model.save(served, str(unfinished), signatures=served.signatures(), options=options)
        if warm_up:
            write_warm_up_requests(unfinished, model.input.shape[1:], image_key=IMAGE_KEY)
        if check is not None:
            check(unfinished)


class Signature(NamedTuple):
    """A signature of a SavedModel on disk: its inputs and outputs by the names that clients use."""

    inputs: dict[str, tf.TensorSpec]
    outputs: dict[str, tf.TensorSpec]


def read_signatures(path: pathlib.Path) -> dict[str, Signature]:
    """Returns the signatures of the SavedModel in the directory `path`, by name."""
    saved = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())

    def specs(tensors: Mapping[str, Any]) -> dict[str, tf.TensorSpec]:
        return {
            name: tf.TensorSpec(tf.TensorShape(info.tensor_shape), tf.as_dtype(info.dtype))
            for name, info in sorted(tensors.items())
        }

    found = saved.meta_graphs[0].signature_def
    # TensorFlow adds a signature of its own, __saved_model_init_op.
    return {
        name: Signature(specs(each.inputs), specs(each.outputs))
        for name, each in sorted(found.items())
        if not name.startswith("__")
    }
