"""The exported model gives the answers that training's evaluation would, whatever comes in."""

from __future__ import annotations

import contextlib
import pathlib
import struct

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from pixel_files import MASKS, oriented
from pixel_files import bmp as bitmap
from served import ask, encoded, is_blank, picture

import sela_tf
from sela_tf.data import decoding, headers
from sela_tf.data.augment import clean_view
from sela_tf.data.decoding import check_image, decode_image
from sela_tf.data.headers import DECODES_WEBP, BadImageError, readable
from sela_tf.data.pipeline import inference_batches
from sela_tf.data.sources import load_source
from sela_tf.data.splits import match_input
from sela_tf.serving.check import MismatchError, check_saved_model
from sela_tf.serving.saved_model import ServedImages, export_saved_model

# its fixtures are made once: in one process of several
pytestmark = pytest.mark.xdist_group("saved_model")

PIXEL = 1e-5 * 255


def png_header(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBB", 13, b"IHDR", width, height, 8, 2, 0, 0, 0) + bytes(50)


@pytest.fixture(scope="module")
def good() -> dict[str, bytes]:
    """Files of every format, of many modes and sizes."""
    rng = np.random.default_rng(1)
    deep = Image.fromarray(rng.integers(0, 2**16, (9, 17), dtype=np.uint16))
    frames = [picture(rng, "L", (11, 7)) for _ in range(3)]
    files = {
        f"{mode}.png": encoded(picture(rng, mode, (9 + i, 30 - 5 * i)), "png") for i, mode in enumerate(("L", "LA", "RGB", "RGBA"))
    }
    files |= {f"{mode}.jpg": encoded(picture(rng, mode, (33, 12 + i)), "jpeg") for i, mode in enumerate(("L", "RGB", "CMYK"))}
    return files | {
        "deep.png": encoded(deep, "png"),
        "palette.png": encoded(picture(rng).convert("P"), "png"),
        "colour.gif": encoded(picture(rng, size=(5, 40)).convert("P"), "gif"),
        "moving.gif": encoded(frames[0], "gif", save_all=True, append_images=frames[1:]),
        "colour.bmp": encoded(picture(rng, size=(6, 6)), "bmp"),
        "turned.jpg": oriented(picture(rng, size=(12, 30)), "jpeg", 6, order=">"),
        "transparent.png": encoded(picture(rng).quantize(8), "png", transparency=2),
        "transparent.bmp": bitmap(
            rng.integers(0, 256, (5, 7, 4), dtype=np.uint8), 32, compression=3, masks=MASKS + b"\0\0\0\xff", header=108
        ),
        **({"transparent.webp": encoded(picture(rng, "RGBA"), "webp")} if DECODES_WEBP else {}),
        "dot.png": encoded(picture(rng, size=(1, 1)), "png"),
        "line.jpg": encoded(picture(rng, size=(1, 50)), "jpeg"),
        "large.jpg": encoded(picture(rng, size=(300, 200)), "jpeg"),
    }


@pytest.fixture(scope="module")
def bad() -> dict[str, bytes]:
    rng = np.random.default_rng(2)
    png, jpeg, gif, bmp = (encoded(picture(rng).convert(mode), kind) for kind, mode in
                           (("png", "RGB"), ("jpeg", "RGB"), ("gif", "P"), ("bmp", "RGB")))  # fmt: skip
    flipped = bytearray(png)
    flipped[60] ^= 0xFF
    return {
        "empty": b"",
        "text": b"hello",
        "begins as a bitmap": b"BMW makes cars; this is no bitmap at all",
        "two letters": b"BM",
        "gif with transparency": encoded(picture(rng).quantize(8), "gif", transparency=1),
        "tiff": encoded(picture(rng), "tiff"),
        "bmp with a palette": encoded(picture(rng).convert("P"), "bmp"),
        "bmp of 16 bits": bitmap(rng.integers(0, 256, (5, 7, 2), dtype=np.uint8), 16),
        "bmp of OS/2": bitmap(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8), 24, header=12),
        "png on its side": oriented(picture(rng), "png", 6),
        "moving webp": encoded(picture(rng), "webp", save_all=True, append_images=[picture(rng)]),
        "flipped bit": bytes(flipped),
        **{f"cut {kind}": data[: len(data) // 2] for kind, data in (("png", png), ("jpeg", jpeg), ("gif", gif), ("bmp", bmp))},
        **{f"signature of {kind}": data[:12] for kind, data in (("png", png), ("jpeg", jpeg), ("gif", gif), ("bmp", bmp))},
        "bomb": png_header(40_000, 40_000),
        "bomb beyond 64 bits": png_header(2**32 - 1, 2**32 - 1),
    }


def pixels_as_embedding(channels: int) -> keras.Model:
    """A network whose embedding is what it is shown, so that what is served can be held to the pipeline pixel by pixel."""
    inputs = keras.Input((10, 16, channels))
    embedding = keras.layers.Flatten(name="embedding")(inputs)
    return keras.Model(inputs, sela_tf.MultiHead(2, 3, name="heads")(embedding))


@pytest.fixture(scope="module", params=[1, 3])
def shown(request, tmp_path_factory):
    """(what is loaded of the export of such a network, its channels)."""
    path = tmp_path_factory.mktemp("shown") / "1"
    export_saved_model(pixels_as_embedding(request.param), path)
    return tf.saved_model.load(str(path)), request.param


def example(**features: list[bytes]) -> bytes:
    feature = {
        name.replace("_", "/"): tf.train.Feature(bytes_list=tf.train.BytesList(value=value)) for name, value in features.items()
    }
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()


class TestImages:
    @pytest.mark.parametrize("signature", ["serving_default", "examples"])
    def test_good_and_bad_files_in_one_batch(self, shown, good, bad, signature):
        loaded, channels = shown
        files = [data for pair in zip(good.values(), bad.values(), strict=False) for data in pair]
        files += list(bad.values())[len(good) :]
        answers = ask(
            loaded, signature, files if signature == "serving_default" else [example(image_encoded=[data]) for data in files]
        )
        assert answers["embedding"].dtype == answers["margin"].dtype == answers["probability"].dtype == np.float32
        assert answers["cluster"].shape == (len(files), 2)
        for row, data in enumerate(files):
            if data in bad.values():
                assert is_blank(answers, row), data[:30]
            else:
                assert answers["valid"][row], data[:30]
                view = clean_view(decode_image(tf.constant(data), channels), (10, 16))
                np.testing.assert_allclose(answers["embedding"][row], np.ravel(view), atol=PIXEL)

    def test_valid_is_what_training_would_read(self, good, bad, shown):
        files = {**good, **bad}
        valid = ask(shown[0], "serving_default", list(files.values()))["valid"]
        for (name, data), found in zip(files.items(), valid, strict=True):
            if found:
                check_image(data)
            else:
                with pytest.raises(BadImageError):
                    check_image(data)
            assert found == (name in good)

    def test_all_bad_and_none_at_all(self, shown, bad):
        answers = ask(shown[0], "serving_default", list(bad.values())[:2])
        assert is_blank(answers, 0)
        assert is_blank(answers, 1)
        for signature, nothing in (("serving_default", []), ("examples", []), ("images", np.zeros((0, 5, 7, 3)))):
            answers = ask(shown[0], signature, nothing)
            assert answers["embedding"].shape == (0, 160 * shown[1])
            assert answers["cluster"].shape == (0, 2)
            assert answers["valid"].shape == (0,)

    def test_a_bad_example_is_its_own_affair(self, shown, good):
        data = good["RGB.png"]
        whole = example(image_encoded=[data])
        rows = [
            whole,
            b"no example",
            example(image_other=[data]),
            example(image_encoded=[data, data]),
            example(),
            b"",
            whole[:40],
            whole,
        ]
        answers = ask(shown[0], "examples", rows)
        assert answers["valid"].tolist() == [True, False, False, False, False, False, False, True]
        assert all(is_blank(answers, row) for row in range(1, 7))
        np.testing.assert_array_equal(answers["embedding"][0], answers["embedding"][7])

    @pytest.mark.parametrize("depth", [1, 2, 3, 4])
    @pytest.mark.parametrize("size", [(10, 16), (31, 9), (1, 1), (3, 40)])
    def test_pixels_of_any_size_and_depth_are_seen_as_the_file_is(self, shown, rng, depth, size):
        loaded, _ = shown
        images = rng.integers(0, 256, (3, *size, depth), dtype=np.uint8)
        answers = ask(loaded, "images", images)
        files = ask(loaded, "serving_default", [tf.io.encode_png(image).numpy() for image in images])
        for name, values in answers.items():
            np.testing.assert_allclose(values, files[name], atol=PIXEL)
        for name, values in loaded(tf.constant(images, tf.float32)).items():
            np.testing.assert_array_equal(values, answers[name])

    def test_pixels_that_are_no_numbers_and_too_many_channels(self, shown, rng):
        images = rng.random((4, 5, 6, 3)).astype(np.float32) * 255
        whole = ask(shown[0], "images", images)
        images[1, 2, 3, 0], images[2, 0, 0, 2] = np.nan, np.inf
        answers = ask(shown[0], "images", images)
        assert answers["valid"].tolist() == [True, False, False, True]
        assert is_blank(answers, 1)
        assert is_blank(answers, 2)
        np.testing.assert_array_equal(answers["embedding"][[0, 3]], whole["embedding"][[0, 3]])
        with pytest.raises(tf.errors.InvalidArgumentError, match="1 to 4 channels"):
            ask(shown[0], "images", np.zeros((1, 5, 6, 5)))

    def test_a_folder_of_many_sizes_is_seen_as_evaluation_sees_it(self, shown, good, tmp_path):
        loaded, channels = shown
        for name, data in good.items():
            (tmp_path / name).write_bytes(data)
        images = match_input(load_source(f"folder:{tmp_path}").train, (1, 1, channels))
        answers = ask(loaded, "serving_default", [pathlib.Path(path).read_bytes() for path in images.store.paths])
        for views, indices in inference_batches(images, size=(10, 16), batch_size=4):
            np.testing.assert_allclose(answers["embedding"][indices], np.reshape(views, (len(views), -1)), atol=PIXEL)


def test_sizes_are_read_from_headers_before_anything_is_decoded(rng, monkeypatch):
    """An image of 9 x 11 pixels, where the bound is 100, is decoded, one of 101 is not: of every format, whichever side is the long one."""
    for module in (decoding, headers):
        monkeypatch.setattr(module, "MAX_PIXELS", 100)
    for kind, mode in (("png", "RGB"), ("jpeg", "RGB"), ("gif", "P"), ("bmp", "RGB")):
        files = [encoded(picture(rng, size=size).convert(mode), kind) for size in ((9, 11), (11, 9), (101, 1), (1, 101), (10, 10))]
        if kind == "bmp":  # rows from the top
            files += [data[:22] + struct.pack("<i", -struct.unpack("<i", data[22:26])[0]) + data[26:] for data in files]
        for data, small in zip(files, [True, True, False, False, True] * 2, strict=False):
            decodes = bool(readable(tf.constant([data]))[0])
            if kind == "jpeg":
                assert decodes
                with contextlib.nullcontext() if small else pytest.raises(tf.errors.InvalidArgumentError):
                    decode_image(tf.constant(data), 3)
            else:
                assert decodes == small
            with contextlib.nullcontext() if small else pytest.raises(BadImageError, match="at most 100"):
                check_image(data)


def test_half_precision_inside_gives_single_precision(rng):
    model = sela_tf.build_model("resnet8", image_shape=(8, 8, 3), num_heads=2, num_clusters=4, width=4, dtype="mixed_bfloat16")
    answers = ServedImages(model)(tf.constant(rng.random((2, 8, 8, 3)), tf.float32))
    assert {name: value.dtype.name for name, value in answers.items()} == {
        "embedding": "float32", "cluster": "int64", "probability": "float32", "margin": "float32", "valid": "bool",
    }  # fmt: skip


class TestWholeOrNotAtAll:
    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
    def test_nothing_is_left_when_it_fails_late(self, tmp_path, error):
        def fail(unfinished: pathlib.Path) -> None:
            assert (unfinished / "saved_model.pb").exists()
            assert not (tmp_path / "served" / "1").exists()
            assert not unfinished.name.isdecimal()
            raise error

        with pytest.raises(error):
            export_saved_model(pixels_as_embedding(1), tmp_path / "served" / "1", check=fail)
        assert list((tmp_path / "served").iterdir()) == []

    def test_what_is_there_stays(self, tmp_path):
        (tmp_path / "1").mkdir()
        (tmp_path / "1" / "saved_model.pb").write_text("mine")
        with pytest.raises(FileExistsError):
            export_saved_model(pixels_as_embedding(1), tmp_path / "1")
        assert (tmp_path / "1" / "saved_model.pb").read_text() == "mine"


# The door, and what it exports of a run.


@pytest.mark.slow
def test_images_of_many_sizes_are_checked_and_a_model_that_cannot_be_run(good, tmp_path):
    (tmp_path / "images").mkdir()
    for name, data in good.items():
        (tmp_path / "images" / name).write_bytes(data)
    images = load_source(f"folder:{tmp_path}/images").train
    model = pixels_as_embedding(3)
    export_saved_model(model, tmp_path / "1", potentials=np.array([[3.0, 0, 0], [0, 0, 1]]), lam=4.0)
    checked = check_saved_model(tmp_path / "1", model, images, potentials=np.array([[3.0, 0, 0], [0, 0, 1]]), lam=4.0, seconds=0)
    assert checked.num_images == len(good)
    assert checked.differences["embedding"] <= 1e-5
    (tmp_path / "1" / "variables" / "variables.index").unlink()
    with pytest.raises(MismatchError, match=r"cannot be run: .*variables"):
        check_saved_model(tmp_path / "1", model, images, seconds=0)
