"""The first bytes of image files: format, size, and whether the format is decoded here."""

from __future__ import annotations

import functools
import operator
from typing import Any, Literal, NamedTuple

import numpy as np
import tensorflow as tf

from sela_tf.data.parsing import jpeg_orientation
from sela_tf.data.pixel_rules import DEFAULT_RULES, PixelRules

MAX_PIXELS = 2 * (1024 * 1024 * 1024 // 4 // 3)
"""The most pixels (height x width) that are decoded, about 179 million: the limit of Pillow's decompression-bomb error.

The size in the header is checked before decoding, because a PNG file of 76 KB can decode to hundreds of megabytes."""

DECODES_WEBP = hasattr(tf.io, "decode_webp")
"""True for releases of TensorFlow that decode webp."""
KINDS = ("jpeg", "png", "gif", "bmp", *(["webp"] if DECODES_WEBP else []))
"""The formats that are decoded."""
_SIGNATURES = {
    b"\xff\xd8\xff": "jpeg",
    b"\x89PNG\r\n\x1a\n": "png",
    b"GIF87a": "gif",
    b"GIF89a": "gif",
    b"BM": "bmp",
    b"RIFF": "webp",
}
"""Beginnings of files. Those of a bitmap and of a webp need further bytes, see `_is_bmp` and `_is_webp`."""
_OTHER_IMAGES = {b"II*\x00": "tiff", b"MM\x00*": "tiff", b"8BPS": "psd", b"\x00\x00\x01\x00": "ico", b"P5": "pgm", b"P6": "ppm"}
HEADER_BYTES = 70
"""The length of the longest part of a header that is looked at: that of a bitmap, up to its masks."""
_BMP_PARTS = (12, 16, 40, 52, 56, 64, 108, 124)
"""Lengths of the second header of a bitmap, which tell it from a text that begins with the letters BM. The first two are OS/2's, which are
too short to hold what is looked at here."""
_BMP_PALETTE_BITS = 8
"""The most bits per pixel of a bitmap with a palette. tf.io takes its indices for gray values."""
_BMP_MASKS = (0xFF0000, 0xFF00, 0xFF)
"""The masks of red, green and blue of the only order of 32 bits that tf.io reads right."""
_BMP_ALPHA = 0xFF000000

WEBP_ANIMATION, WEBP_EXIF = 0x02, 0x08
"""Flags of a webp's extended header. TensorFlow's decoder ends the process at some animations, so that none may reach it."""
_JPEG_USUAL = 0xC2
"""The last marker of a usual jpeg: baseline, extended or progressive, each in Huffman coding."""

Header = Any
"""The first HEADER_BYTES bytes of files, filled up with zeros: an integer array or tensor `[..., HEADER_BYTES]`."""


class ImageHeader(NamedTuple):
    """The format and size of an image file, read from its first bytes."""

    kind: str
    """The format, one of `KINDS`."""
    height: int
    """The height in pixels, after the turn that EXIF asks for."""
    width: int
    """The width in pixels, after that turn."""
    orientation: int = 1
    """The EXIF orientation of a jpeg, 1 to 8."""


class BadImageError(ValueError):
    """A file that does not decode to an image."""


class UnreadableFormatError(BadImageError):
    """An image that is whole, in a format that is not read."""


def to_convert(what: str) -> UnreadableFormatError:
    """Returns the error of an image that is whole and has to be converted.

    Args:
        what: The kind of image, such as "tiff".
    """
    return UnreadableFormatError(f"{what}: convert it to png")


def image_kind(data: bytes) -> str | None:
    """Returns the format of an image file by its first bytes.

    Returns:
        One of "jpeg", "png", "gif", "bmp" and "webp"; the name of another image format, which cannot be decoded; None if `data` is no image.
    """
    for signatures in (_SIGNATURES, _OTHER_IMAGES):
        for signature, kind in signatures.items():
            if data.startswith(signature):
                header = header_of(data)
                return None if (kind == "bmp" and not _is_bmp(header)) or (kind == "webp" and not _is_webp(header)) else kind
    if data[4:8] == b"ftyp":
        return {b"avif": "avif", b"heic": "heic", b"heix": "heic", b"mif1": "heic"}.get(data[8:12])
    return None


def read_header(data: bytes) -> ImageHeader:
    """Reads the format and size of an image file that begins with `data`, without decoding it.

    Raises:
        BadImageError: The file is empty, no image or too large, or the header is damaged or longer than `data`.
        UnreadableFormatError: The image has a format that is not read.
    """
    kind = image_kind(data)
    if kind is None:
        raise BadImageError("no image" if data else "an empty file")
    if kind == "webp" and not DECODES_WEBP:
        raise to_convert(f"webp, which TensorFlow {tf.__version__} does not decode")
    if kind not in KINDS:
        raise to_convert(kind)
    if kind == "bmp":
        _refuse_other_bmp(data)
    height, width, orientation = _jpeg_size(data) if kind == "jpeg" else (*_sides(header_of(data), kind), 1)
    height, width = int(height), int(width)
    if height * width > MAX_PIXELS:
        raise BadImageError(f"{height} x {width} pixels; at most {MAX_PIXELS:,} are decoded")
    if height * width == 0:
        raise not_decoded(kind, data)
    return ImageHeader(kind, height, width, orientation)


def not_decoded(kind: str, data: bytes) -> BadImageError:
    """Returns the error of a file that does not decode: it is damaged, or a jpeg of a kind that only few programs write."""
    marker, bits = _jpeg_frame(data) if kind == "jpeg" else (0, 8)
    if bits != 8:
        return to_convert(f"jpeg of {bits} bits")
    return to_convert("jpeg of an unusual coding") if marker > _JPEG_USUAL else BadImageError(f"a damaged or cut {kind}")


def readable(data: tf.Tensor, rules: PixelRules = DEFAULT_RULES) -> tf.Tensor:
    """Tells, by their first bytes, which files may be decoded; runs in a graph.

    Every file that begins like a jpeg passes. `decode_image` refuses it later if its size, which comes further on, is too large, and files
    whose transparency or orientation is not read.

    Args:
        data: Contents of files, string `[B]`.
        rules: The rules of the run. Older runs read no webp, and any bitmap without a palette.

    Returns:
        bool `[B]`.
    """
    # A header that is cut counts as filled up with zeros.
    header = tf.cast(tf.io.decode_raw(data, tf.uint8, fixed_length=HEADER_BYTES), tf.int64)

    def begins(kind: str) -> tf.Tensor:
        signatures = [list(signature) for signature, other in _SIGNATURES.items() if other == kind]
        found = [tf.reduce_all(header[:, : len(signature)] == signature, axis=1) for signature in signatures]
        return tf.reduce_any(found, axis=0)

    def is_small(kind: str) -> tf.Tensor:
        sides = tf.cast(tf.stack(_sides(header, kind)), tf.float64)
        pixels = tf.reduce_prod(sides, axis=0)  # The product may exceed 64 bits.
        return (pixels > 0) & (pixels <= MAX_PIXELS)

    is_bmp = _is_bmp(header) & ((_number(header, 28, 2) > _BMP_PALETTE_BITS) if rules.are_old else is_read_bmp(header))
    also = {"bmp": is_bmp, "webp": _is_webp(header) & (not rules.are_old)}
    others = [begins(kind) & is_small(kind) & also.get(kind, True) for kind in KINDS if kind != "jpeg"]
    return tf.reduce_any([begins("jpeg"), *others], axis=0)


def header_of(data: bytes) -> np.ndarray:
    """Returns the header of one file, int64 `[HEADER_BYTES]`."""
    return np.frombuffer(data[:HEADER_BYTES].ljust(HEADER_BYTES, b"\0"), np.uint8).astype(np.int64)


def is_read_bmp(header: Header) -> Any:
    """Returns True for a bitmap whose kind tf.io reads right, bool `[...]`."""
    bits, compression, begin = _number(header, 28, 2), _number(header, 30, 4), _number(header, 10, 4)
    masks = [_number(header, 54 + 4 * i, 4) == mask for i, mask in enumerate(_BMP_MASKS)]
    alpha = _number(header, 66, 4)
    is_ordered = masks[0] & masks[1] & masks[2] & ((_number(header, 14, 4) < 56) | (alpha == 0) | (alpha == _BMP_ALPHA))
    is_plain = ((bits == 24) | (bits == 32)) & (compression == 0)
    return (_number(header, 14, 4) >= 40) & (begin >= 54) & (is_plain | ((bits == 32) & (compression == 3) & is_ordered))


def has_bmp_alpha(header: Header) -> Any:
    """Returns True for a bitmap of 32 bits whose last eight are its transparency, bool `[...]`; in others they mean nothing."""
    return (_number(header, 14, 4) >= 56) & (_number(header, 30, 4) == 3) & (_number(header, 66, 4) == _BMP_ALPHA)


def has_webp_flag(header: Header, flag: int) -> Any:
    """Returns True for a webp with a flag in its extended header, bool `[...]`."""
    return (header[..., 15] == ord("X")) & (header[..., 20] // flag % 2 == 1)


def _number(header: Header, at: int, length: int, order: Literal["big", "little"] = "little") -> Any:
    """Returns the number in bytes `at` to `at + length` of a header."""
    return sum(header[..., at + i] * 256 ** (i if order == "little" else length - 1 - i) for i in range(length))


def _is_bmp(header: Header) -> Any:
    """Returns True if the header that begins with BM goes on as that of a bitmap."""
    length = _number(header, 14, 4)
    return functools.reduce(operator.or_, (length == known for known in _BMP_PARTS))


def _is_webp(header: Header) -> Any:
    """Returns True if the header that begins with RIFF goes on as that of a webp."""
    return _number(header, 8, 7) == int.from_bytes(b"WEBPVP8", "little")


def _refuse_other_bmp(data: bytes) -> None:
    """Refuses bitmaps that tf.io cannot decode, or decodes wrongly.

    Raises:
        UnreadableFormatError: The bitmap is of such a kind.
    """
    header = header_of(data)
    bits = int(_number(header, 28, 2))
    if int(_number(header, 14, 4)) < 40:
        raise to_convert("bmp of OS/2")
    if len(data) >= 30 and 0 < bits <= _BMP_PALETTE_BITS:
        raise to_convert("bmp with a palette")
    if len(data) >= HEADER_BYTES and not is_read_bmp(header):
        raise to_convert(f"bmp of this kind ({bits} bits, compression {int(_number(header, 30, 4))})")


def _jpeg_size(data: bytes) -> tuple[int, int, int]:
    """Returns (height, width, orientation) of a jpeg.

    Raises:
        BadImageError: The header is cut or damaged.
    """
    try:
        height, width, _ = tf.io.extract_jpeg_shape(data).numpy().tolist()
    except tf.errors.InvalidArgumentError as error:
        raise not_decoded("jpeg", data) from error
    orientation = int(jpeg_orientation(data)) if b"Exif\0\0" in data else 1
    return (width, height, orientation) if orientation >= 5 else (height, width, orientation)


def _jpeg_frame(data: bytes) -> tuple[int, int]:
    """Returns the marker of a jpeg's frame, which names its coding, and its bits per channel; (0, 8) if it is not found."""
    at = 2
    while at + 5 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return marker, data[at + 4]
        at += 1 if marker == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return 0, 8


def _sides(header: Header, kind: str) -> tuple[Any, Any]:
    """Returns (height, width) in pixels by the header. Of a header that is cut they are wrong, but such a file does not decode."""
    if kind == "png":
        return _number(header, 20, 4, "big"), _number(header, 16, 4, "big")
    if kind == "gif":
        return _number(header, 8, 2), _number(header, 6, 2)
    if kind == "webp":
        return _webp_sides(header)
    height = _number(header, 22, 4)
    # The height of a bitmap is negative if its rows run from the top.
    least = np.minimum if isinstance(header, np.ndarray) else tf.minimum
    return least(height, 2**32 - height), _number(header, 18, 4)


def _webp_sides(header: Header) -> tuple[Any, Any]:
    """Returns (height, width) of a webp, whose first chunk is VP8, VP8L (without loss) or VP8X (extended)."""
    where = np.where if isinstance(header, np.ndarray) else tf.where
    is_lossless, is_extended = header[..., 15] == ord("L"), header[..., 15] == ord("X")
    bits = _number(header, 21, 4)
    lossless = (bits // 2**14 % 2**14 + 1, bits % 2**14 + 1)
    extended = (_number(header, 27, 3) + 1, _number(header, 24, 3) + 1)
    lossy = (_number(header, 28, 2) % 2**14, _number(header, 26, 2) % 2**14)
    height, width = (
        where(is_extended, sides[0], where(is_lossless, sides[1], sides[2]))
        for sides in zip(extended, lossless, lossy, strict=True)
    )
    return height, width
