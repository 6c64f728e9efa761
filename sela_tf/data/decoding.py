"""The decoding of one image file to uint8 pixels, by tf.io only, so that training, checking and serving decode in the same way."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from sela_tf.data.channels import called, shown_pixels, to_channels
from sela_tf.data.gif_frames import check_frames
from sela_tf.data.headers import (
    HEADER_BYTES,
    MAX_PIXELS,
    WEBP_ANIMATION,
    WEBP_EXIF,
    UnreadableFormatError,
    has_bmp_alpha,
    has_webp_flag,
    header_of,
    not_decoded,
    read_header,
    to_convert,
)
from sela_tf.data.parsing import gif_is_transparent, jpeg_orientation, png_orientation, webp_orientation
from sela_tf.data.pixel_rules import DEFAULT_RULES, PixelRules

_JPEG_FIRST, _PNG_FIRST, _WEBP_FIRST = 0xFF, 0x89, ord("R")
"""The first bytes of files. They suffice to choose a decoder, which looks at the others itself."""
_DEPTH_AT, _COLOURS_AT = 24, 25
"""Offsets of a png's bits per channel and of the type of its colours."""
_DEEP, _GRAY, _WITH_PALETTE = 16, 0, 3
_SEARCHED = 2**18
"""Bytes of a jpeg that are searched for EXIF: in a larger file its segments are walked through at once, which takes little beside its decoding."""
_HAS_EXIF, _HAS_MARKS = r"\C*Exif\x00\x00\C*", r"\C*(?:eXIf|tRNS)\C*"
"""Files that may have EXIF or, for a png, EXIF or a transparent colour. Most have none, and are not searched any further."""
_CONTENT, _STORED = tf.TensorSpec([], tf.string), tf.TensorSpec([None, None, None], tf.uint8)
"""The content of a file, and stored pixels."""


class ImageInfo(NamedTuple):
    """The format, size and digest of an image file that was decoded."""

    kind: str
    """The format: "jpeg", "png", "gif", "bmp" or "webp"."""
    height: int
    """The height in pixels, as the image stands upright."""
    width: int
    """The width in pixels, as the image stands upright."""
    channels: int
    """Channels of the file, 1 to 4, of which even numbers include transparency; 0 if only the header was read."""
    pixels_sha256: str = ""
    """The SHA-256 digest of the upright file's shape and values, before any rule is applied; "" if only the header was read."""
    orientation: int = 1
    """The EXIF orientation of a jpeg, 1 to 8."""
    largest: int = 0
    """The largest visible value of a file of 16 bits; 0 for any other."""

    def before_rules(self) -> ImageInfo:
        """Returns the info of the image as runs see it that are older than the pixel rules: not turned."""
        return self._replace(height=self.width, width=self.height, orientation=1) if self.orientation >= 5 else self


class UnreadImageError(UnreadableFormatError):
    """An image that decodes, but wrongly: without its transparency, or not upright."""

    def __init__(self, message: str, info: ImageInfo):
        super().__init__(message)
        self.info = info


def check_image(data: bytes) -> ImageInfo:
    """Checks an image file by reading its header and decoding it.

    Raises:
        BadImageError: The file is empty, no image, too large, cut or damaged.
        UnreadableFormatError: The image has a format that is not read.
    """
    header = read_header(data)
    kind = header.kind
    if kind == "webp" and has_webp_flag(header_of(data), WEBP_ANIMATION):
        raise to_convert("webp with several frames")
    if kind == "gif":
        check_frames(data)
    try:
        pixels = stored_pixels(data, kind, header.orientation)
    except tf.errors.InvalidArgumentError as error:
        raise not_decoded(kind, data) from error
    digest = hashlib.sha256(str(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    height, width, channels = pixels.shape
    info = ImageInfo(kind, height, width, channels, digest.hexdigest(), header.orientation, _largest(pixels))
    if kind == "gif" and bool(gif_is_transparent(data)):
        raise UnreadImageError(str(to_convert("gif with transparency")), info)
    if (kind == "png" and b"eXIf" in data and int(png_orientation(data)) > 1) or (
        kind == "webp" and has_webp_flag(header_of(data), WEBP_EXIF) and int(webp_orientation(data)) > 1
    ):
        raise UnreadImageError(str(to_convert(f"{kind} with an EXIF orientation")), info)
    return info


def stored_pixels(data: bytes, kind: str, orientation: int = 1) -> np.ndarray:
    """Decodes a file whose format is known, and whose size `read_header` has checked, to the values that it holds, upright.

    Args:
        data: The content of the file.
        kind: The format, one of `headers.KINDS`.
        orientation: The EXIF orientation of a jpeg.

    Returns:
        uint8 or, for a png of 16 bits, uint16 `[h, w, C]`: gray, gray and alpha, RGB or RGBA.

    Raises:
        tf.errors.InvalidArgumentError: The file does not decode.
    """
    if kind == "jpeg":
        # What `_decode_jpeg` does in a graph, without the operations that choose; its limit of size has been checked.
        content = tf.constant(data)
        is_gray = tf.io.extract_jpeg_shape(content).numpy()[2] == 1
        pixels = tf.io.decode_jpeg(content, channels=1 if is_gray else 3)
        return (_turned(pixels, tf.constant(orientation)) if orientation > 1 else pixels).numpy()
    if kind == "png":
        dtype = tf.uint16 if data[_DEPTH_AT] == _DEEP else tf.uint8
        if b"tRNS" in data and data[_COLOURS_AT] < _WITH_PALETTE:
            return _decode_keyed_png(data, data[_COLOURS_AT] == _GRAY, dtype).numpy()
        return tf.io.decode_png(data, channels=0, dtype=dtype).numpy()
    pixels = _decode_any(data).numpy()
    return pixels[..., :3] if kind == "bmp" and not has_bmp_alpha(header_of(data)) else pixels


def decode_image(data: tf.Tensor, channels: int, rules: PixelRules = DEFAULT_RULES) -> tf.Tensor:
    """Decodes an image file to pixels by the rules of a run; runs in a graph.

    Transparent parts are laid on the background, a jpeg is turned upright, a png of 16 bits is scaled, and channels are converted: then all
    is rounded, once. An image with a longer shorter side than the rules allow is reduced. Animations give their first frame. Only jpeg files
    are checked for their size; call `readable` first on files that may be of any other kind.

    Args:
        data: The content of the file, a scalar string.
        channels: 1 (gray) or 3 (RGB).
        rules: The rules of the run.

    Returns:
        Pixels, uint8 `[h, w, channels]`.

    Raises:
        tf.errors.InvalidArgumentError: The file does not decode, is a jpeg of more than `MAX_PIXELS` pixels, or is not read by the rules.
    """
    if rules.are_old:
        pixels = tf.cond(tf.io.is_jpeg(data), lambda: _decode_jpeg(data), lambda: _decode_any(data))
        return tf.ensure_shape(to_channels(pixels, channels), [None, None, channels])
    header = tf.io.decode_raw(data, tf.uint8, fixed_length=HEADER_BYTES)
    is_png = header[0] == _PNG_FIRST

    def jpeg() -> tf.Tensor:
        pixels = _decode_jpeg(data)
        is_large = tf.strings.length(data, unit="BYTE") > _SEARCHED
        has_exif = is_large | tf.strings.regex_full_match(tf.strings.substr(data, 0, _SEARCHED), _HAS_EXIF)
        return tf.cond(has_exif, lambda: _upright_jpeg(pixels, data), lambda: pixels)

    def png() -> tf.Tensor:
        is_marked = tf.strings.regex_full_match(data, _HAS_MARKS)
        return tf.cond(is_marked, lambda: _marked_png(data), lambda: tf.io.decode_png(data))

    kinds = [(header[0] == _JPEG_FIRST, jpeg), (is_png, png), (header[0] == _WEBP_FIRST, lambda: _still_webp(data))]
    pixels = tf.cond(
        is_png & (header[_DEPTH_AT] == _DEEP),
        lambda: shown_pixels(tf.ensure_shape(_marked_deep_png(data), _STORED.shape), channels, rules),
        lambda: shown_pixels(tf.ensure_shape(tf.case(kinds, default=lambda: _gif_or_bmp(data)), _STORED.shape), channels, rules),
    )
    if rules.shorter_side:
        pixels = _reduced(pixels, rules.shorter_side)
    return tf.ensure_shape(pixels, [None, None, channels])


def _reduced(pixels: tf.Tensor, shorter_side: int) -> tf.Tensor:
    """Returns an image whose shorter side is at most `shorter_side`: each pixel is the mean of the area that it stands for, rounded."""
    sides = tf.shape(pixels)[:2]
    shorter = tf.reduce_min(sides)

    def reduce() -> tf.Tensor:
        size = tf.cast(tf.round(tf.cast(sides, tf.float64) * shorter_side / tf.cast(shorter, tf.float64)), tf.int32)
        means = tf.image.resize(pixels, size, method="area")
        return tf.saturate_cast(tf.round(means), tf.uint8)

    return tf.cond(shorter > shorter_side, reduce, lambda: pixels)


@called(_STORED, _CONTENT)
def _upright_jpeg(pixels: tf.Tensor, data: tf.Tensor) -> tf.Tensor:
    """Returns the stored pixels of a jpeg upright."""
    return _turned(pixels, jpeg_orientation(data))


@called(_CONTENT)
def _marked_png(data: tf.Tensor) -> tf.Tensor:
    """Decodes a png that may have EXIF or a transparent colour to uint8."""
    return _decode_marked_png(data, tf.uint8)


@called(_CONTENT)
def _marked_deep_png(data: tf.Tensor) -> tf.Tensor:
    """Decodes such a png to uint16."""
    return _decode_marked_png(data, tf.uint16)


@called(_CONTENT)
def _still_webp(data: tf.Tensor) -> tf.Tensor:
    """Decodes a webp; it fails if there are several frames, or if EXIF asks for a turn."""
    header = tf.cast(tf.io.decode_raw(data, tf.uint8, fixed_length=HEADER_BYTES), tf.int64)
    is_turned = has_webp_flag(header, WEBP_EXIF) & (webp_orientation(data) > 1)
    # An empty string does not decode.
    return _decode_any(tf.where(has_webp_flag(header, WEBP_ANIMATION) | is_turned, b"", data))


@called(_CONTENT)
def _gif_or_bmp(data: tf.Tensor) -> tf.Tensor:
    """Decodes the first frame of a gif, which fails if it is transparent, or a bmp, without its last bits if they mean nothing."""
    header = tf.cast(tf.io.decode_raw(data, tf.uint8, fixed_length=HEADER_BYTES), tf.int64)
    is_transparent = tf.cond(header[0] == ord("G"), lambda: gif_is_transparent(data), lambda: tf.constant(False))
    pixels = _decode_any(tf.where(is_transparent, b"", data))
    drops = (tf.shape(pixels)[-1] == 4) & ~has_bmp_alpha(header)
    return tf.cond(drops, lambda: pixels[..., :3], lambda: pixels)


def _turned(pixels: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Returns the image `[h, w, C]` upright that is stored in an EXIF orientation, 1 to 8."""

    def turn() -> tf.Tensor:
        image = tf.cond(orientation >= 5, lambda: tf.transpose(pixels, [1, 0, 2]), lambda: pixels)
        reversed_axes = [tf.reduce_any(orientation == numbers) for numbers in ([3, 4, 7, 8], [2, 3, 6, 7])]
        return tf.reverse(image, tf.boolean_mask([0, 1], reversed_axes))

    return tf.cond(orientation > 1, turn, lambda: pixels)


def _decode_jpeg(data: tf.Tensor) -> tf.Tensor:
    """Decodes a jpeg to gray or RGB as it is stored; CMYK becomes RGB."""
    shape = tf.io.extract_jpeg_shape(data)
    # The decoder refuses an empty string.
    data = tf.where(tf.reduce_prod(tf.cast(shape[:2], tf.int64)) <= MAX_PIXELS, data, b"")
    return tf.cond(shape[2] == 1, lambda: tf.io.decode_jpeg(data, channels=1), lambda: tf.io.decode_jpeg(data, channels=3))


def _decode_marked_png(data: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Decodes a png that may have EXIF, or a transparent colour, to uint8 or uint16; it fails if EXIF asks for a turn."""
    colours = tf.io.decode_raw(data, tf.uint8, fixed_length=HEADER_BYTES)[_COLOURS_AT]
    # An empty string does not decode.
    upright = tf.where(png_orientation(data) > 1, b"", data)
    return tf.cond(
        colours < _WITH_PALETTE,
        lambda: _decode_keyed_png(upright, colours == _GRAY, dtype),
        lambda: tf.io.decode_png(upright, dtype=dtype),
    )


def _decode_keyed_png(data: tf.Tensor, is_gray: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Decodes a png of gray or RGB with the transparency that a colour in its chunk tRNS has, which is dropped unless RGBA is asked for."""
    pixels = tf.io.decode_png(data, channels=4, dtype=dtype)
    return tf.cond(is_gray, lambda: pixels[..., 2:], lambda: pixels)


def _decode_any(data: tf.Tensor) -> tf.Tensor:
    """Decodes a file of any format to uint8 as it is stored.

    The operation exists in every release, unlike that of webp alone, so that an export is loaded by older releases, too.
    """
    return tf.io.decode_image(data, channels=0, expand_animations=False)


def _largest(pixels: np.ndarray) -> int:
    """Returns the largest visible value of stored pixels of 16 bits; 0 for those of 8."""
    if pixels.dtype != np.uint16:
        return 0
    channels = pixels.shape[-1]
    colours = pixels[..., : channels - (channels % 2 == 0)]
    return int(colours.max() if channels % 2 else np.where(pixels[..., -1:] > 0, colours, 0).max())
