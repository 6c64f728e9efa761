"""Folders of images, the decoding of their files, and the splits of a source."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import struct

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from sela_tf.data.decoding import check_image, decode_image
from sela_tf.data.errors import SourceError
from sela_tf.data.headers import BadImageError
from sela_tf.data.image_set import ImageSet
from sela_tf.data.sources import SourceOptions, load_source
from sela_tf.data.splits import hold_out, match_classes, match_input


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


class TestFolder:
    def test_any_depth_size_and_mode(self, folder, rng):
        picture(rng).save(folder / "cats" / "deep" / "f.PNG")
        splits = load_source(f"folder:{folder}")
        assert len(splits.train) == 6
        assert splits.train.channels == 3
        assert splits.train.image_size is None
        assert splits.train.names == ("cats/a.png", "cats/b.jpg", "cats/deep/f.PNG", "dogs/c.png", "dogs/d.bmp", "dogs/e.gif")
        assert splits.train.class_names == ("cats", "dogs")
        assert splits.report == (
            f"6 images in {str(folder)!r}: 3 png, 1 jpeg, 1 bmp, 1 gif",
            f"2 classes in folder:{folder}: cats 3, dogs 3",
        )

    def test_classes_are_the_names_of_directories_where_there_are_two(self, folder, rng):
        assert load_source(f"folder:{folder}").train.classes.tolist() == [0, 0, 1, 1, 1]
        assert load_source(f"folder:{folder}", SourceOptions(use_classes=False)).train.classes is None
        assert load_source(f"folder:{folder / 'dogs'}").train.classes is None
        picture(rng).save(folder / "beside.png")  # an image beside the directories has no class, so there are none
        splits = load_source(f"folder:{folder}")
        assert splits.train.classes is None
        assert "no classes in folder:" in splits.report[-1]
        assert "1 images lie beside the directories that could be classes: beside.png" in splits.report[-1]

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
        assert splits.report[-2] == "left out, 2 images outside the splits, in other"
        (folder / "split" / "other").rename(folder / "split" / "test")
        splits = load_source(f"folder:{folder / 'split'}")
        assert len(splits.eval) == 2
        assert splits.report[-2] == "left out, 4 images outside the splits, in val"

    def test_what_is_left_out_is_said(self, folder, rng):
        picture(rng).save(folder / "cats" / "x.ico")
        picture(rng).save(folder / "cats" / "y.tiff")
        (folder / "notes.txt").write_text("BMW makes cars; this is no bitmap")
        (folder / ".hidden.png").write_text("hello")
        report = load_source(f"folder:{folder}").report
        assert report[1] == (
            "left out, 2 images of a format that is not read: cats/x.ico (ico: convert it to png); "
            f"cats/y.tiff (tiff: convert it to png). `sela-tf convert` with `input={folder}` writes a folder in which they are png"
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
        message = r"4 of 9 images cannot be read, `max_rejected=0`: cats/cut.jpg \(a damaged or cut jpeg\); dogs/empty.png .*`max_rejected=0.445`"
        with pytest.raises(SourceError, match=message):
            load_source(f"folder:{folder}")
        splits = load_source(f"folder:{folder}", SourceOptions(max_rejected=1.0))
        assert len(splits.train) == 5
        assert splits.report[1].startswith("left out, 4 damaged images: cats/cut.jpg")

    def test_empty_or_missing(self, tmp_path):
        with pytest.raises(SourceError, match="no jpeg, png, gif, bmp or webp image in"):
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

    def test_fingerprint_follows_names_and_content(self, folder):
        def images() -> ImageSet:
            return load_source(f"folder:{folder}").train

        before, file = images(), folder / "dogs" / "d.bmp"
        file.touch()
        assert images().fingerprint() == before.fingerprint()
        moved = file.rename(folder / "dogs" / "moved.bmp")
        renamed = images()
        np.testing.assert_array_equal(np.sort(renamed.store.checksums()), np.sort(before.store.checksums()))
        moved.rename(file)
        whole = bytearray(file.read_bytes())
        whole[-1] ^= 1  # a pixel, so that the size stays
        file.write_bytes(whole)
        edited = images()
        assert len({each.fingerprint() for each in (before, renamed, edited)}) == 3
        assert (edited.store.checksums() != before.store.checksums()).tolist() == [False, False, False, True, False]

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
            classes=np.array([7, 2**17, 7, 9, 9, 7]),
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
        with pytest.raises(SourceError, match="`eval_fraction=1e-09` leaves 1797"):
            hold_out(digits, 1e-9)

    def test_match_input(self, rng):
        gray = load_source("digits").train
        colour = match_input(gray, (8, 8, 3))
        assert colour.images.shape == (1797, 8, 8, 3)
        np.testing.assert_allclose(match_input(colour, (8, 8, 1)).images.astype(int), gray.images, atol=1)
