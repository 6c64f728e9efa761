"""Images that a Python program hands over, to `sela_tf.run` and to the commands that need them again."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import tensorflow as tf
from sklearn.datasets import load_digits

import sela_tf
from sela_tf.data.errors import SourceError
from sela_tf.data.sources import SourceOptions, load_source, python
from sela_tf.data.sources.python import images_given

LIMIT = 2**20


@pytest.fixture
def digits() -> tuple[np.ndarray, np.ndarray]:
    found = load_digits()
    return np.rint(found.images * (255 / 16)).astype(np.uint8)[:90], found.target[:90]


def loaded(data, tell=None):
    with images_given(data, memory_limit=LIMIT, tell=tell or pytest.fail) as name:
        splits = load_source(name, SourceOptions(memory_limit=LIMIT))
        assert splits.eval is None
        return name, splits.train


def test_forms_of_the_same_images(digits):
    images, classes = digits
    pairs = tf.data.Dataset.from_tensor_slices((images[..., np.newaxis], classes))
    forms = [(images, classes), (images[..., np.newaxis], classes.reshape(-1, 1)), pairs, pairs.batch(32)]
    names = set()
    for form in forms:
        name, found = loaded(form)
        names.add(name)
        np.testing.assert_array_equal(found.images[..., 0], images)
        np.testing.assert_array_equal(found.classes, classes)
    for form in (images, pairs.map(lambda image, label: image), pairs.map(lambda image, label: image).batch(40)):
        name, found = loaded(form)
        names.add(name)
        assert found.classes is None
    assert len(names) == 1
    assert loaded(images[::-1].copy())[0] not in names


def test_numbers_of_other_types_are_rounded_and_this_is_said(digits):
    images, _ = digits
    lines = []
    _, found = loaded(images.astype(np.float32) + np.float32(0.2) * (images < 255), lines.append)
    np.testing.assert_array_equal(found.images[..., 0], images)
    assert lines == ["images of float32 in [0.2, 255] are rounded to whole numbers"]


def test_vectors(rng):
    vectors = rng.normal(size=(30, 7))
    _, found = loaded(vectors)
    assert found.is_vectors
    np.testing.assert_array_equal(found.images, vectors.astype(np.float32))


def infinite():
    return tf.data.Dataset.from_tensors(tf.zeros((4, 4, 3), tf.uint8)).repeat()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: np.zeros((5, 4, 4, 3), np.float32), r"must lie in \[0, 255\]. Received: float32 in \[0, 0\]: multiply them by 255"),
        (lambda: np.full((5, 4, 4), 300.0), r"Received: float64 in \[300, 300\]$"),
        (lambda: np.zeros((5, 4, 4, 2), np.uint8), r"C = 1 or 3.*\[5, 4, 4, 2\]"),
        (lambda: np.zeros((0, 4, 4), np.uint8), r"N > 0"),
        (lambda: np.array(["a", "b"]), "images must be uint8"),
        (lambda: np.zeros((2**11, 32, 32), np.uint8), "more than 0.0 GiB, `memory_limit="),
        (lambda: (np.zeros((5, 4, 4), np.uint8), np.zeros(4, int)), "classes must be 5 whole numbers"),
        (lambda: (np.zeros((5, 4, 4), np.uint8),), "a pair of images and class labels"),
        (lambda: 3, "Received: int"),
        (lambda: ([np.zeros((4, 4)), np.zeros((3, 4))], [0, 1]), "must have one size.*resize them"),
        (lambda: np.ma.masked_array(np.zeros((5, 4, 4), np.uint8), True), "masks are not read: fill it"),
        (lambda: tf.data.Dataset.from_tensor_slices([b"abc"] * 9), "as numbers: map tf.io.decode_image. Received: string"),
        (infinite, "infinite: leave out its repeat"),
        (lambda: infinite().take(10**9), "more than 0.0 GiB, `memory_limit="),
        (lambda: infinite().take(0), "is empty"),
        (lambda: tf.data.Dataset.from_tensors({"x": 1}), "must give images, or pairs"),
        (lambda: tf.data.Dataset.from_generator(lambda: (np.zeros((s, 4, 3), np.uint8) for s in (4, 5)),
            output_signature=tf.TensorSpec((None, 4, 3), tf.uint8)), r"several sizes, \[4, 4, 3\] and \[5, 4, 3\]: resize them"),
    ],
)  # fmt: skip
def test_others_are_refused(make, message):
    with pytest.raises(SourceError, match=message):
        loaded(make())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dataset": "digits"}, "`dataset=digits` is given beside other images"),
        ({"memory_limit": "4"}, "`memory_limit` must be a number"),
        ({"memory_limit": float("inf")}, "`memory_limit` must be above 0"),
        ({"minutes": "1"}, "`minutes` must be a number"),
        ({"minutes": float("nan")}, "`minutes` must be at least 0"),
        ({"minutes": -1.0}, "`minutes` must be at least 0"),
        ({"workdir": 3}, "`workdir` must be text. Received: 3"),
        ({"workdir": None}, "`workdir` is missing"),
    ],
)
def test_settings_of_another_kind_are_named_before_anything_is_done(digits, tmp_path, given, message):
    with pytest.raises(sela_tf.ConfigError, match=message):
        sela_tf.run(digits[0], **{"workdir": tmp_path / "run", **given})
    assert not (tmp_path / "run").exists()


def test_they_are_gone_afterwards(digits):
    name, _ = loaded(digits)
    with pytest.raises(SourceError, match=f"`dataset={name}`: these images were handed over by a Python program.*give `dataset`"):
        load_source(name)


@pytest.mark.slow
def test_a_run_by_python(digits, tmp_path, capsys):
    """It is continued by the same images and by no others; a command that needs the images asks for them."""
    images, classes = digits
    few = {"backbone": "resnet8", "width": 2, "num_clusters": 4, "batch_size": 16, "num_relabellings": 2, "report": False}
    results = sela_tf.run((images, classes), tmp_path / "run", epochs=2, seed=3, **few)
    said = capsys.readouterr().out
    assert re.search(r"kNN \d\.\d{3} ± .*untrained network's", said)
    assert f"The run lies in {tmp_path / 'run'}: results.json, labels.npz, model.weights.h5, metrics.jsonl, tensorboard/\n" in said
    assert results["config"]["dataset"].startswith("python:")
    assert results["data"]["num_training_images"] + results["data"]["num_held_out_images"] == 90
    # Settings that are not given are the run's own.
    again = sela_tf.run((images, classes), tmp_path / "run")
    assert again == json.loads(json.dumps(results))
    more = sela_tf.run((images, classes), tmp_path / "run", epochs=3)
    assert (more["config"]["epochs"], more["config"]["seed"], more["config"]["width"]) == (3, 3, 2)
    with pytest.raises(sela_tf.ConfigError, match="`dataset` was 'python:"):
        sela_tf.run((images[::-1].copy(), classes), tmp_path / "run", epochs=4)
    with pytest.raises(sela_tf.ConfigError, match="`width` was 2, is 3"):
        sela_tf.run((images, classes), tmp_path / "run", width=3)
    with pytest.raises(SourceError, match="give `dataset`"):
        sela_tf.label_run(sela_tf.LabelConfig(workdir=str(tmp_path / "run"), output=str(tmp_path / "labels.csv")))
    np.savez(tmp_path / "images.npz", images=images)
    settings = sela_tf.LabelConfig(
        workdir=str(tmp_path / "run"), output=str(tmp_path / "labels.csv"), dataset=f"npz:{tmp_path / 'images.npz'}"
    )
    sela_tf.label_run(settings)
    assert len((tmp_path / "labels.csv").read_text().splitlines()) == 91
    with pytest.raises(TypeError, match="epocs"):
        sela_tf.run(images, tmp_path / "other", epocs=3)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("shapes", "is_batched"),
    [
        ([(None, 28, 28)], True), ([(28, 28, 3)], False), ([(None, 8)], True), ([(8,)], False), ([(4, 28, 28, 1)], True),
        ([(28, 28), ()], False), ([(28, 28), (10,)], False), ([(None, 28, 28), (None,)], True), ([(7, 28, 28), (7,)], True),
        ([(None, 28, 28), (None, 10)], True), ([(8,), (10,)], False),
    ],
)  # fmt: skip
def test_batches_are_told_from_images(shapes, is_batched):
    assert python._is_batched(*(tf.TensorSpec(shape, tf.float32) for shape in shapes)) is is_batched


def test_what_may_be_an_image_or_a_batch_of_vectors_is_refused():
    with pytest.raises(SourceError, match=r"gray images or batches of vectors: .*\[28, 28, 1\]"):
        python._is_batched(tf.TensorSpec((28, 28), tf.float32))
