"""The decoding of one image file to uint8 pixels, by tf.io only, so that training, checking and serving decode in the same way."""

from __future__ import annotations

import hashlib
from typing import Literal, NamedTuple

import numpy as np
import tensorflow as tf

MAX_PIXELS = 2 * (1024 * 1024 * 1024 // 4 // 3)
"""The most pixels (height x width) that are decoded, about 179 million: the limit of Pillow's decompression-bomb error.

The size in the header is checked before decoding, because a PNG file of 76 KB can decode to hundreds of megabytes."""

_SIGNATURES = {
    b"\xff\xd8\xff": "jpeg",
    b"\x89PNG\r\n\x1a\n": "png",
    b"GIF87a": "gif",
    b"GIF89a": "gif",
    b"BM": "bmp",
}
_HEADER_BYTES = 30
_BMP_RESERVED = slice(6, 10)
"""Reserved bytes of a bitmap, which are zero. They tell a bitmap from a text that begins with the letters BM."""
_BMP_BITS = slice(28, 30)
"""Bytes of a bitmap that hold the number of bits per pixel."""
_BMP_PALETTE_BITS = 8
"""The most bits per pixel of a bitmap with a palette. tf.io takes its indices for gray values."""
_OTHER_IMAGES = {b"II*\x00": "tiff", b"MM\x00*": "tiff", b"8BPS": "psd", b"\x00\x00\x01\x00": "ico", b"P5": "pgm", b"P6": "ppm"}


class _Sides(NamedTuple):
    """The place of the image's width in a header; the height comes right after it."""

    at: int
    """The offset of the width, in bytes."""
    length: int
    """The length of each number, in bytes."""
    order: Literal["big", "little"]
    """The byte order."""

    def parts(self) -> tuple[slice, slice]:
        """Returns the bytes of the width and those of the height."""
        middle = self.at + self.length
        return slice(self.at, middle), slice(middle, middle + self.length)


_SIDES = {"png": _Sides(16, 4, "big"), "gif": _Sides(6, 2, "little"), "bmp": _Sides(18, 4, "little")}
"""Places by format. In a jpeg they come after parts of any length; tf.io.extract_jpeg_shape finds them."""


class Header(NamedTuple):
    """The format and size of an image file, read from its first bytes."""

    kind: str
    """The format: "jpeg", "png", "gif" or "bmp"."""
    height: int
    """The height in pixels."""
    width: int
    """The width in pixels."""


class ImageInfo(NamedTuple):
    """The format, size and digest of an image file that was decoded."""

    kind: str
    """The format: "jpeg", "png", "gif" or "bmp"."""
    height: int
    """The height in pixels."""
    width: int
    """The width in pixels."""
    channels: int
    """Channels as decoded, 1 to 4; 0 if only the header was read."""
    pixels_sha256: str = ""
    """The SHA-256 digest of the decoded shape and pixels; "" if only the header was read."""


class BadImageError(ValueError):
    """A file that does not decode to an image."""


class UnreadableFormatError(BadImageError):
    """An image in a format that tf.io does not read."""


def image_kind(data: bytes) -> str | None:
    """Returns the format of an image file by its first bytes.

    Returns:
        "jpeg", "png", "gif" or "bmp"; the name of another image format, which cannot be decoded; None if `data` is no image.
    """
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
    """Reads the format and size of an image file that begins with `data`, without decoding it.

    Raises:
        BadImageError: The file is empty, no image or too large, or the header is damaged or longer than `data`.
        UnreadableFormatError: The image has a format that tf.io does not read.
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
    """Checks an image file by reading its header and decoding it.

    Raises:
        BadImageError: The file is empty, no image, too large, cut or damaged.
        UnreadableFormatError: The image has a format that tf.io does not read.
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
    """Returns the error of a file that is damaged or cut."""
    return BadImageError(f"a damaged or cut {kind}")


def readable(data: tf.Tensor) -> tf.Tensor:
    """Tells, by their first bytes, which files `check_image` would decode; runs in a graph.

    Every file that begins like a jpeg passes. `decode_image` refuses it later if its size, which comes further on, is too large.

    Args:
        data: Contents of files, string `[B]`.

    Returns:
        bool `[B]`.
    """
    # A header that is cut counts as filled up with zeros.
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
        if kind == "bmp":  # The height is negative if the rows run from the top.
            sides = [tf.minimum(side, 2**32 - side) for side in sides]
        pixels = tf.reduce_prod(tf.cast(sides, tf.float64), axis=0)  # The product may exceed 64 bits.
        return (pixels > 0) & (pixels <= MAX_PIXELS)

    has_palette = number(_BMP_BITS, "little") <= _BMP_PALETTE_BITS
    is_true_bmp = tf.reduce_all(header[:, _BMP_RESERVED] == 0, axis=1) & ~has_palette
    others = [is_kind(kind) & is_small(kind) & (is_true_bmp if kind == "bmp" else True) for kind in _SIDES]
    return tf.reduce_any([is_kind("jpeg"), *others], axis=0)


def decode_image(data: tf.Tensor, channels: int) -> tf.Tensor:
    """Decodes an image file to pixels; runs in a graph.

    Channels are converted by `to_channels`. Animations give their first frame. Sixteen bits per channel are scaled to eight. Only jpeg
    files are checked for their size; call `readable` first on files that may be of any other kind.

    Args:
        data: The content of the file, a scalar string.
        channels: 1 (gray) or 3 (RGB).

    Returns:
        Pixels, uint8 `[h, w, channels]`.

    Raises:
        tf.errors.InvalidArgumentError: The file does not decode, or is a jpeg of more than `MAX_PIXELS` pixels.
    """
    # CMYK files have four channels as RGBA files do; only the jpeg decoder can tell them apart.
    pixels = tf.cond(
        tf.io.is_jpeg(data),
        lambda: _decode_jpeg(data),
        lambda: tf.io.decode_image(data, channels=0, expand_animations=False),
    )
    return tf.ensure_shape(to_channels(pixels, channels), [None, None, channels])


def to_channels(pixels: tf.Tensor, channels: int) -> tf.Tensor:
    """Converts the channels of images.

    Gray becomes colour by repetition, colour becomes gray by its luma (ITU-R BT.601) in whole numbers, transparency is dropped.

    Args:
        pixels: Images `[..., C]`: gray (C = 1), gray and alpha (2), RGB (3) or RGBA (4).
        channels: 1 or 3.

    Returns:
        Images `[..., channels]` of the same dtype.
    """
    is_gray = tf.shape(pixels)[-1] <= 2
    if channels == 1:
        return tf.cond(is_gray, lambda: pixels[..., :1], lambda: _luma(pixels[..., :3]))
    return tf.cond(is_gray, lambda: tf.repeat(pixels[..., :1], 3, axis=-1), lambda: pixels[..., :3])


def _luma(pixels: tf.Tensor) -> tf.Tensor:
    """Returns the luma of RGB images `[..., 3]`, rounded to whole numbers, as `[..., 1]`."""
    whole = tf.saturate_cast(tf.round(pixels), tf.uint8)
    return tf.cast(tf.image.rgb_to_grayscale(whole), pixels.dtype)


def _decode_jpeg(data: tf.Tensor) -> tf.Tensor:
    """Decodes a jpeg to gray or RGB; CMYK becomes RGB."""
    shape = tf.io.extract_jpeg_shape(data)
    # The decoder refuses an empty string.
    data = tf.where(tf.reduce_prod(tf.cast(shape[:2], tf.int64)) <= MAX_PIXELS, data, "")
    return tf.cond(shape[2] == 1, lambda: tf.io.decode_jpeg(data, channels=1), lambda: tf.io.decode_jpeg(data, channels=3))


def _is_cmyk(data: bytes) -> bool:
    """Returns True for a jpeg with the four channels of CMYK."""
    return int(tf.io.extract_jpeg_shape(data)[2]) == 4


def _header_size(kind: str, data: bytes) -> tuple[int, int]:
    """Returns (height, width) from the header. Of a header that is cut they are wrong, but such a file does not decode."""
    if kind == "jpeg":
        height, width = (int(size) for size in tf.io.extract_jpeg_shape(data)[:2])
        return height, width
    # The height of a bitmap is negative if its rows run from the top.
    width, height = (abs(int.from_bytes(data[part], _SIDES[kind].order, signed=kind == "bmp")) for part in _SIDES[kind].parts())
    return height, width
