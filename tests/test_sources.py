"""Sources of arrays (digits, idx, npz, synthetic) on real files, and what each says of files that will not do."""

from __future__ import annotations

import gzip
import pathlib
import struct

import numpy as np
import pytest

from sela_tf.data.errors import SourceError
from sela_tf.data.sources import SOURCES, SourceOptions, arrays, load_source, outline_source, synthetic_count
from sela_tf.settings.paths import SOURCES_WITH_PATH, SOURCES_WITHOUT_PATH


def write_idx(path: pathlib.Path, array: np.ndarray) -> None:
    data = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def test_the_settings_make_the_paths_of_all_kinds_absolute():
    """The settings are read before TensorFlow is loaded, and so have a list of their own; `tfrecords` is a kind of ingestion."""
    assert {kind for kind, source in SOURCES.items() if source.path} | {"tfrecords"} == set(SOURCES_WITH_PATH)
    assert {kind for kind, source in SOURCES.items() if not source.path} == set(SOURCES_WITHOUT_PATH)


class TestDigitsIdxNpz:
    def test_digits(self):
        splits = load_source("digits")
        assert splits.train.images.shape == (1797, 8, 8, 1)
        assert splits.train.images.max() == 255
        assert set(splits.train.classes) == set(range(10))
        assert splits.eval is None

    def test_fashion_mnist(self, fashion_mnist):
        splits = load_source(f"idx:{fashion_mnist}")
        assert (len(splits.train), len(splits.eval)) == (60_000, 10_000)
        assert np.bincount(splits.train.classes).tolist() == [6000] * 10
        assert splits.train.images.mean() == pytest.approx(72.94, abs=0.01)  # .2860 of 255, the figure that everyone uses

    @pytest.mark.parametrize("suffix", [".gz", ""])
    def test_idx(self, tmp_path, rng, suffix):
        images = rng.integers(0, 256, (6, 5, 4), dtype=np.uint8)
        write_idx(tmp_path / f"train-images-idx3-ubyte{suffix}", images)
        splits = load_source(f"idx:{tmp_path}")
        np.testing.assert_array_equal(splits.train.images[..., 0], images)
        assert splits.train.classes is None
        assert splits.eval is None
        write_idx(tmp_path / f"train-labels-idx1-ubyte{suffix}", np.arange(6, dtype=np.uint8))
        write_idx(tmp_path / f"t10k-images-idx3-ubyte{suffix}", images[:2])
        splits = load_source(f"idx:{tmp_path}")
        assert splits.train.classes.tolist() == list(range(6))
        assert len(splits.eval) == 2
        assert load_source(f"idx:{tmp_path}", SourceOptions(use_classes=False)).train.classes is None

    def test_idx_that_is_cut_or_wrong(self, tmp_path, rng):
        path = tmp_path / "train-images-idx3-ubyte.gz"
        with pytest.raises(SourceError, match="no train-images-idx3-ubyte"):
            load_source(f"idx:{tmp_path}")
        write_idx(path, rng.integers(0, 256, (6, 5, 4), dtype=np.uint8))
        whole = path.read_bytes()
        for broken in (whole[:-20], b"", gzip.compress(gzip.decompress(whole)[:-3]), gzip.compress(b"\0\0\x0d\x01\0\0\0\1\0")):
            path.write_bytes(broken)
            with pytest.raises(SourceError, match="train-images-idx3-ubyte.gz"):
                load_source(f"idx:{tmp_path}")

    def test_synthetic(self):
        images, held_out, *_ = load_source("synthetic:40")
        assert held_out is None
        assert images.images.shape == (40, 64, 64, 3)
        assert np.bincount(images.classes).tolist() == [4] * 10
        assert images.fingerprint() == load_source("synthetic:40").train.fingerprint()
        assert len(np.unique(images.images, axis=0)) == 40
        assert len(load_source("synthetic").train) == 4096
        for count in ("0", "many", "-3", str(2**31)):
            with pytest.raises(SourceError, match=f"synthetic:{count}`: synthetic:N makes N images, from 1"):
                load_source(f"synthetic:{count}")

    def test_memory_limits_synthetic_images_before_they_are_made(self, monkeypatch):
        assert [synthetic_count(name) for name in ("synthetic", "synthetic:1281167", "digits")] == [4096, 1_281_167, None]
        assert len(load_source("synthetic:5", SourceOptions(memory_limit=5 * 64 * 64 * 3)).train) == 5
        monkeypatch.setattr(np.random, "default_rng", None)
        for name, limit in (("synthetic:1281167", 4 * 2**30), ("synthetic:6", 5 * 64 * 64 * 3)):
            with pytest.raises(SourceError, match=f"{name}`: its decoded images take more than .* `memory_limit="):
                load_source(name, SourceOptions(memory_limit=limit))
        assert len(outline_source("synthetic:1281167", SourceOptions(memory_limit=2**34)).splits.train) == 1_281_167
        with pytest.raises(SourceError, match="synthetic:1281167`: its decoded images take more than"):
            outline_source("synthetic:1281167")

    def test_synthetic_images_are_the_same_in_any_number_of_parts(self, monkeypatch):
        whole = load_source("synthetic:25").train.images
        monkeypatch.setattr(arrays, "_AT_ONCE", 7)
        np.testing.assert_array_equal(load_source("synthetic:25").train.images, whole)

    def test_npz_by_our_names_and_by_keras(self, tmp_path, rng):
        images = rng.integers(0, 256, (6, 5, 4), dtype=np.uint8)
        np.savez(tmp_path / "ours.npz", images=images)
        assert load_source(f"npz:{tmp_path / 'ours.npz'}").train.channels == 1
        np.savez(
            tmp_path / "keras.npz", x_train=images, y_train=np.arange(6)[:, None] % 2, x_test=images[:2], y_test=np.array([0, 1])
        )
        splits = load_source(f"npz:{tmp_path / 'keras.npz'}")
        assert splits.train.classes.tolist() == [0, 1] * 3
        assert len(splits.eval) == 2

    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            ({"pictures": np.zeros(3)}, "no array 'images' or 'x_train' .it has pictures"),
            ({"images": np.zeros((3, 4, 4), np.float32)}, r"float32 \[3, 4, 4, 1\]"),
            ({"images": np.zeros((3, 4, 4, 2), np.uint8)}, r"\[3, 4, 4, 2\]"),
            ({"images": np.zeros((0, 4, 4), np.uint8)}, r"\[0, 4, 4, 1\]"),
            (
                {"images": np.zeros((3, 4, 4), np.uint8), "classes": np.zeros(2, int)},
                r"classes must be 3 whole numbers from 0, or words: .*int64 \[2\]",
            ),
        ],
    )
    def test_npz_that_will_not_do(self, tmp_path, arrays, message):
        np.savez(tmp_path / "x.npz", **arrays)
        with pytest.raises(SourceError, match=message):
            load_source(f"npz:{tmp_path / 'x.npz'}")

    def test_npz_that_is_cut_or_missing(self, tmp_path):
        np.savez(tmp_path / "x.npz", images=np.zeros((30, 9, 9), np.uint8))
        (tmp_path / "cut.npz").write_bytes((tmp_path / "x.npz").read_bytes()[:500])
        (tmp_path / "text.npz").write_text("hello")
        np.save(tmp_path / "array.npy", np.zeros(3))
        (tmp_path / "array.npy").rename(tmp_path / "array.npz")
        for name, message in (
            ("cut", "not an npz or npy file"),
            ("text", "not an npz or npy file"),
            ("array", r"images must be uint8 .* Received: float64 \[3\]"),
            ("none", "there is no file"),
        ):
            with pytest.raises(SourceError, match=message):
                load_source(f"npz:{tmp_path / name}.npz")

    def test_memory_limit(self):
        with pytest.raises(SourceError, match="`memory_limit="):
            load_source("digits", SourceOptions(memory_limit=1000))
