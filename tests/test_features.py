"""`--dataset=features:FILE`: vectors that stand for images, from the file to labels, probes and a served model."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pyarrow.parquet
import pytest
import tensorflow as tf
from fixtures import SMALL, is_one_line, run_door, run_doors, run_here
from sklearn.datasets import load_digits

import sela_tf
from sela_tf.data import augment
from sela_tf.data.augment import Augmentation
from sela_tf.data.errors import SourceError
from sela_tf.data.image_set import ImageSet
from sela_tf.data.pipeline import inference_batches, training_batches
from sela_tf.data.sources import SourceOptions, load_source
from sela_tf.data.splits import match_input
from sela_tf.data.stores import Arrays

# its fixtures are made once: in one process of several
pytestmark = pytest.mark.xdist_group("features")

STILL = Augmentation(feature_noise=0.0, feature_dropout=0.0)
VECTORS = ("--backbone=identity", "--width=0", "--hidden_units=32", "--feature_dropout=0.3", "--feature_noise=0.2")


def vector_set(rng, count: int = 50, values: int = 7) -> ImageSet:
    vectors = rng.normal(3.0, 2.0, (count, values)).astype(np.float32)
    return ImageSet(name="vectors", channels=values, store=Arrays(vectors), image_size=())


class TestSource:
    def test_npy_of_any_kind_of_number(self, tmp_path, rng):
        for dtype in (np.float32, np.float64, np.float16, np.int32):
            matrix = (10 * rng.normal(size=(30, 4))).astype(dtype)
            np.save(tmp_path / "f.npy", matrix)
            splits = load_source(f"features:{tmp_path}/f.npy")
            assert splits.eval is None
            assert splits.train.is_vectors
            assert splits.train.images.dtype == np.float32
            np.testing.assert_array_equal(splits.train.images, matrix.astype(np.float32))

    def test_npz_with_classes_and_a_test_split(self, tmp_path, rng):
        arrays = {
            "features": rng.normal(size=(30, 4)),
            "classes": np.arange(30) % 3,
            "eval_features": rng.normal(size=(9, 4)),
            "eval_classes": np.arange(9) % 3,
        }
        np.savez(tmp_path / "f.npz", **arrays)
        splits = load_source(f"features:{tmp_path}/f.npz")
        np.testing.assert_array_equal(splits.train.classes, arrays["classes"])
        np.testing.assert_allclose(splits.eval.images, arrays["eval_features"].astype(np.float32))
        np.testing.assert_array_equal(splits.eval.classes, arrays["eval_classes"])

    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            ({"features": np.zeros((5, 2, 2))}, r"must be numbers \[N, D\].*\[5, 2, 2\]"),
            ({"features": np.zeros((0, 2))}, r"\[0, 2\]"),
            ({"features": np.array([["a", "b"]])}, "must be numbers"),
            ({"features": np.array([[1.0, 2.0], [np.nan, 0.0]])}, "Row 1 is not"),
            ({"features": np.array([[1e300, 2.0]])}, "also as float32. Row 0"),
            ({"features": np.zeros((5, 2)), "classes": np.zeros(4, int)}, "must be 5 whole numbers from 0.*4"),
            ({"features": np.zeros((5, 2)), "eval_features": np.zeros((5, 3))}, r"as many columns.*\(5, 3\)"),
            ({"vectors": np.zeros((5, 2))}, "no array 'features' .it has vectors."),
        ],
    )
    @pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")
    def test_refuses_by_name(self, tmp_path, arrays, message):
        np.savez(tmp_path / "f.npz", **arrays)
        with pytest.raises(SourceError, match=message):
            load_source(f"features:{tmp_path}/f.npz")

    def test_refuses_files_that_are_none(self, tmp_path, rng):
        np.save(tmp_path / "f.npy", rng.normal(size=(30, 4)))
        cut = tmp_path / "cut.npy"
        cut.write_bytes((tmp_path / "f.npy").read_bytes()[:-7])
        (tmp_path / "text.npy").write_text("no matrix")
        np.save(tmp_path / "objects.npy", np.array([{}, {}], object))
        with pytest.raises(SourceError, match="holds Python objects, which are never unpickled"):
            load_source(f"features:{tmp_path / 'objects.npy'}")
        for name in ("cut", "text"):
            with pytest.raises(SourceError, match="is not an npz or npy file, or not a whole one"):
                load_source(f"features:{tmp_path}/{name}.npy")
        with pytest.raises(SourceError, match="there is no file"):
            load_source(f"features:{tmp_path}/none.npy")
        with pytest.raises(SourceError, match="is a directory"):
            load_source(f"features:{tmp_path}")
        with pytest.raises(SourceError, match=r"\[30, 4\] takes 0.0 GiB.*raise it"):
            load_source(f"features:{tmp_path}/f.npy", SourceOptions(memory_limit=479))

    def test_networks_take_what_they_were_made_for(self, rng):
        vectors, digits = vector_set(rng), load_source("digits").train
        assert match_input(vectors, (7,)) is not None
        with pytest.raises(SourceError, match="has vectors of 7 values, and the network takes 8"):
            match_input(vectors, (8,))
        with pytest.raises(SourceError, match="has vectors, and the network was made for images"):
            match_input(vectors, (8, 8, 1))
        with pytest.raises(SourceError, match="has images, and the network was made for vectors"):
            match_input(digits, (7,))


class TestViews:
    def test_clean_views_are_the_vectors(self, rng):
        vectors = vector_set(rng)
        seen = list(inference_batches(vectors, size=(), batch_size=20))
        indices = np.concatenate([index for _, index in seen])
        assert sorted(indices) == list(range(50))
        np.testing.assert_array_equal(np.concatenate([view for view, _ in seen]), vectors.images[indices])
        in_order = np.concatenate([index for _, index in inference_batches(vectors, size=(), batch_size=20, in_order=True)])
        assert in_order.tolist() == list(range(50))

    def test_dropout_and_noise_keep_mean_and_variance_as_they_say(self, rng):
        mean, deviation = np.array([1.0, -5.0], np.float32), np.array([2.0, 0.5], np.float32)
        vectors = (mean + deviation * rng.normal(size=(40_000, 2))).astype(np.float32)
        draws = rng.random((40_000, augment.NUM_DRAWS)).astype(np.float32)

        def view(**options: float) -> np.ndarray:
            return augment.vary_vectors(tf.constant(vectors), (mean, deviation), draws, STILL._replace(**options)).numpy()

        np.testing.assert_array_equal(view(), vectors)
        dropped = view(feature_dropout=0.25)
        assert (dropped == mean).mean() == pytest.approx(0.25, abs=0.01)
        np.testing.assert_allclose(dropped.mean(axis=0), vectors.mean(axis=0), atol=0.05)
        kept = dropped != mean
        np.testing.assert_allclose(dropped[kept], (mean + (vectors - mean) / 0.75)[kept], rtol=1e-5)
        noise = view(feature_noise=0.5) - vectors
        np.testing.assert_allclose(noise.std(axis=0), 0.5 * deviation, rtol=0.02)
        assert abs(np.corrcoef(noise.T)[0, 1]) < 0.02
        assert abs(np.corrcoef((dropped == mean).T)[0, 1]) < 0.02

    def test_views_differ_from_epoch_to_epoch_and_repeat_from_any_step(self, rng):
        vectors, noisy = vector_set(rng), STILL._replace(feature_noise=1.0, feature_dropout=0.5)

        def views(first: int) -> list[np.ndarray]:
            options = {"size": (), "augmentation": noisy, "batch_size": 10, "seed": 3, "first_step": first, "last_step": 15}
            return [view.numpy() for view, _ in training_batches(vectors, **options)]

        whole = views(0)
        for a, b in zip(whole[7:], views(7), strict=True):
            np.testing.assert_array_equal(a, b)
        assert len({view.tobytes() for view in whole}) == 15


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> pathlib.Path:
    """Heads that learn on the pixels of the digits; the file has their classes."""
    directory = tmp_path_factory.mktemp("features")
    digits = load_digits()
    np.savez(directory / "digits.npz", features=digits.data, classes=digits.target)
    flags = (f"--dataset=features:{directory}/digits.npz", *VECTORS, "--epochs=8", "--num_relabellings=8", "--batch_size=128")
    done = run_door(*SMALL, *flags, f"--workdir={directory}/run")
    assert done.returncode == 0, done.stderr
    assert "vectors of 64" in done.stdout
    return directory


def test_heads_learn_on_vectors(run):
    results = json.loads((run / "run" / "results.json").read_text())
    assert np.mean(results["trained"]["nmi"]) > np.mean(results["untrained"]["nmi"]) + 0.1
    sizes = [np.bincount(head, minlength=16) for head in np.load(run / "run" / "labels.npz")["labels"]]
    assert all(size.max() - size.min() <= 1 for size in sizes)
    assert sela_tf.load_run(run / "run").input.shape == (None, 64)


@pytest.mark.slow
def test_they_are_labelled_and_probed_and_served(run):
    """The doors all open the same run."""
    workdir = f"--workdir={run}/run"
    np.save(run / "new.npy", load_digits().data[:40])
    (labelled,) = run_doors([[workdir, f"--dataset=features:{run}/new.npy", f"--output={run}/l.parquet"]], "sela_tf.label")
    assert labelled.returncode == 0, labelled.stderr
    assert pyarrow.parquet.read_table(run / "l.parquet").num_rows == 40
    (probed,) = run_doors([[workdir]], "sela_tf.probe")
    assert probed.returncode == 0, probed.stderr
    assert "linear probe, embedding" in probed.stdout
    (served,) = run_doors([[workdir, f"--export_dir={run}/served", "--check"]], "sela_tf.export")
    assert served.returncode == 0, served.stderr
    assert "vectors float32 [B, 64]" in served.stdout
    loaded = tf.saved_model.load(str(run / "served" / "1"))
    vectors = tf.constant(load_digits().data[:40], tf.float32)
    table = pyarrow.parquet.read_table(run / "l.parquet")
    np.testing.assert_array_equal(loaded(vectors)["cluster"][:, 1], table["cluster_1"].to_numpy())


def test_bad_settings_are_refused_by_name(run, tmp_path):
    data = f"--dataset=features:{run}/digits.npz"
    out = f"--workdir={tmp_path}/out"
    commands = {
        "--backbone=resnet8 takes images, and the data set has vectors: give --backbone=identity or mlp": [*SMALL, data, out],
        "--image_size=8 is for images": [*SMALL, data, *VECTORS, "--image_size=8", out],
        "--rotation turns images": [*SMALL, data, *VECTORS, "--rotation", out],
        "leave --width out": [*SMALL, data, *VECTORS, "--width=8", out],
        "--feature_dropout must be at least 0 and below 1": [*SMALL, data, *VECTORS, "--feature_dropout=1", out],
        "takes vectors, and the data set has images": [*SMALL, *VECTORS, out],
    }
    for (message, _), door in zip(commands.items(), run_here(list(commands.values())), strict=True):
        is_one_line(door, message)
    assert not (tmp_path / "out").exists()
