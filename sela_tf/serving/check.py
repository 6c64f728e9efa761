"""A check that an exported model gives the outputs of its network, which also measures its speed."""

from __future__ import annotations

import json
import pathlib
import re
import subprocess
import sys
import tempfile
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from sela_tf.data.augment import clean_view
from sela_tf.data.decoding import decode_image
from sela_tf.data.image_set import ImageSet
from sela_tf.data.pipeline import inference_batches
from sela_tf.models.build import cut_at
from sela_tf.models.layer_names import EMBEDDING
from sela_tf.serving import stand_alone

NUM_IMAGES = max(stand_alone.BATCHES)
"""The largest number of images that a check uses."""


class MismatchError(ValueError):
    """An exported model whose outputs are not those of its network."""

    exit_status = 4
    """The exit status of a command that ends with this error."""


class CheckResult(NamedTuple):
    """The measurements of an exported model that passed its check."""

    num_images: int
    """Number of different images that the model was called with."""
    tolerance: float
    """Largest difference that was allowed."""
    differences: dict[str, float]
    """Largest difference by output. The embedding's is relative to the network's largest value; those of probability and margin are
    absolute; the cluster's is the share of images and heads that differ, which may do so where the margin is within the tolerance."""
    seconds: dict[str, dict[str, list[float]]]
    """Seconds of single calls, by signature and batch size."""

    def rows(self) -> list[list[str]]:
        """Returns the rows of a table: signature, batch size, median and 95th percentile in ms, images per second."""
        return [
            [
                signature,
                size,
                f"{1e3 * np.median(taken):.1f}",
                f"{1e3 * np.percentile(taken, 95):.1f}",
                f"{int(size) / np.median(taken):.0f}",
            ]
            for signature, by_size in self.seconds.items()
            for size, taken in by_size.items()
        ]


def check_saved_model(
    saved_model: pathlib.Path,
    model: keras.Model,
    images: ImageSet,
    *,
    potentials: np.ndarray | None = None,
    lam: float = 1.0,
    names: np.ndarray | None = None,
    seconds: float = 0.5,
) -> CheckResult:
    """Calls every signature in a process without sela_tf and Keras, and compares the answers with the network's outputs.

    Args:
        saved_model: directory of the exported model.
        model: the network that was exported.
        images: images, of which the first NUM_IMAGES are used: their own files, or png for images in memory.
        potentials: potentials [T, K] that were exported with the network, if any.
        lam: lambda of their transport.
        names: names of the clusters [T, K] that were exported with the network, if any.
        seconds: seconds that the calls of one signature with one batch size are timed.

    Raises:
        MismatchError: the model cannot be run, or an output differs by more than the tolerance: 1e-4, or 2e-2 in half precision.
    """
    images = images.take(np.arange(min(NUM_IMAGES, len(images))))
    repeated = np.arange(NUM_IMAGES) % len(images)
    expected = {name: values[repeated] for name, values in _expected(model, images, potentials, lam).items()}
    with tempfile.TemporaryDirectory() as directory:
        _write_requests(pathlib.Path(directory), model, images, repeated)
        command = [sys.executable, "-I", stand_alone.__file__, str(saved_model), directory, str(seconds)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            # The error is named by a line like "ValueError: …", which an explanation over several lines may follow.
            named = [line for line in done.stderr.splitlines() if re.match(r"[\w.]+: ", line)]
            raise MismatchError(f"the exported model cannot be run: {named[-1] if named else done.stderr[-500:]}")
        with np.load(pathlib.Path(directory, "answers.npz")) as archive:
            answers = dict(archive)
        timings = json.loads(pathlib.Path(directory, "timings.json").read_text())
    tolerance = 1e-4 if model.get_layer(EMBEDDING).compute_dtype == "float32" else 2e-2
    differences = _compare(answers, expected, tolerance)
    _check_names(answers, names)
    return CheckResult(len(images), tolerance, differences, timings)


def _expected(model: keras.Model, images: ImageSet, potentials: np.ndarray | None, lam: float) -> dict[str, np.ndarray]:
    """Returns the network's outputs for the clean views of M images, by name; those of the heads computed in double precision.

    Returns:
        "embedding" float32 [M, D]; "cluster" int64, "probability" and "margin" float64, [M, T].
    """
    network = cut_at(model, EMBEDDING, model.output)
    found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for views, indices in inference_batches(images, size=tuple(model.input.shape[1:-1]), batch_size=NUM_IMAGES):
        embedding, logits = (np.asarray(tf.cast(values, tf.float32)) for values in network(views, training=False))
        found.update(zip(indices.numpy().tolist(), zip(embedding, logits, strict=True), strict=True))
    embedding, logits = (np.stack([found[i][part] for i in range(len(images))]) for part in (0, 1))
    logits = logits.astype(np.float64) + (0.0 if potentials is None else np.asarray(potentials, np.float64) / lam)
    probabilities = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities /= probabilities.sum(axis=-1, keepdims=True)
    second, first = np.moveaxis(np.sort(probabilities, axis=-1)[..., -2:], -1, 0)
    return {"embedding": embedding, "cluster": probabilities.argmax(axis=-1), "probability": first, "margin": first - second}


def _write_requests(directory: pathlib.Path, model: keras.Model, images: ImageSet, repeated: np.ndarray) -> None:
    """Writes the requests that `stand_alone` reads: the images in the order of the indices `repeated`."""
    if images.is_vectors:
        np.save(directory / "pixels.npy", images.arrays.pixels[repeated])
        return
    height, width, _ = model.input.shape[1:]
    if images.images is not None:
        pixels = list(images.images)
        encoded = [tf.io.encode_png(image).numpy() for image in pixels]
    else:
        encoded = list(images.encoded(tf.range(len(images), dtype=tf.int64)).numpy())
        pixels = [decode_image(tf.constant(data), images.channels, images.rules).numpy() for data in encoded]
    with tf.io.TFRecordWriter(str(directory / "files.tfrecord")) as writer:
        for i in repeated:
            writer.write(encoded[i])
    if len({image.shape for image in pixels}) > 1:
        # The images of one request must have the same size.
        pixels = [clean_view(image, (height, width)).numpy() for image in pixels]
    np.save(directory / "pixels.npy", np.stack([pixels[i] for i in repeated]).astype(np.float32))


def _compare(answers: dict[str, np.ndarray], expected: dict[str, np.ndarray], tolerance: float) -> dict[str, float]:
    """Returns the largest difference of each output over all signatures and batches.

    Args:
        answers: outputs by SIGNATURE/BATCH/OUTPUT, as `stand_alone` writes them.
        expected: outputs of the network for the same images.
        tolerance: the largest difference allowed.

    Raises:
        MismatchError: a difference is too large, or a bad input is not answered as one.
    """
    largest = dict.fromkeys(expected, 0.0)
    for signature in dict.fromkeys(key.split("/")[0] for key in answers):
        for size in (*map(str, stand_alone.BATCHES), "session", "bad"):
            found = {name: answers[f"{signature}/{size}/{name}"] for name in (*expected, "valid")}
            good = np.ones(len(found["valid"]), bool)
            if size == "bad":
                good[stand_alone.BAD_ROW] = False
                blank = {name: found[name][~good] for name in expected}
                if (blank.pop("cluster") != -1).any() or any(values.any() for values in blank.values()):
                    raise MismatchError(f"{signature}: what is no image is answered as if it were one")
            if (found["valid"] != good).any():
                raise MismatchError(
                    f"{signature}, batch {size}: {int((found['valid'] != good).sum())} images are valid or not by mistake"
                )
            for name in expected:
                difference, allowed = _difference(name, found, expected, good, tolerance)
                if not difference <= allowed:
                    raise MismatchError(
                        f"{signature}, batch {size}: {name} differs from the network's by {difference:.2g}, and {allowed:g} is allowed"
                    )
                largest[name] = max(largest[name], difference)
    return largest


def _check_names(answers: dict[str, np.ndarray], names: np.ndarray | None) -> None:
    """Checks that every answer calls its clusters by their names, and what is no image by none.

    Args:
        answers: outputs by SIGNATURE/BATCH/OUTPUT.
        names: names of the clusters [T, K]; None where nothing is to be called by a name.

    Raises:
        MismatchError: it does not.
    """
    for key in [key.removesuffix("cluster") for key in answers if key.endswith("/cluster")]:
        clusters, found = answers[f"{key}cluster"], answers.get(f"{key}name")
        if names is None:
            agree = found is None
        else:
            wanted = np.where(clusters < 0, "", names[np.arange(len(names)), clusters])
            agree = found is not None and bool((np.char.encode(wanted, "utf-8") == found).all())
        if not agree:
            raise MismatchError(f"{key.rstrip('/')}: clusters are not called by their names")


def _difference(
    name: str, found: dict[str, np.ndarray], expected: dict[str, np.ndarray], good: np.ndarray, tolerance: float
) -> tuple[float, float]:
    """Returns (the difference of the output `name` in the units of `CheckResult.differences`, the difference allowed).

    Args:
        name: "embedding", "cluster", "probability" or "margin".
        found: outputs of a batch of the exported model.
        expected: outputs of the network, which begin with the same images.
        good: bool [B], the rows that hold images.
        tolerance: the largest difference allowed of a value.
    """
    wanted, given = expected[name][: len(good)][good], found[name][good]
    if name == "cluster":
        # Clusters may differ where the two most probable ones are as close as the tolerance.
        wrong = (wanted != given) & (expected["margin"][: len(good)][good] > tolerance)
        return float((wanted != given).mean()), 0.0 if wrong.any() else 1.0
    scale = max(float(np.abs(expected["embedding"]).max()), 1e-12) if name == "embedding" else 1.0
    return float(np.abs(wanted - given).max()) / scale, tolerance
