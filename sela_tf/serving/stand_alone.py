"""A script that runs a SavedModel as a server would: in its own process, in which neither sela_tf nor Keras can be imported.

    python -I stand_alone.py SAVED_MODEL DIRECTORY SECONDS

DIRECTORY holds files.tfrecord, encoded images, and pixels.npy, the same images as float32 [N, h, w, C]; or only pixels.npy with vectors
float32 [N, D]. The script writes answers.npz, the outputs under the names SIGNATURE/BATCH/OUTPUT, and timings.json, the seconds of each
call: at least five calls, and more until SECONDS are over. The answers to one more batch of eight, SIGNATURE/session/OUTPUT, come from a
session, in which TensorFlow Serving runs a model: there variables are restored otherwise than by `tf.saved_model.load`.
"""

from __future__ import annotations

import json
import os
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    for blocked in ("sela_tf", "keras"):
        sys.modules[blocked] = None  # type: ignore[assignment]

import numpy as np
import tensorflow as tf

BATCHES = (1, 8, 64)
"""The batch sizes that every signature is called with."""
BAD_ROW = 3
"""The row of a batch of eight that is replaced by something that is no image, in one more call: SIGNATURE/bad/OUTPUT."""
IN_A_SESSION = 8
"""The size of the batch that a session answers."""
_LEAST_CALLS, _MOST_CALLS = 5, 200


def run(saved_model: str, directory: pathlib.Path, seconds: float) -> None:
    """Calls every signature with every batch size, and writes answers.npz and timings.json.

    Args:
        saved_model: path of the SavedModel.
        directory: directory of the requests and of the results.
        seconds: seconds that the calls of one signature with one batch size are timed.
    """
    served = tf.saved_model.load(saved_model)
    pixels = np.load(directory / "pixels.npy")
    nothing = np.full_like(pixels[0], np.nan)
    if pixels.ndim == 2:
        inputs: dict[str, tuple[str, Any, Any]] = {"serving_default": ("vectors", pixels, nothing)}
    else:
        files = [record.numpy() for record in tf.data.TFRecordDataset(str(directory / "files.tfrecord"))]
        inputs = {
            "serving_default": ("image_bytes", files, b"no image"),
            "examples": ("examples", [_example(data) for data in files], b"no example"),
            "images": ("images", pixels, nothing),
        }
    answers: dict[str, np.ndarray] = {}
    timings: dict[str, dict[str, list[float]]] = {}
    for signature, (name, values, bad) in inputs.items():
        ask = _client(served.signatures[signature], name)
        timings[signature] = {}
        for size in BATCHES:
            parts = [ask(values[start : start + size]) for start in range(0, len(values), size)]
            answers.update(
                {f"{signature}/{size}/{output}": np.concatenate([part[output] for part in parts]) for output in parts[0]}
            )
            timings[signature][str(size)] = _seconds(ask, values[:size], seconds)
        found = ask([*values[:BAD_ROW], bad, *values[BAD_ROW + 1 : 8]])
        answers.update({f"{signature}/bad/{output}": value for output, value in found.items()})
    answers.update(
        _answers_in_a_session(saved_model, {key: (name, values[:IN_A_SESSION]) for key, (name, values, _) in inputs.items()})
    )
    np.savez(directory / "answers.npz", **answers)  # type: ignore[arg-type]
    (directory / "timings.json").write_text(json.dumps(timings))


def _answers_in_a_session(saved_model: str, requests: dict[str, tuple[str, Any]]) -> dict[str, np.ndarray]:
    """Returns the outputs of each signature by SIGNATURE/session/OUTPUT, for rows of its input, which has a name."""
    answers = {}
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        loaded = tf.compat.v1.saved_model.load(session, ["serve"], saved_model)
        for signature, (name, rows) in requests.items():
            tensors = loaded.signature_def[signature]
            outputs = {output: info.name for output, info in tensors.outputs.items()}
            found = session.run(outputs, {tensors.inputs[name].name: rows})
            answers.update({f"{signature}/session/{output}": _storable(values) for output, values in found.items()})
    return answers


def _storable(values: np.ndarray) -> np.ndarray:
    """Returns an array that a file can hold: TensorFlow gives text as an array of objects, which takes pickle."""
    return values.astype("S") if values.dtype == object else values


def _client(function: Callable[..., dict[str, tf.Tensor]], name: str) -> Callable[[Any], dict[str, np.ndarray]]:
    """Returns a function that calls a signature with rows for its input `name`, and gives its outputs as arrays."""

    def ask(rows: Any) -> dict[str, np.ndarray]:
        found = function(**{name: tf.constant(rows)})
        return {output: _storable(value.numpy()) for output, value in found.items()}

    return ask


def _example(data: bytes) -> bytes:
    """Returns a serialized tf.Example that holds an encoded image."""
    feature = {"image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[data]))}
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()


def _seconds(ask: Callable[[Any], Any], rows: Any, seconds: float) -> list[float]:
    """Returns the seconds of each call with `rows`, of five to 200 calls."""
    taken: list[float] = []
    while len(taken) < _LEAST_CALLS or (sum(taken) < seconds and len(taken) < _MOST_CALLS):
        start = time.perf_counter()
        ask(rows)
        taken.append(time.perf_counter() - start)
    return taken


if __name__ == "__main__":
    run(sys.argv[1], pathlib.Path(sys.argv[2]), float(sys.argv[3]))
