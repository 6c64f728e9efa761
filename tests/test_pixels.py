"""Image files become the pixels that Pillow shows: transparency on a background, upright, at their depth; or they are refused by name."""

from __future__ import annotations

import functools
import struct

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps, PngImagePlugin
from pixel_files import MASKS, RGBA_MASKS, bmp, chunk, laid, opened, oriented, png
from served import encoded, picture

from sela_tf.data import channels as channels_module
from sela_tf.data.channels import shown_pixels, to_channels
from sela_tf.data.decoding import check_image, decode_image, stored_pixels
from sela_tf.data.headers import DECODES_WEBP, BadImageError, UnreadableFormatError, readable
from sela_tf.data.pixel_rules import DEFAULT_RULES, OLD_RULES, PixelRules

needs_webp = pytest.mark.skipif(not DECODES_WEBP, reason="this TensorFlow decodes no webp")


MIXED = PixelRules((12, 200, 77), 4095)


@functools.cache
def _graph(channels: int, rules: PixelRules):
    return tf.function(
        lambda data: decode_image(data, channels, rules), input_signature=[tf.TensorSpec([], tf.string)], autograph=False
    )


def pixels(data: bytes, channels: int = 3, rules: PixelRules = DEFAULT_RULES) -> np.ndarray:
    """Returns the pixels of a file, decoded in a graph as the served model does, which decodes readable files only."""
    assert readable(tf.constant([data]), rules)[0]
    if rules.are_old:
        return decode_image(tf.constant(data), channels, rules).numpy()
    return _graph(channels, rules)(tf.constant(data)).numpy()


def shown(values: np.ndarray, channels: int, rules: PixelRules) -> np.ndarray:
    """Returns the pixels that stored values become, without a graph."""
    return shown_pixels(tf.constant(values), channels, rules).numpy()


def is_valid(data: bytes) -> bool:
    try:
        pixels(data)
    except (AssertionError, tf.errors.InvalidArgumentError):
        return False
    return True


@pytest.fixture
def smooth(rng) -> Image.Image:
    small = Image.fromarray(rng.integers(0, 256, (3, 4, 3), dtype=np.uint8))
    return small.resize((32, 20), Image.Resampling.BICUBIC)


class TestTransparency:
    @pytest.fixture
    def files(self, rng) -> dict[str, bytes]:
        rgb = picture(rng, size=(9, 7))
        few = rng.integers(0, 3, (9, 8), dtype=np.uint8)
        return {
            "RGBA": encoded(picture(rng, "RGBA"), "png"),
            "LA": encoded(picture(rng, "LA"), "png"),
            "palette": encoded(rgb.quantize(16), "png", transparency=bytes(range(0, 256, 16))),
            "one colour of a palette": encoded(rgb.quantize(16), "png", transparency=3),
            "a gray": png(few, key=struct.pack(">H", 1)),
            "a colour": png(np.stack([few % 2, few // 2, few % 2], axis=-1), colours=2, key=struct.pack(">HHH", 1, 0, 1)),
            **({"webp": encoded(picture(rng, "RGBA"), "webp", lossless=True, exact=True)} if DECODES_WEBP else {}),
        }

    def test_it_is_laid_on_the_background_and_rounded_once(self, files):
        for name, data in files.items():
            for rules in (DEFAULT_RULES, MIXED):
                np.testing.assert_array_equal(pixels(data, 3, rules), laid(opened(data), rules.background), err_msg=name)
            assert check_image(data).channels in (2, 4), name

    def test_every_colour_and_opacity(self, rng):
        grid = np.stack(np.meshgrid(*[np.arange(256, dtype=np.uint8)] * 2), axis=-1)
        for background in ((0, 0, 0), (255, 255, 255), (3, 77, 254)):
            np.testing.assert_array_equal(shown(grid, 3, PixelRules(background)), laid(Image.fromarray(grid, "LA"), background))

    def test_in_gray(self, files):
        for name, data in files.items():
            white = np.asarray(Image.fromarray(laid(opened(data))).convert("L")).astype(int)
            assert np.abs(pixels(data, 1)[..., 0] - white).max() <= 1, name

    def test_opaque_files_are_what_they_were(self, rng, smooth):
        for data in (encoded(smooth, "png"), encoded(smooth.convert("RGBA"), "png"), encoded(smooth.convert("LA"), "png")):
            for channels in (1, 3):
                np.testing.assert_array_equal(pixels(data, channels), pixels(data, channels, OLD_RULES))

    def test_older_runs_drop_it(self, rng):
        data = encoded(picture(rng, "RGBA"), "png")
        np.testing.assert_array_equal(pixels(data, 3, OLD_RULES), np.asarray(opened(data))[..., :3])

    def test_a_transparent_gif_is_named(self, rng):
        frames = [picture(rng, size=(9, 7)).quantize(8) for _ in range(2)]
        plain = encoded(frames[0], "gif", save_all=True, append_images=frames[1:], comment=b"x" * 600, loop=3)
        assert check_image(plain).kind == "gif"
        assert is_valid(plain)
        data = encoded(frames[0], "gif", transparency=1)
        with pytest.raises(UnreadableFormatError, match="gif with transparency: convert it to png"):
            check_image(data)
        assert not is_valid(data)
        assert pixels(data, 3, OLD_RULES).shape == (9, 7, 3)


class TestOrientation:
    @pytest.mark.parametrize("order", ["<", ">"])
    def test_every_jpeg_stands_upright(self, smooth, order):
        for orientation in range(10):
            for image in (smooth, smooth.convert("L")):
                data = oriented(image, "jpeg", orientation, order=order, quality=95)
                wanted = np.asarray(ImageOps.exif_transpose(opened(data)).convert("RGB")).astype(int)
                found, info = pixels(data), check_image(data)
                assert found.shape == (info.height, info.width, 3) == wanted.shape, orientation
                assert np.abs(found - wanted).max() <= 12, orientation
                assert pixels(data, 3, OLD_RULES).shape == (20, 32, 3)

    def test_exif_that_is_broken_or_elsewhere_turns_nothing(self, smooth):
        whole = oriented(smooth, "jpeg", 6)
        at = whole.index(b"Exif\0\0")
        broken = [whole[: at + 6] + bytes([byte] * 8) + whole[at + 14 :] for byte in (0, 255)]
        comment = encoded(smooth, "jpeg", comment=whole[at : at + 80])
        for data in (*broken, comment):
            assert check_image(data).orientation == 1
            assert pixels(data).shape == (20, 32, 3)

    def test_exif_far_from_the_beginning_counts(self, smooth):
        data = oriented(smooth, "jpeg", 6, quality=95)
        late = data[:2] + (b"\xff\xe2" + (65_000).to_bytes(2, "big") + b"x" * 64_998) * 5 + data[2:]
        assert check_image(late).orientation == 6
        np.testing.assert_array_equal(pixels(late), pixels(data))

    def test_a_text_that_names_the_chunk_hides_none(self, smooth):
        text = PngImagePlugin.PngInfo()
        text.add_text("Comment", "has eXIf in it, and eXIfII")
        exif = Image.Exif()
        exif[0x0112] = 6
        assert is_valid(encoded(smooth, "png", pnginfo=text))
        data = encoded(smooth, "png", pnginfo=text, exif=exif)
        assert data.index(b"eXIf") < data.index(b"IDAT")
        with pytest.raises(UnreadableFormatError, match="png with an EXIF orientation"):
            check_image(data)
        assert not is_valid(data)

    def test_exif_of_other_formats_is_named(self, smooth):
        for kind in ("png", *(["webp"] if DECODES_WEBP else [])):
            assert is_valid(oriented(smooth, kind, 1))
            data = oriented(smooth, kind, 6)
            with pytest.raises(UnreadableFormatError, match=f"{kind} with an EXIF orientation: convert it to png"):
                check_image(data)
            assert not is_valid(data)


class TestDepth:
    def test_sixteen_bits_are_scaled_and_rounded_once(self):
        values = np.arange(65536).reshape(256, 256, 1)
        for largest in (1, 2, 255, 1000, 4095, 65535):
            wanted = np.floor(np.minimum(values, largest) * 255 / largest + 0.5)
            np.testing.assert_array_equal(shown(values.astype(np.uint16), 1, PixelRules(largest=largest)), wanted)
        data = png(values[..., 0], bits=16)
        assert check_image(data).largest == 65535
        wanted = np.floor(np.minimum(values, 4095) * 255 / 4095 + 0.5)
        np.testing.assert_array_equal(pixels(data, 3, MIXED), np.repeat(wanted, 3, axis=-1))

    def test_with_transparency(self, rng):
        values = rng.integers(0, 5000, (6, 5, 4))
        values[..., 3] = rng.integers(0, 65536, (6, 5))
        data = png(values, bits=16, colours=6)
        scaled, alpha = np.minimum(values[..., :3], 4095) * 255 / 4095, values[..., 3:] / 65535
        wanted = np.floor(scaled * alpha + np.array(MIXED.background) * (1 - alpha) + 0.5)
        np.testing.assert_array_equal(pixels(data, 3, MIXED), wanted)
        visible = np.where(values[..., 3:] > 0, values[..., :3], 0)
        assert check_image(data).largest == visible.max()

    def test_a_transparent_gray(self):
        values = np.array([[0, 1000, 4095]])
        data = png(values, bits=16, key=struct.pack(">H", 1000))
        assert pixels(data, 3, MIXED).tolist() == [[[0, 0, 0], [12, 200, 77], [255, 255, 255]]]

    def test_eight_bits_are_never_scaled(self, rng):
        data = encoded(picture(rng, "RGB"), "png")
        np.testing.assert_array_equal(pixels(data, 3, MIXED), pixels(data))
        assert check_image(data).largest == 0


class TestFormats:
    def test_kinds_of_png(self, rng, smooth):
        for bits in (1, 2, 4):
            data = png(rng.integers(0, 256, (5, 3), dtype=np.uint8), bits=bits)
            np.testing.assert_array_equal(pixels(data, 1)[..., 0], np.asarray(opened(data).convert("L")))
            data = encoded(smooth.quantize(2**bits), "png", bits=bits)
            np.testing.assert_array_equal(pixels(data), np.asarray(opened(data).convert("RGB")))
        frames = [smooth, smooth.rotate(180)]
        moving = encoded(frames[0], "png", save_all=True, append_images=frames[1:])
        np.testing.assert_array_equal(pixels(moving), np.asarray(smooth))

    @needs_webp
    def test_kinds_of_webp(self, rng, smooth):
        for image in (smooth, smooth.convert("L")):
            for options in ({}, {"lossless": True}):
                data = encoded(image, "webp", **options)
                np.testing.assert_array_equal(pixels(data), np.asarray(opened(data).convert("RGB")))
                assert check_image(data)[:3] == ("webp", 20, 32)
        for image in (smooth, picture(rng, "RGBA")):
            moving = encoded(image, "webp", save_all=True, append_images=[image.rotate(180)])
            with pytest.raises(UnreadableFormatError, match="webp with several frames: convert it to png"):
                check_image(moving)
            assert not is_valid(moving)
        large = bytearray(encoded(picture(rng, "RGBA"), "webp"))
        large[24:30] = b"\xff" * 6
        with pytest.raises(BadImageError, match="at most"):
            check_image(bytes(large))

    def test_kinds_of_jpeg(self, smooth):
        for image, options in (
            (smooth, {"progressive": True}),
            (smooth, {"subsampling": 0}),
            (smooth.convert("L"), {}),
            (smooth.convert("CMYK"), {}),
        ):
            data = encoded(image, "jpeg", quality=95, **options)
            wanted = np.asarray(opened(data).convert("RGB")).astype(int)
            assert np.abs(pixels(data) - wanted).max() <= 12, options
        data = bytearray(encoded(smooth.convert("CMYK"), "jpeg", quality=95))
        data[data.index(b"Adobe") + 11] = 2  # YCCK
        wanted = np.asarray(opened(bytes(data)).convert("RGB")).astype(int)
        assert np.abs(pixels(bytes(data)) - wanted).mean() <= 3
        deep = bytearray(encoded(smooth, "jpeg"))
        deep[deep.index(b"\xff\xc0") + 4] = 12
        with pytest.raises(UnreadableFormatError, match="jpeg of 12 bits: convert it to png"):
            check_image(bytes(deep))
        assert not is_valid(bytes(deep))

    def test_bitmaps_that_are_read(self, rng):
        rgb, rgbx = (rng.integers(0, 256, (5, 7, count), dtype=np.uint8) for count in (3, 4))
        files = [bmp(rgb, 24, header=header) for header in (40, 52, 56, 64, 108, 124)]
        files += [bmp(rgb, 24, from_top=True), bmp(rgb, 24, reserved=77), bmp(rgbx, 32), bmp(rgbx, 32, header=124)]
        files += [bmp(rgbx, 32, compression=3, masks=MASKS, header=header) for header in (40, 52, 56, 108)]
        for data in files:
            np.testing.assert_array_equal(pixels(data), np.asarray(opened(data).convert("RGB")))
            assert check_image(data)[:4] == ("bmp", 5, 7, 3)
        for header in (56, 108, 124):
            data = bmp(rgbx, 32, compression=3, masks=MASKS + struct.pack("<I", 0xFF000000), header=header)
            np.testing.assert_array_equal(pixels(data), laid(opened(data)))
            assert check_image(data).channels == 4

    def test_bitmaps_that_are_not_read_are_named(self, rng):
        two, three, four = (rng.integers(0, 256, (5, 7, count), dtype=np.uint8) for count in (2, 3, 4))
        indices = rng.integers(0, 16, (5, 8), dtype=np.uint8)
        files = {
            "bmp of OS/2": bmp(three, 24, header=12),
            "16 bits, compression 0": bmp(two, 16),
            "16 bits, compression 3": bmp(two, 16, compression=3, masks=struct.pack("<III", 0xF800, 0x7E0, 0x1F)),
            "32 bits, compression 3": bmp(four, 32, compression=3, masks=RGBA_MASKS, header=108),
            "bmp with a palette": bmp(indices, 8, palette=bytes(1024)),
        }
        for name, data in files.items():
            assert opened(data).convert("RGB").size
            with pytest.raises(UnreadableFormatError, match=f"{name}.*: convert it to png"):
                check_image(data)
            assert not is_valid(data)

    def test_letters_alone_make_no_image(self):
        for data in (b"BMW makes cars; this is no bitmap, however long it goes on", b"RIFF is a word of musicians", b"BM", b"RIFF"):
            with pytest.raises(BadImageError, match="no image"):
                check_image(data)
            assert not is_valid(data)

    def test_files_that_are_cut_anywhere_are_not_valid(self, rng, smooth):
        files = [oriented(smooth, "jpeg", 6), png(np.arange(64).reshape(8, 8), bits=16, key=b"\0\1"), oriented(smooth, "png", 3)]
        files += [encoded(smooth.quantize(8), "gif", transparency=1), encoded(picture(rng, "RGBA"), "webp")]
        for data in files:
            for end in range(0, len(data) - 40, max(1, len(data) // 12)):
                assert not is_valid(data[:end])
                with pytest.raises(BadImageError):
                    check_image(data[:end])


def test_words_of_a_png_that_are_no_chunk_do_no_harm(smooth):
    data = encoded(smooth, "png")
    text = chunk(b"tEXt", b"Comment\0eXIf and tRNS are names of chunks")
    np.testing.assert_array_equal(pixels(data[:33] + text + data[33:]), np.asarray(smooth))


def shares_of_areas(old: int, new: int) -> np.ndarray:
    """The share that each of `old` pixels has in each of `new` ones, float64 `[new, old]`."""
    edges = np.arange(new + 1) * (old / new)
    overlap = np.minimum(edges[1:, np.newaxis], np.arange(1, old + 1)) - np.maximum(edges[:-1, np.newaxis], np.arange(old))
    return np.maximum(overlap, 0) * (new / old)


class TestLargeImages:
    @pytest.mark.parametrize("mode", ["L", "RGB"])
    @pytest.mark.parametrize("size", [(60, 40), (40, 60), (57, 41), (500, 23), (20, 20)])
    def test_the_shorter_side_is_bounded_by_means_of_areas(self, rng, mode, size):
        image = picture(rng, mode, size)
        pixels = np.asarray(image, np.float64).reshape(image.height, image.width, -1)
        height, width = (round(side * 20 / min(size)) for side in pixels.shape[:2])
        wanted = np.einsum("ih,hwc,jw->ijc", shares_of_areas(image.height, height), pixels, shares_of_areas(image.width, width))
        found = decode_image(encoded(image, "PNG"), pixels.shape[-1], PixelRules(shorter_side=20)).numpy()
        assert min(found.shape[:2]) == 20
        np.testing.assert_allclose(found, wanted, atol=0.51)  # float32

    def test_what_is_small_enough_stays(self, rng):
        data = encoded(picture(rng, "RGB", (31, 20)), "PNG")
        np.testing.assert_array_equal(decode_image(data, 3, PixelRules(shorter_side=20)), decode_image(data, 3))


@pytest.mark.parametrize(("kind", "channels"), [(np.uint8, 3), (np.uint8, 1), (np.uint16, 3)])
def test_large_images_are_laid_in_bands_with_the_same_pixels(rng, monkeypatch, kind, channels):
    stored = rng.integers(0, np.iinfo(kind).max, (37, 11, 4), kind, endpoint=True)
    whole = shown_pixels(tf.constant(stored), channels, DEFAULT_RULES).numpy()
    banded = []
    original = channels_module._in_bands
    monkeypatch.setattr(channels_module, "_in_bands", lambda *args, **how: banded.append(1) or original(*args, **how))
    for at_once in (1, 44, 100, 37 * 11 - 1):
        monkeypatch.setattr(channels_module, "_PIXELS_AT_ONCE", at_once)
        channels_module._laid_function.cache_clear()
        np.testing.assert_array_equal(shown_pixels(tf.constant(stored), channels, DEFAULT_RULES).numpy(), whole)
    channels_module._laid_function.cache_clear()
    assert len(banded) == 4


def test_large_opaque_images_become_gray_in_bands_with_the_same_pixels(rng, monkeypatch):
    stored = tf.constant(rng.integers(0, 256, (37, 11, 3), np.uint8))
    whole = shown_pixels(stored, 1, DEFAULT_RULES).numpy()
    bands = []
    original = channels_module._in_bands
    monkeypatch.setattr(channels_module, "_PIXELS_AT_ONCE", 100)
    # A function of its own, which is traced with these bands.
    monkeypatch.setattr(
        channels_module, "_large_luma", lambda pixels: bands.append(1) or original(pixels, lambda band: to_channels(band, 1), 1)
    )
    np.testing.assert_array_equal(shown_pixels(stored, 1, DEFAULT_RULES).numpy(), whole)
    assert bands


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("CMYK", 3)])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_jpeg_is_checked_as_it_is_decoded_in_a_graph(rng, mode, channels, orientation):
    data = oriented(picture(rng, mode, (13, 9)), "jpeg", orientation)
    stored, info = stored_pixels(data, "jpeg", orientation), check_image(data)
    assert info.channels == stored.shape[-1] == channels
    in_graph = tf.function(lambda content: decode_image(content, channels))(tf.constant(data))
    np.testing.assert_array_equal(stored, in_graph)
