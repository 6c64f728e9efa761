"""Every source on real files, and what each says of files that will not do."""

from __future__ import annotations

import dataclasses
import gzip
import os
import pathlib
import struct
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from sela_tf.data.decoding import BadImageError, check_image, decode_image
from sela_tf.data.errors import SourceError
from sela_tf.data.sources import SourceOptions, arrays, load_source, outline_source, synthetic_count
from sela_tf.data.sources.tfds import TfdsSource
from sela_tf.data.splits import hold_out, is_held_out, match_classes, match_input
from sela_tf.settings.fields import ConfigError
from sela_tf.settings.training import SelaConfig
from sela_tf.training.images import load_training_data


def write_idx(path: pathlib.Path, array: np.ndarray) -> None:
    data = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def picture(rng, size=(20, 14), mode="RGB") -> Image.Image:
    shape = (*size, {"L": 1, "RGB": 3, "RGBA": 4, "CMYK": 4, "LA": 2}[mode])
    pixels = rng.integers(0, 256, shape, dtype=np.uint8)
    return Image.fromarray(pixels[..., 0] if mode == "L" else pixels, mode=None if mode in ("L", "RGB", "RGBA") else mode)


@pytest.fixture
def folder(tmp_path, rng) -> pathlib.Path:
    """Many sizes, modes and types, two classes, some deep."""
    root = tmp_path / "images"
    (root / "cats" / "deep").mkdir(parents=True)
    (root / "dogs").mkdir()
    picture(rng, (20, 14)).save(root / "cats" / "a.png")
    picture(rng, (9, 33)).save(root / "cats" / "b.jpg")
    picture(rng, (16, 16), "L").save(root / "dogs" / "c.png")
    picture(rng, (8, 8)).save(root / "dogs" / "d.bmp")
    picture(rng, (8, 8)).convert("P").save(root / "dogs" / "e.gif")
    return root


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
        images, held_out, _ = load_source("synthetic:40")
        assert held_out is None
        assert images.images.shape == (40, 64, 64, 3)
        assert np.bincount(images.classes).tolist() == [4] * 10
        assert images.fingerprint() == load_source("synthetic:40").train.fingerprint()
        assert len(np.unique(images.images, axis=0)) == 40
        assert len(load_source("synthetic").train) == 4096
        for count in ("0", "many", "-3", str(2**31)):
            with pytest.raises(SourceError, match=f"synthetic:{count}: synthetic:N makes N images, from 1"):
                load_source(f"synthetic:{count}")

    def test_memory_limits_synthetic_images_before_they_are_made(self, monkeypatch):
        assert [synthetic_count(name) for name in ("synthetic", "synthetic:1281167", "digits")] == [4096, 1_281_167, None]
        assert len(load_source("synthetic:5", SourceOptions(memory_limit=5 * 64 * 64 * 3)).train) == 5
        monkeypatch.setattr(np.random, "default_rng", None)
        for name, limit in (("synthetic:1281167", 4 * 2**30), ("synthetic:6", 5 * 64 * 64 * 3)):
            with pytest.raises(SourceError, match=f"{name}: its decoded images take more than .* --memory_limit"):
                load_source(name, SourceOptions(memory_limit=limit))
        assert len(outline_source("synthetic:1281167", SourceOptions(memory_limit=2**34)).splits.train) == 1_281_167
        with pytest.raises(SourceError, match="synthetic:1281167: its decoded images take more than"):
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
            ({"images": np.zeros((3, 4, 4), np.uint8), "classes": np.zeros(2, int)}, "classes must be 3 integers"),
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
            ("cut", "not an npz file"),
            ("text", "not an npz file"),
            ("array", "not an npz file"),
            ("none", "there is no file"),
        ):
            with pytest.raises(SourceError, match=message):
                load_source(f"npz:{tmp_path / name}.npz")

    def test_memory_limit(self):
        with pytest.raises(SourceError, match="--memory_limit"):
            load_source("digits", SourceOptions(memory_limit=1000))


class TestFolder:
    def test_any_depth_size_and_mode(self, folder, rng):
        picture(rng).save(folder / "cats" / "deep" / "f.PNG")
        splits = load_source(f"folder:{folder}")
        assert len(splits.train) == 6
        assert splits.train.channels == 3
        assert splits.train.image_size is None
        assert splits.train.names == ("cats/a.png", "cats/b.jpg", "cats/deep/f.PNG", "dogs/c.png", "dogs/d.bmp", "dogs/e.gif")
        assert splits.train.class_names == ("cats", "deep", "dogs")
        assert splits.report == (f"6 images in {str(folder)!r}: 3 png, 1 jpeg, 1 bmp, 1 gif",)

    def test_classes_are_the_parents_names_where_there_are_two(self, folder, rng):
        assert load_source(f"folder:{folder}").train.classes.tolist() == [0, 0, 1, 1, 1]
        assert load_source(f"folder:{folder}", SourceOptions(use_classes=False)).train.classes is None
        assert load_source(f"folder:{folder / 'dogs'}").train.classes is None
        picture(rng).save(folder / "beside.png")  # an image beside the directories has no class, so there are none
        splits = load_source(f"folder:{folder}")
        assert splits.train.classes is None
        assert "because 1 images lie beside them: beside.png" in splits.report[-1]

    def test_a_class_may_be_called_train_and_evaluation_images_alone_are_refused(self, folder, rng):
        (folder / "cats").rename(folder / "train")
        assert load_source(f"folder:{folder}").train.class_names == ("dogs", "train")
        for name in ("val", "train2"):
            (folder / name).mkdir()
        (folder / "train").rename(folder / "val" / "cats")
        (folder / "dogs").rename(folder / "val" / "dogs")
        assert len(load_source(f"folder:{folder}").train) == 5  # as an `eval_dataset` may be
        (folder / "train2").rename(folder / "train")
        with pytest.raises(SourceError, match="the training directory is empty, and 'val' is for evaluation"):
            load_source(f"folder:{folder}")

    def test_links_are_followed_once_and_hidden_directories_are_not_looked_at(self, folder, tmp_path, rng):
        (tmp_path / "birds").mkdir()
        picture(rng).save(tmp_path / "birds" / "a.png")
        (folder / "birds").symlink_to(tmp_path / "birds")
        (folder / "dogs" / "loop").symlink_to(folder)
        (folder / ".thumbnails").mkdir()
        picture(rng).save(folder / ".thumbnails" / "a.png")
        train = load_source(f"folder:{folder}").train
        assert train.class_names == ("birds", "cats", "dogs")
        assert len(train) == 6

    def test_a_name_that_is_no_utf8_is_refused(self, folder, rng):
        picture(rng).save(os.path.join(os.fsencode(folder), b"\xff.png"), format="png")
        with pytest.raises(SourceError, match=r"udcff.png"):
            load_source(f"folder:{folder}")

    def test_a_bmp_with_a_palette_is_left_out_by_name(self, folder, rng):
        picture(rng).convert("P").save(folder / "dogs" / "p.bmp")
        assert "dogs/p.bmp (bmp with a palette: convert it to png)" in load_source(f"folder:{folder}").report[1]

    def test_splits(self, folder, rng):
        for split, count in (("train", 3), ("val", 2), ("other", 1)):
            for i in range(count):
                for name in ("cats", "dogs"):
                    (folder / "split" / split / name).mkdir(parents=True, exist_ok=True)
                    picture(rng, mode="L").save(folder / "split" / split / name / f"{i}.png")
        splits = load_source(f"folder:{folder / 'split'}")
        assert (len(splits.train), len(splits.eval)) == (6, 4)
        assert splits.train.classes.tolist() == [0, 0, 0, 1, 1, 1]
        assert splits.train.channels == 1
        assert splits.train.image_size == (20, 14)
        assert splits.report[-1] == "left out, 2 images outside the splits, in other"
        (folder / "split" / "other").rename(folder / "split" / "test")
        splits = load_source(f"folder:{folder / 'split'}")
        assert len(splits.eval) == 2
        assert splits.report[-1] == "left out, 4 images outside the splits, in val"

    def test_what_is_left_out_is_said(self, folder, rng):
        picture(rng).save(folder / "cats" / "x.webp")
        picture(rng).save(folder / "cats" / "y.tiff")
        (folder / "notes.txt").write_text("BMW makes cars; this is no bitmap")
        (folder / ".hidden.png").write_text("hello")
        report = load_source(f"folder:{folder}").report
        assert report[1] == (
            "left out, 2 images of a format that is not read: cats/x.webp (webp: convert it to jpeg, png, gif or bmp); "
            "cats/y.tiff (tiff: convert it to jpeg, png, gif or bmp)"
        )
        assert report[2] == "left out, 1 files that are no images"

    def test_damaged_images_are_refused_or_left_out_by_name(self, folder):
        whole = (folder / "cats" / "b.jpg").read_bytes()
        (folder / "cats" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
        (folder / "dogs" / "empty.png").write_bytes(b"")
        (folder / "dogs" / "text.png").write_text("hello")
        png = bytearray((folder / "cats" / "a.png").read_bytes())
        png[60] ^= 0xFF
        (folder / "dogs" / "flipped.png").write_bytes(png)
        message = r"4 of 9 images cannot be read: cats/cut.jpg \(a damaged or cut jpeg\); dogs/empty.png .*--skip_bad_images"
        with pytest.raises(SourceError, match=message):
            load_source(f"folder:{folder}")
        splits = load_source(f"folder:{folder}", SourceOptions(skip_bad_images=True))
        assert len(splits.train) == 5
        assert splits.report[1].startswith("left out, 4 damaged images: cats/cut.jpg")

    def test_empty_or_missing(self, tmp_path):
        with pytest.raises(SourceError, match="no jpeg, png, gif or bmp image in"):
            load_source(f"folder:{tmp_path}")
        (tmp_path / "a.txt").write_text("hello")
        with pytest.raises(SourceError, match="1 other files"):
            load_source(f"folder:{tmp_path}")
        with pytest.raises(SourceError, match="there is no directory"):
            load_source(f"folder:{tmp_path / 'none'}")
        with pytest.raises(SourceError, match="not a directory"):
            load_source(f"folder:{tmp_path / 'a.txt'}")
        with pytest.raises(SourceError, match="say which directory"):
            load_source("folder:")

    def test_fingerprint_follows_names_and_sizes(self, folder, rng):
        before = load_source(f"folder:{folder}").train.fingerprint()
        assert load_source(f"folder:{folder}").train.fingerprint() == before
        picture(rng, (21, 14)).save(folder / "cats" / "a.png")
        assert load_source(f"folder:{folder}").train.fingerprint() != before

    def test_a_bomb_is_refused_by_its_header(self, tmp_path):
        header = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBB", 13, b"IHDR", 40_000, 40_000, 8, 2, 0, 0, 0)
        with pytest.raises(BadImageError, match="40000 x 40000 pixels"):
            check_image(header + b"\0" * 50)


class TestDecoding:
    @pytest.mark.parametrize("channels", [1, 3])
    @pytest.mark.parametrize(
        ("mode", "kind"),
        [
            ("L", "png"),
            ("RGB", "png"),
            ("RGBA", "png"),
            ("LA", "png"),
            ("L", "jpeg"),
            ("RGB", "jpeg"),
            ("CMYK", "jpeg"),
            ("RGB", "bmp"),
            ("RGB", "gif"),
        ],
    )
    def test_every_mode_decodes_as_pillow_does(self, rng, tmp_path, mode, kind, channels):
        smooth = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((32, 24), Image.Resampling.BICUBIC)
        path = tmp_path / f"x.{kind}"
        smooth.convert(mode).save(path)
        pixels = tf.function(decode_image)(path.read_bytes(), channels).numpy()
        with Image.open(path) as image:
            rgb = image.convert("RGB") if mode != "CMYK" else smooth
            expected = np.asarray(rgb.convert("L") if channels == 1 else rgb).reshape(24, 32, channels)
        # CMYK to RGB is each library's own; chroma upsampling of jpeg differs a little
        tolerance = {"jpeg": 12, "gif": 3}.get(kind, 1.01) if mode != "CMYK" else 60
        assert np.abs(pixels.astype(int) - expected.astype(int)).max() <= tolerance
        info = check_image(path.read_bytes())
        assert (info.kind, info.height, info.width) == (kind, 24, 32)

    def test_sixteen_bits(self, tmp_path):
        Image.fromarray(np.full((4, 4), 257 * 99, np.uint16)).save(tmp_path / "x.png")
        assert decode_image((tmp_path / "x.png").read_bytes(), 1).numpy().max() == pytest.approx(99, abs=1)


class TestSplitsAndChannels:
    def test_match_classes_goes_by_name(self, folder, rng, tmp_path):
        for name in ("dogs", "apes"):
            (tmp_path / "eval" / name).mkdir(parents=True)
            picture(rng).save(tmp_path / "eval" / name / "a.png")
        train = load_source(f"folder:{folder}").train
        apes_dogs = load_source(f"folder:{tmp_path / 'eval'}", setting="eval_dataset").train
        with pytest.raises(SourceError, match="`eval_dataset=.*` does not have: apes"):
            match_classes(train, apes_dogs)
        dogs = match_classes(
            dataclasses.replace(train, class_names=("apes", "bears", "dogs"), classes=np.array([0, 0, 1, 2, 2])), apes_dogs
        )[1]
        assert dogs.classes.tolist() == [0, 2]

    def test_classes_without_names_are_numbered_from_0(self, tmp_path, rng):
        images = rng.integers(0, 256, (6, 5, 4), dtype=np.uint8)
        np.savez(
            tmp_path / "x.npz",
            images=images,
            classes=np.array([7, 2**40, 7, 9, 9, 7]),
            eval_images=images[:2],
            eval_classes=np.array([9, 3]),
        )
        train, held_out = match_classes(*load_source(f"npz:{tmp_path / 'x.npz'}")[:2])
        assert train.classes.tolist() == [1, 3, 1, 2, 2, 1]
        assert held_out.classes.tolist() == [2, 0]

    def test_hold_out_by_hash_of_the_index_or_name(self, folder):
        digits = load_source("digits").train
        train, held_out = hold_out(digits, 0.25)
        assert len(train) + len(held_out) == 1797
        assert len(held_out) / 1797 == pytest.approx(0.25, abs=0.03)
        again = hold_out(digits, 0.25)[1]
        np.testing.assert_array_equal(held_out.images, again.images)
        files = load_source(f"folder:{folder}").train
        names = hold_out(files, 0.5)[1].names
        fewer = files.take(np.arange(1, len(files)))
        assert set(hold_out(fewer, 0.5)[1].names) == set(names) - {files.names[0]}
        with pytest.raises(SourceError, match="--eval_fraction=1e-09 leaves 1797"):
            hold_out(digits, 1e-9)

    def test_match_input(self, rng):
        gray = load_source("digits").train
        colour = match_input(gray, (8, 8, 3))
        assert colour.images.shape == (1797, 8, 8, 3)
        np.testing.assert_allclose(match_input(colour, (8, 8, 1)).images.astype(int), gray.images, atol=1)


TFDS_SCRIPT = """
import sys
import numpy as np, tensorflow_datasets as tfds

class Shapes(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.2.0")
    SPLITS = {"train": (30, 6), "test": (10, 6)}

    def _info(self):
        features = {"image": tfds.features.Image(shape=(None, None, 3)), "label": tfds.features.ClassLabel(names=["a", "b"])}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {name: self._generate_examples(*shape) for name, shape in self.SPLITS.items()}

    def _generate_examples(self, count, size):
        for i in range(count):
            yield i, {"image": np.full((size or i + 2, size or 4, 3), i, np.uint8), "label": i % 2}

class Many(Shapes):
    SPLITS = {"train": (3, 0)}

for builder in (Shapes, Many):
    builder(data_dir=sys.argv[1]).download_and_prepare()
"""


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> pathlib.Path:
    """TFDS data sets prepared by another process, as a user's own would be."""
    directory = tmp_path_factory.mktemp("tfds")
    script = tmp_path_factory.mktemp("script") / "prepare.py"  # TFDS looks for the file of a builder's class
    script.write_text(TFDS_SCRIPT)
    subprocess.run([sys.executable, script, directory], check=True, capture_output=True, timeout=300)
    return directory


class TestTfds:
    @pytest.mark.parametrize("name", ["shapes", "shapes:1.2.0", "shapes:1.*.*"])
    def test_prepared_data_is_read(self, data_dir, name):
        splits = load_source(name, SourceOptions(data_dir=str(data_dir)))
        assert splits.train.images.shape == (30, 6, 6, 3)
        assert splits.train.class_names == ("a", "b")
        np.testing.assert_array_equal(splits.train.images[:, 0, 0, 0] % 2, splits.train.classes)
        assert len(splits.eval) == 10
        assert splits.train.fingerprint() == load_source(name, SourceOptions(data_dir=str(data_dir))).train.fingerprint()

    def test_does_not_wait_for_the_thread_that_tunes(self, data_dir, passes):
        load_source("shapes", SourceOptions(data_dir=str(data_dir)))
        assert [options.autotune.enabled for options in passes] == [False] * 2

    def test_settings_are_held_to_its_counts(self, data_dir, monkeypatch):
        """A data set without a test split is held to the exact hold-out; sizes that its features do not tell are nobody's fault."""
        monkeypatch.setattr(TfdsSource, "examples", None)
        few = {"num_clusters": 4, "batch_size": 2, "data_dir": str(data_dir)}
        with pytest.raises(ConfigError, match="--num_clusters=31 exceeds the 30 training images"):
            load_training_data(SelaConfig(dataset="shapes", **{**few, "num_clusters": 31}))
        kept = sum(not is_held_out(str(row), 0.4) for row in range(3))
        assert 0 < kept < 3
        with pytest.raises(ConfigError, match=f"--num_clusters=3 exceeds the {kept} training images"):
            load_training_data(SelaConfig(dataset="many", eval_fraction=0.4, **{**few, "num_clusters": 3}))
        with pytest.raises(TypeError):  # nothing is wrong, so that examples are read
            load_training_data(SelaConfig(dataset="shapes", **few))

    def test_many_sizes_and_limits(self, data_dir):
        with pytest.raises(SourceError, match="many sizes.*records:DIR"):
            load_source("many", SourceOptions(data_dir=str(data_dir)))
        with pytest.raises(SourceError, match="--memory_limit"):
            load_source("shapes", SourceOptions(data_dir=str(data_dir), memory_limit=500))

    def test_unknown_and_unprepared(self, tmp_path):
        with pytest.raises(SourceError, match="`dataset=no_such_set`: unknown"):
            load_source("no_such_set", SourceOptions(data_dir=str(tmp_path)))
        with pytest.raises(SourceError, match="`dataset=cifar10`: TFDS has not prepared it"):
            load_source("cifar10", SourceOptions(data_dir=str(tmp_path)))
