"""Rows of a file of labels: what is said of each image, and a file that is whole or as before."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pytest
from scipy.special import softmax

from sela_tf.data.image_set import ImageSet
from sela_tf.data.stores import Arrays, Files
from sela_tf.files.storage import StorageError
from sela_tf.runs.labels import known_changes, read_labels
from sela_tf.serving.disagreement import HeadDisagreement
from sela_tf.serving.label_writer import LabelWriter
from sela_tf.serving.predictions import predictions
from sela_tf.settings.fields import ConfigError


def test_what_is_known_of_an_image_is_known_of_no_other_of_its_name_or_row(tmp_path, rng):
    """Changes of labels belong to the images that were trained on, wherever these lie, and to them alone."""

    def files_of(contents: dict[str, str]) -> ImageSet:
        for name, content in contents.items():
            (tmp_path / name).write_text(content)
        digests = tuple(hashlib.sha256(content.encode()).hexdigest() for content in contents.values())
        store = Files(tuple(str(tmp_path / name) for name in contents), digests=digests)
        return ImageSet(name="f", channels=1, store=store, names=tuple(contents))

    contents = {name: f"image {name}" for name in "abcd"}
    files = files_of(contents)
    pixels = ImageSet(name="p", channels=1, store=Arrays(rng.integers(0, 256, (4, 3, 3, 1), dtype=np.uint8)))
    for whole in (files, pixels):
        trained = whole.take(np.array([2, 0]))
        labels = {
            "num_changes": np.array([[3, 0], [1, 1]]),
            "data_fingerprint": np.array(trained.fingerprint()),
            "source_rows": trained.rows,
            **({} if trained.names is None else {"names": np.array(trained.names)}),
        }
        np.testing.assert_array_equal(known_changes(whole, labels), [1, np.nan, 4, np.nan])
        np.testing.assert_array_equal(known_changes(trained, labels), [4, 1])
        assert np.isnan(known_changes(whole.take(np.array([1, 2])), labels)).all()
        if whole is files:
            # the same file, of which two systems write the name in two ways
            decomposed = dataclasses.replace(files, names=("a", "b", "cafe\u0301", "d"))
            composed = dataclasses.replace(trained, names=("caf\u00e9", "a"))
            again = {**labels, "names": np.array(composed.names), "data_fingerprint": np.array(composed.fingerprint())}
            np.testing.assert_array_equal(known_changes(decomposed, again), [1, np.nan, 4, np.nan])
            # a run that is older knows the names and sizes of its files
            sized = b"".join(trained.store.sized(trained.names))
            older = {**labels, "data_fingerprint": np.array(hashlib.sha256(b"2 1" + sized).hexdigest())}
            np.testing.assert_array_equal(known_changes(files, older), [1, np.nan, 4, np.nan])
            others = files_of({**contents, "c": "IMAGE c"})
            np.testing.assert_array_equal(known_changes(others, older), [1, np.nan, 4, np.nan])
        else:
            others = dataclasses.replace(pixels, store=Arrays(pixels.images + 1))
        assert np.isnan(known_changes(others, labels)).all()


def test_disagreement_is_the_jaccard_distance_of_the_members(rng):
    labels = rng.integers(0, 4, (3, 200))
    disagreement = HeadDisagreement(labels, num_clusters=4)
    found = disagreement.of(labels.T[:20])
    for i in range(20):
        members = [set(np.flatnonzero(head == head[i])) for head in labels]
        pairs = [(members[a], members[b]) for a in range(3) for b in range(a)]
        assert found[i] == pytest.approx(np.mean([1 - len(a & b) / len(a | b) for a, b in pairs]), abs=1e-6)
    assert HeadDisagreement(labels[:1], num_clusters=4).of(labels[:1].T).max() == 0


def test_predictions_of_given_clusters(rng):
    logits = rng.normal(size=(5, 2, 4)).astype(np.float32)
    said = predictions(logits, clusters=np.argmin(logits, axis=-1))
    probabilities = softmax(logits, axis=-1)
    np.testing.assert_allclose(said.probability, probabilities.min(axis=-1), atol=1e-6)
    np.testing.assert_allclose(said.margin, probabilities.min(axis=-1) - probabilities.max(axis=-1), atol=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        {"labels": np.zeros((2, 9))},
        {"labels": np.full((2, 9), 16)},
        {"labels": np.full((2, 9), -1)},
        {"labels": np.zeros(9, int)},
        {"labels": np.zeros((3, 9), int)},
        {"num_changes": np.zeros((2, 8), int)},
        {"num_relabellings": np.zeros(3, int)},
        {"source_rows": np.arange(8)},
        {"potentials": np.zeros((2, 3), np.float32)},
        {"potentials": np.full((2, 16), np.nan, np.float32)},
        {"lam": np.array(0.0)},
    ],
)
def test_damaged_labels_are_refused(tmp_path, change):
    whole = {
        "labels": np.zeros((2, 9), int),
        "num_changes": np.zeros((2, 9), int),
        "num_relabellings": np.ones(2, int),
        "potentials": np.zeros((2, 16), np.float32),
        "lam": np.array(25.0),
        "converged": np.ones(2, bool),
        "data_fingerprint": np.array("abc"),
        "source_rows": np.arange(9),
    }
    np.savez(tmp_path / "labels.npz", **whole)
    assert set(read_labels(tmp_path, (2, 16))) == set(whole)
    np.savez(tmp_path / "labels.npz", **{**whole, **change})
    with pytest.raises(ConfigError, match=r"labels.npz is missing or damaged \("):
        read_labels(tmp_path, (2, 16))
    with (tmp_path / "labels.npz").open("wb") as file:
        np.save(file, whole["labels"])
    with pytest.raises(ConfigError, match="not an archive"):
        read_labels(tmp_path, (2, 16))


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".npz"])
def test_nothing_is_left_on_a_full_disk(tmp_path, suffix, monkeypatch):
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with (
        pytest.raises(StorageError, match=rf"labels{suffix} cannot be written \(No space left"),
        LabelWriter(tmp_path / f"labels{suffix}") as writer,
    ):
        writer.write({"a": np.arange(3)})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".npz"])
def test_a_file_is_whole_or_as_before(tmp_path, suffix):
    path = tmp_path / f"labels{suffix}"
    path.write_text("before")

    def fail() -> None:
        with LabelWriter(path) as writer:
            writer.write({"a": np.arange(3)})
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "before"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
