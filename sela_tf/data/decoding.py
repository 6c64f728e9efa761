"""One image file to uint8 pixels, with tf.io alone, so that training, checking and serving decode alike."""

from __future__ import annotations

import struct
from typing import NamedTuple

import tensorflow as tf

# The header's size is checked before decoding: a PNG of 76 KB can unfold to hundreds of megabytes. The bound is that of Pillow's
# decompression-bomb error, about 179 million pixels.
MAX_PIXELS = 2 * (1024 * 1024 * 1024 // 4 // 3)

_SIGNATURES = {
    b"\xff\xd8\xff": "jpeg",
    b"\x89PNG\r\n\x1a\n": "png",
    b"GIF87a": "gif",
    b"GIF89a": "gif",
    b"BM": "bmp",
}
_OTHER_IMAGES = {b"II*\x00": "tiff", b"MM\x00*": "tiff", b"8BPS": "psd", b"\x00\x00\x01\x00": "ico", b"P5": "pgm", b"P6": "ppm"}


class ImageInfo(NamedTuple):
    """What `check_image` found in a file."""

    kind: str
    height: int
    width: int
    channels: int


class BadImageError(ValueError):
    """A file that does not decode to an image."""


class UnreadableFormatError(BadImageError):
    """An image, of a format that tf.io does not read."""


def image_kind(data: bytes) -> str | None:
    """ "jpeg", "png", "gif" or "bmp" by the first bytes; another image format's name; None for what is no image."""
    if data.startswith(b"BM") and data[6:10] != bytes(4):
        return None  # a text that happens to begin so: a bitmap has four zeros there
    for signatures in (_SIGNATURES, _OTHER_IMAGES):
        for signature, kind in signatures.items():
            if data.startswith(signature):
                return kind
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[4:8] == b"ftyp":
        return {b"avif": "avif", b"heic": "heic", b"heix": "heic", b"mif1": "heic"}.get(data[8:12])
    return None


def check_image(data: bytes) -> ImageInfo:
    """Reads the header, then decodes the whole file.

    Raises:
        BadImageError: the file is empty, no image, too large, or cut or damaged.
        UnreadableFormatError: it is an image of a format that tf.io does not read.
    """
    kind = image_kind(data)
    if kind is None:
        raise BadImageError("no image" if data else "an empty file")
    if kind not in _SIGNATURES.values():
        raise UnreadableFormatError(f"{kind}: convert it to jpeg, png, gif or bmp")
    if kind == "bmp" and len(data) >= 30 and int.from_bytes(data[28:30], "little") <= 8:
        # tf.io takes the indices for gray values
        raise UnreadableFormatError("bmp with a palette: convert it to png")
    try:
        height, width = _header_size(kind, data)
        if height * width > MAX_PIXELS:
            raise BadImageError(f"{height} x {width} pixels; at most {MAX_PIXELS:,} are decoded")
        shape = tf.io.decode_image(data, channels=3 if kind == "jpeg" and _is_cmyk(data) else 0, expand_animations=False).shape
    except (tf.errors.InvalidArgumentError, struct.error) as error:
        raise BadImageError(f"a damaged or cut {kind}") from error
    return ImageInfo(kind, int(shape[0]), int(shape[1]), int(shape[2]))


def decode_image(data: tf.Tensor, channels: int) -> tf.Tensor:
    """Encoded bytes (scalar string) to uint8 [h, w, channels], channels 1 or 3; runs in a graph.

    Gray becomes colour by repetition, colour becomes gray by its luma (ITU-R BT.601), transparency is dropped, of an animation the
    first frame is taken. Sixteen-bit files are scaled to eight bits.
    """
    # CMYK files have four channels as RGBA files do; only the jpeg decoder can tell them apart
    pixels = tf.cond(
        tf.io.is_jpeg(data),
        lambda: _decode_jpeg(data),
        lambda: tf.io.decode_image(data, channels=0, expand_animations=False),
    )
    is_gray = tf.shape(pixels)[-1] <= 2
    if channels == 1:
        pixels = tf.cond(is_gray, lambda: pixels[..., :1], lambda: tf.image.rgb_to_grayscale(pixels[..., :3]))
    else:
        pixels = tf.cond(is_gray, lambda: tf.repeat(pixels[..., :1], 3, axis=-1), lambda: pixels[..., :3])
    return tf.ensure_shape(pixels, [None, None, channels])


def _decode_jpeg(data: tf.Tensor) -> tf.Tensor:
    components = tf.io.extract_jpeg_shape(data)[2]
    return tf.cond(components == 1, lambda: tf.io.decode_jpeg(data, channels=1), lambda: tf.io.decode_jpeg(data, channels=3))


def _is_cmyk(data: bytes) -> bool:
    return int(tf.io.extract_jpeg_shape(data)[2]) == 4


def _header_size(kind: str, data: bytes) -> tuple[int, int]:
    """(height, width) as the file's header has them."""
    if kind == "png":
        width, height = struct.unpack(">II", data[16:24])
    elif kind == "gif":
        width, height = struct.unpack("<HH", data[6:10])
    elif kind == "bmp":
        width, height = struct.unpack("<ii", data[18:26])
        height = abs(height)  # negative when the rows run from the top
    else:
        height, width = (int(size) for size in tf.io.extract_jpeg_shape(data)[:2])
    return height, width
