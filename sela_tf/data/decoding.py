"""One image file to uint8 pixels, with tf.io alone, so that training, checking and serving decode alike."""

from __future__ import annotations

import hashlib
from typing import Literal, NamedTuple

import numpy as np
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
_HEADER_BYTES = 30
_BMP_RESERVED = slice(6, 10)
"""Four zeros, in a bitmap; a text may begin with its two letters, too."""
_BMP_BITS = slice(28, 30)
_BMP_PALETTE_BITS = 8
"""At most so many bits a pixel are indices into a palette, which tf.io takes for gray values."""
_OTHER_IMAGES = {b"II*\x00": "tiff", b"MM\x00*": "tiff", b"8BPS": "psd", b"\x00\x00\x01\x00": "ico", b"P5": "pgm", b"P6": "ppm"}


class _Sides(NamedTuple):
    """Where a header has the image's width and then its height."""

    at: int
    length: int
    order: Literal["big", "little"]

    def parts(self) -> tuple[slice, slice]:
        """The bytes of width and height."""
        middle = self.at + self.length
        return slice(self.at, middle), slice(middle, middle + self.length)


_SIDES = {"png": _Sides(16, 4, "big"), "gif": _Sides(6, 2, "little"), "bmp": _Sides(18, 4, "little")}
"""A jpeg has them behind parts of any length: extract_jpeg_shape finds them."""


class Header(NamedTuple):
    """The kind of an image file and its size, as its first bytes tell them."""

    kind: str
    height: int
    width: int


class ImageInfo(NamedTuple):
    """What `check_image` found in a file."""

    kind: str
    height: int
    width: int
    channels: int
    pixels_sha256: str = ""
    """The sha256 digest of shape and values as they were decoded; "" where the header alone was read."""


class BadImageError(ValueError):
    """A file that does not decode to an image."""


class UnreadableFormatError(BadImageError):
    """An image, of a format that tf.io does not read."""


def image_kind(data: bytes) -> str | None:
    """ "jpeg", "png", "gif" or "bmp" by the first bytes; another image format's name; None for what is no image."""
    if data.startswith(b"BM") and any(data[_BMP_RESERVED].ljust(4, b"x")):
        return None
    for signatures in (_SIGNATURES, _OTHER_IMAGES):
        for signature, kind in signatures.items():
            if data.startswith(signature):
                return kind
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[4:8] == b"ftyp":
        return {b"avif": "avif", b"heic": "heic", b"heix": "heic", b"mif1": "heic"}.get(data[8:12])
    return None


def read_header(data: bytes) -> Header:
    """Kind and size of an image file that begins with `data`, of which nothing is decoded.

    Raises:
        BadImageError: the file is empty, no image, or too large, or the header is damaged or goes on behind `data`.
        UnreadableFormatError: it is an image of a format that tf.io does not read.
    """
    kind = image_kind(data)
    if kind is None:
        raise BadImageError("no image" if data else "an empty file")
    if kind not in _SIGNATURES.values():
        raise UnreadableFormatError(f"{kind}: convert it to jpeg, png, gif or bmp")
    if kind == "bmp" and len(data) >= _HEADER_BYTES and int.from_bytes(data[_BMP_BITS], "little") <= _BMP_PALETTE_BITS:
        raise UnreadableFormatError("bmp with a palette: convert it to png")
    try:
        height, width = _header_size(kind, data)
    except tf.errors.InvalidArgumentError as error:
        raise _damaged(kind) from error
    if height * width > MAX_PIXELS:
        raise BadImageError(f"{height} x {width} pixels; at most {MAX_PIXELS:,} are decoded")
    if height * width == 0:
        raise _damaged(kind)
    return Header(kind, height, width)


def check_image(data: bytes) -> ImageInfo:
    """Reads the header, then decodes the whole file.

    Raises:
        BadImageError: the file is empty, no image, too large, or cut or damaged.
        UnreadableFormatError: it is an image of a format that tf.io does not read.
    """
    kind = read_header(data).kind
    try:
        decoded = tf.io.decode_image(data, channels=3 if kind == "jpeg" and _is_cmyk(data) else 0, expand_animations=False)
    except tf.errors.InvalidArgumentError as error:
        raise _damaged(kind) from error
    pixels = decoded.numpy()
    digest = hashlib.sha256(str(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    height, width, channels = pixels.shape
    return ImageInfo(kind, height, width, channels, digest.hexdigest())


def _damaged(kind: str) -> BadImageError:
    return BadImageError(f"a damaged or cut {kind}")


def readable(data: tf.Tensor) -> tf.Tensor:
    """Strings [B] to bool [B]: whether `check_image` would decode them at all, going by their first bytes; runs in a graph.

    What looks like a jpeg passes: the size that it has further on is for `decode_image` to refuse.
    """
    # a header that is cut counts as filled up with zeros
    header = tf.cast(tf.io.decode_raw(data, tf.uint8, fixed_length=_HEADER_BYTES), tf.int64)

    def is_kind(kind: str) -> tf.Tensor:
        signatures = [list(signature) for signature, other in _SIGNATURES.items() if other == kind]
        found = [tf.reduce_all(header[:, : len(signature)] == signature, axis=1) for signature in signatures]
        return tf.reduce_any(found, axis=0)

    def number(part: slice, order: str) -> tf.Tensor:
        weights = [256**i for i in range(part.stop - part.start)]
        return tf.reduce_sum(header[:, part] * tf.constant(weights if order == "little" else weights[::-1], tf.int64), axis=1)

    def is_small(kind: str) -> tf.Tensor:
        sides = [number(part, _SIDES[kind].order) for part in _SIDES[kind].parts()]
        if kind == "bmp":  # negative when the rows run from the top
            sides = [tf.minimum(side, 2**32 - side) for side in sides]
        pixels = tf.reduce_prod(tf.cast(sides, tf.float64), axis=0)  # which may be more than 64 bits count
        return (pixels > 0) & (pixels <= MAX_PIXELS)

    has_palette = number(_BMP_BITS, "little") <= _BMP_PALETTE_BITS
    is_true_bmp = tf.reduce_all(header[:, _BMP_RESERVED] == 0, axis=1) & ~has_palette
    others = [is_kind(kind) & is_small(kind) & (is_true_bmp if kind == "bmp" else True) for kind in _SIDES]
    return tf.reduce_any([is_kind("jpeg"), *others], axis=0)


def decode_image(data: tf.Tensor, channels: int) -> tf.Tensor:
    """Encoded bytes (scalar string) to uint8 [h, w, channels], channels 1 or 3; runs in a graph.

    Channels are matched by `to_channels`; of an animation the first frame is taken. Sixteen-bit files are scaled to eight bits. A jpeg
    of more than MAX_PIXELS is an InvalidArgumentError; for the other formats, and for bytes that nobody has looked at, `readable` says
    beforehand whether they should be decoded.
    """
    # CMYK files have four channels as RGBA files do; only the jpeg decoder can tell them apart
    pixels = tf.cond(
        tf.io.is_jpeg(data),
        lambda: _decode_jpeg(data),
        lambda: tf.io.decode_image(data, channels=0, expand_animations=False),
    )
    return tf.ensure_shape(to_channels(pixels, channels), [None, None, channels])


def to_channels(pixels: tf.Tensor, channels: int) -> tf.Tensor:
    """[..., C] of gray, gray and transparency, colour, or colour and transparency (C = 1 to 4) to [..., channels], 1 or 3.

    Gray becomes colour by repetition, colour becomes gray by its luma (ITU-R BT.601) in whole numbers, transparency is dropped.
    """
    is_gray = tf.shape(pixels)[-1] <= 2
    if channels == 1:
        return tf.cond(is_gray, lambda: pixels[..., :1], lambda: _luma(pixels[..., :3]))
    return tf.cond(is_gray, lambda: tf.repeat(pixels[..., :1], 3, axis=-1), lambda: pixels[..., :3])


def _luma(pixels: tf.Tensor) -> tf.Tensor:
    whole = tf.saturate_cast(tf.round(pixels), tf.uint8)
    return tf.cast(tf.image.rgb_to_grayscale(whole), pixels.dtype)


def _decode_jpeg(data: tf.Tensor) -> tf.Tensor:
    shape = tf.io.extract_jpeg_shape(data)
    # no decoder reads an empty string
    data = tf.where(tf.reduce_prod(tf.cast(shape[:2], tf.int64)) <= MAX_PIXELS, data, "")
    return tf.cond(shape[2] == 1, lambda: tf.io.decode_jpeg(data, channels=1), lambda: tf.io.decode_jpeg(data, channels=3))


def _is_cmyk(data: bytes) -> bool:
    return int(tf.io.extract_jpeg_shape(data)[2]) == 4


def _header_size(kind: str, data: bytes) -> tuple[int, int]:
    """(height, width) as the file's header has them; less than there is of a header that is cut, which will not decode."""
    if kind == "jpeg":
        height, width = (int(size) for size in tf.io.extract_jpeg_shape(data)[:2])
        return height, width
    # a bitmap's are negative when its rows run from the top
    width, height = (abs(int.from_bytes(data[part], _SIDES[kind].order, signed=kind == "bmp")) for part in _SIDES[kind].parts())
    return height, width
