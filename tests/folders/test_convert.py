"""The conversion of images that TensorFlow does not read, of a file and of a folder."""

from __future__ import annotations

import csv
import importlib.util
import io
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from fixtures import is_one_line, run_here
from PIL import Image
from served import encoded, picture

from sela_tf.commands import convert as converter
from sela_tf.commands.convert import convert_folder
from sela_tf.data import converting
from sela_tf.data.converting import to_png
from sela_tf.data.errors import SourceError
from sela_tf.data.headers import BadImageError, UnreadableFormatError
from sela_tf.data.sources import load_source
from sela_tf.settings.commands import ConvertConfig
from sela_tf.settings.fields import ConfigError

RNG = np.random.default_rng(0)
COLOUR = picture(RNG, "RGB", (16, 24))


def decoded(data: bytes, dtype=tf.uint8) -> np.ndarray:
    return tf.io.decode_png(to_png(data), dtype=dtype).numpy()


class TestOneFile:
    @pytest.mark.parametrize(
        ("kind", "mode", "channels"),
        [
            ("TIFF", "RGB", 3), ("TIFF", "L", 1), ("TIFF", "1", 1), ("TIFF", "P", 3), ("TIFF", "RGBA", 4), ("TIFF", "LA", 4), ("TIFF", "CMYK", 3),
            ("BMP", "P", 3), ("BMP", "1", 1), ("PPM", "RGB", 3), ("PPM", "L", 1), ("PCX", "RGB", 3), ("TGA", "RGBA", 4),
            ("SGI", "RGB", 3), ("DDS", "RGBA", 4),
        ],
    )  # fmt: skip
    def test_pixels_are_those_that_pillow_shows(self, kind, mode, channels):
        data = encoded(COLOUR.convert(mode), kind)
        with Image.open(io.BytesIO(data)) as opened:
            wanted = np.asarray(opened.convert({1: "L", 3: "RGB", 4: "RGBA"}[channels]))
        found = decoded(data)
        assert found.shape[-1] == channels
        np.testing.assert_array_equal(found.reshape(wanted.shape), wanted)

    def test_sixteen_and_thirty_two_bits(self):
        values = RNG.integers(0, 65536, (5, 7)).astype(np.uint16)
        np.testing.assert_array_equal(decoded(encoded(Image.fromarray(values), "TIFF"), tf.uint16)[..., 0], values)
        np.testing.assert_array_equal(decoded(encoded(Image.fromarray(values.astype(np.int32)), "TIFF"), tf.uint16)[..., 0], values)
        share = (values / 65535).astype(np.float32)
        np.testing.assert_allclose(decoded(encoded(Image.fromarray(share), "TIFF"), tf.uint16)[..., 0], values, atol=1)
        for wrong in (np.full((2, 2), 70000, np.int32), np.full((2, 2), -1, np.float32), np.full((2, 2), np.nan, np.float32)):
            with pytest.raises(BadImageError, match="a tiff with values from .*: scale them to 0 to 65535"):
                to_png(encoded(Image.fromarray(wrong), "TIFF"))

    def test_they_stand_upright_and_a_transparent_colour_stays_so(self):
        exif = Image.Exif()
        exif[0x0112] = 6
        turned = np.rot90(np.asarray(COLOUR), -1)
        np.testing.assert_array_equal(decoded(encoded(COLOUR, "TIFF", exif=exif)), turned)
        np.testing.assert_array_equal(decoded(encoded(COLOUR, "PNG", exif=exif)), turned)
        palette = COLOUR.convert("P")
        pixels = decoded(encoded(palette, "GIF", transparency=palette.getpixel((0, 0))))
        assert pixels[0, 0, 3] == 0
        assert pixels[..., 3].max() == 255

    def test_what_cannot_be_read(self):
        for data in (b"", b"hello", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"):
            with pytest.raises(UnreadableFormatError, match="no image, or one that Pillow does not open"):
                to_png(data)
        with pytest.raises(BadImageError, match="a damaged or cut image"):
            to_png(encoded(COLOUR, "PPM")[:-50])


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    """Files that are read and files that are not, some of one name, a damaged one and texts."""
    root = tmp_path / "images"
    for name, data in {
        "a/1.png": encoded(COLOUR, "PNG"), "a/1.tif": encoded(COLOUR.rotate(90), "TIFF"), "a/2.tiff": encoded(COLOUR, "TIFF"), "a/2.txt": b"two",
        "b/Three, wide.pcx": encoded(COLOUR, "PCX"), "b/3.jpg": encoded(COLOUR, "JPEG"), "b/cut.png": encoded(COLOUR, "PNG")[:80],
        "b/4.bmp": encoded(COLOUR.convert("P"), "BMP"), "b/5.ico": b"no image", "b/6.ppm": encoded(COLOUR, "PPM")[:-20], "notes.txt": b"hello",
        "@eaDir/1.png": b"", "a/7.jpg": encoded(COLOUR, "TIFF"),
    }.items():  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def tree(root: pathlib.Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


class TestFolder:
    def test_the_same_tree(self, folder, tmp_path):
        said = convert_folder(ConvertConfig(input=str(folder), output=f"{tmp_path}/out"))
        made = tree(tmp_path / "out")
        images = ["a/1.png", "a/1.tif.png", "a/2.png", "a/7.png", "b/3.jpg", "b/4.png", "b/Three, wide.png"]
        assert set(made) == {*images, "converted.csv", "left_out.csv", ".sela_tf_convert.json"}
        for name in ("a/1.png", "b/3.jpg"):
            assert made[name] == (folder / name).read_bytes()
        np.testing.assert_array_equal(tf.io.decode_png(made["a/1.tif.png"]), np.asarray(COLOUR.rotate(90)))
        splits = load_source(f"folder:{tmp_path}/out")
        assert splits.train.names == tuple(images)
        assert splits.rejected == ()
        rows = [row[:2] for row in csv.reader(made["converted.csv"].decode().splitlines())][1:]
        assert ["b/Three, wide.pcx", "b/Three, wide.png"] in rows
        assert [name for name, _ in rows] == ["a/1.tif", "a/2.tiff", "a/7.jpg", "b/4.bmp", "b/Three, wide.pcx"]
        left_out = dict(list(csv.reader(made["left_out.csv"].decode().splitlines()))[1:])
        assert set(left_out) == {"b/5.ico", "b/6.ppm", "b/cut.png"}
        assert said.startswith(
            f"7 images in {tmp_path}/out: 5 converted to png (converted.csv), 2 copied\nleft out, 3 images that cannot be read"
        )
        assert said.endswith("left out, 2 files that are no images")

    def test_no_two_outputs_have_one_name(self, tmp_path):
        names = ["a.png", "a.tif", "a.tif.bmp", "a.tif.png", "A.tif", "b.tif", "b.txt", "c.ppm", "c.pgm", "d.jpg"]
        for i, name in enumerate(names):
            (tmp_path / "in").mkdir(exist_ok=True)
            (tmp_path / "in" / name).write_bytes(encoded(picture(np.random.default_rng(i)).convert("P"), "TIFF"))
        said = convert_folder(ConvertConfig(input=f"{tmp_path}/in", output=f"{tmp_path}/out"))
        assert said == f"10 images in {tmp_path}/out: 10 converted to png (converted.csv), 0 copied"
        made = {name for name in tree(tmp_path / "out") if name.endswith(".png")}
        assert len({name.casefold() for name in made}) == 10
        assert {"a.png", "a.tif.png", "b.png", "c.ppm.png", "d.png"} <= made

    def test_again_only_what_has_changed(self, folder, tmp_path, monkeypatch):
        settings = ConvertConfig(input=f"folder:{folder}", output=f"{tmp_path}/out")
        said, before = convert_folder(settings), tree(tmp_path / "out")
        read: list[str] = []
        inspect = converter.inspect_or_convert
        monkeypatch.setattr(converter, "inspect_or_convert", lambda root, name: read.append(name) or inspect(root, name))
        assert convert_folder(settings) == said
        assert read == []
        assert tree(tmp_path / "out") == before
        (folder / "a" / "2.tiff").write_bytes(encoded(COLOUR.rotate(180), "TIFF"))
        (folder / "a" / "1.tif").unlink()
        (tmp_path / "out" / "b" / "4.png").unlink()
        convert_folder(settings)
        assert sorted(read) == ["a/2.tiff", "b/4.bmp"]
        after = tree(tmp_path / "out")
        assert set(before) - set(after) == {"a/1.tif.png"}
        assert after["b/4.png"] == before["b/4.png"]

    def test_an_unfinished_one_is_continued(self, folder, tmp_path, monkeypatch):
        settings = ConvertConfig(input=str(folder), output=f"{tmp_path}/out")
        inspect, read = converter.inspect_or_convert, []

        def stop(root: str, name: str):
            if name == "b/4.bmp":
                raise KeyboardInterrupt
            return inspect(root, name)

        monkeypatch.setattr(converter, "inspect_or_convert", stop)
        with pytest.raises(KeyboardInterrupt):
            convert_folder(settings)
        monkeypatch.setattr(converter, "inspect_or_convert", lambda root, name: read.append(name) or inspect(root, name))
        convert_folder(settings)
        assert "a/1.png" not in read
        assert "b/4.bmp" in read
        whole = ConvertConfig(input=str(folder), output=f"{tmp_path}/whole")
        convert_folder(whole)
        mark = ".sela_tf_convert.json"
        assert {**tree(tmp_path / "out"), mark: b""} == {**tree(tmp_path / "whole"), mark: b""}

    def test_what_is_refused(self, folder, tmp_path, monkeypatch):
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "thesis.txt").write_text("years of work")
        (tmp_path / "texts").mkdir()
        (tmp_path / "texts" / "a.txt").write_text("a")
        convert_folder(ConvertConfig(input=str(folder), output=f"{tmp_path}/out"))
        cases = {
            (f"--input={folder}", f"--output={tmp_path}/mine"): f"--output={tmp_path}/mine holds other files (thesis.txt)",
            (
                f"--input={tmp_path}/texts",
                f"--output={tmp_path}/out",
            ): f"--output={tmp_path}/out was made of --input={folder}: name another",
            (f"--input={tmp_path}/none", f"--output={tmp_path}/new"): f"--input={tmp_path}/none: there is no such directory",
            (f"--input={folder}", f"--output={folder}/new"): "lie in one another",
            (f"--input={folder}",): "--output is missing: the directory to write",
            (f"--output={folder}",): "--input is missing: a folder of images",
            (f"--input={tmp_path}/texts", f"--output={tmp_path}/new"): "no image in it or below it",
        }
        for door, message in zip(run_here([[*args] for args in cases], "sela_tf.convert"), cases.values(), strict=True):
            is_one_line(door, message, door="sela_tf.convert", status=3 if message.startswith("no image") else 2)
        assert (tmp_path / "mine" / "thesis.txt").exists()
        # a package that is missing is named before any work
        (folder / "a" / "photo.HEIC").write_bytes(b"\x00\x00\x00\x18ftypheic")
        find = importlib.util.find_spec
        for missing, message in (
            ("pillow_heif", r"1 files, such as 'a/photo.HEIC', need pillow-heif: pip install 'sela-tf\[formats\]'"),
            ("PIL", r"converting images needs Pillow: pip install 'sela-tf\[formats\]'"),
        ):
            monkeypatch.setattr(
                converting.importlib.util, "find_spec", lambda name, missing=missing: None if name == missing else find(name)
            )
            with pytest.raises(ConfigError, match=message):
                convert_folder(ConvertConfig(input=str(folder), output=f"{tmp_path}/new"))
        assert not (tmp_path / "new" / "a").exists()

    def test_training_says_the_command(self, tmp_path):
        (tmp_path / "x.tif").write_bytes(encoded(COLOUR, "TIFF"))
        with pytest.raises(
            SourceError, match=rf"1 other files \(x.tif \(tiff: .*\). `sela-tf convert` with `input={tmp_path}` writes a folder"
        ):
            load_source(f"folder:{tmp_path}")
