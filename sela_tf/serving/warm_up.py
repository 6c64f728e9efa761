"""Warm-up requests, which TensorFlow Serving runs when it loads a model, so that no client waits for work done on first use."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

WARM_UP_FILE = pathlib.PurePath("assets.extra", "tf_serving_warmup_requests")
_BATCHES = (1, 8)


def write_warm_up_requests(saved_model: pathlib.Path, image_shape: Sequence[int], *, image_key: str) -> None:
    """Writes one request of one image and one of eight for each signature into the SavedModel. The images are noise.

    Args:
        saved_model: directory of the SavedModel.
        image_shape: shape of an image, (height, width, C), or of a vector, (D,).
        image_key: key of the encoded image in a tf.Example.

    Raises:
        ImportError: tensorflow-serving-api is not installed.
    """
    from tensorflow_serving.apis import model_pb2, predict_pb2, prediction_log_pb2

    images = np.random.default_rng(0).integers(0, 256, (max(_BATCHES), *image_shape), dtype=np.uint8)
    if len(image_shape) == 1:
        inputs: dict[str, tuple[str, Any]] = {"serving_default": ("vectors", images.astype(np.float32))}
    else:
        encoded = [tf.io.encode_png(image).numpy() for image in images]
        inputs = {
            "serving_default": ("image_bytes", encoded),
            "images": ("images", images.astype(np.float32)),
            "examples": ("examples", [_example(image_key, data) for data in encoded]),
        }
    file = saved_model / WARM_UP_FILE
    file.parent.mkdir()
    with tf.io.TFRecordWriter(str(file)) as writer:
        for signature, (name, values) in inputs.items():
            for size in _BATCHES:
                request = predict_pb2.PredictRequest(
                    model_spec=model_pb2.ModelSpec(signature_name=signature), inputs={name: tf.make_tensor_proto(values[:size])}
                )
                log = prediction_log_pb2.PredictLog(request=request)
                writer.write(prediction_log_pb2.PredictionLog(predict_log=log).SerializeToString())


def _example(key: str, data: bytes) -> bytes:
    """Returns a serialized tf.Example with `data` under `key`."""
    feature = {key: tf.train.Feature(bytes_list=tf.train.BytesList(value=[data]))}
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()
