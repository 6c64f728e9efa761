"""The decoding of one image file to uint8 pixels, by tf.io only, so that training, checking and serving decode in the same way."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from sela_tf.data.headers import (
    DECODES_WEBP,
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
_EXIF_WITHIN = 2**18
"""Bytes at the beginning of a jpeg within which EXIF begins. Its standard wants it first; only a preview may come before it."""
_HAS_EXIF, _HAS_MARKS = r"\C*Exif\x00\x00\C*", r"\C*(?:eXIf|tRNS)\C*"
"""Files that may have EXIF or, for a png, EXIF or a transparent colour. Most have none, and are not searched any further."""
_LUMA = (0.299, 0.587, 0.114)
"""ITU-R BT.601 weights, whose sum is 1, so that a white background stays white."""


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
    """Decodes a file whose format is known to the values that it holds, upright.

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
        pixels = _decode_jpeg(data)
        return (_turned(pixels, tf.constant(orientation)) if orientation > 1 else pixels).numpy()
    if kind == "png":
        dtype = tf.uint16 if data[_DEPTH_AT] == _DEEP else tf.uint8
        if b"tRNS" in data and data[_COLOURS_AT] < _WITH_PALETTE:
            return _decode_keyed_png(data, data[_COLOURS_AT] == _GRAY, dtype).numpy()
        return tf.io.decode_png(data, channels=0, dtype=dtype).numpy()
    if kind == "webp":
        return tf.io.decode_webp(data)[0].numpy()
    pixels = _decode_any(data).numpy()
    return pixels[..., :3] if kind == "bmp" and not has_bmp_alpha(header_of(data)) else pixels


def decode_image(data: tf.Tensor, channels: int, rules: PixelRules = DEFAULT_RULES) -> tf.Tensor:
    """Decodes an image file to pixels by the rules of a run; runs in a graph.

    Transparent parts are laid on the background, a jpeg is turned upright, a png of 16 bits is scaled, and channels are converted: then all
    is rounded, once. Animations give their first frame. Only jpeg files are checked for their size; call `readable` first on files that may
    be of any other kind.

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

    def jpeg() -> tf.Tensor:
        pixels = to_channels(_decode_jpeg(data), channels)
        has_exif = tf.strings.regex_full_match(tf.strings.substr(data, 0, _EXIF_WITHIN), _HAS_EXIF)
        return tf.cond(has_exif, _apart(lambda: _turned(pixels, jpeg_orientation(data))), lambda: pixels)

    def png() -> tf.Tensor:
        def marked(dtype: tf.DType) -> tf.Tensor:
            return shown_pixels(_decode_marked_png(data, header[_COLOURS_AT], dtype), channels, rules)

        is_deep, is_marked = header[_DEPTH_AT] == _DEEP, tf.strings.regex_full_match(data, _HAS_MARKS)
        rare = [(is_deep, _apart(lambda: marked(tf.uint16))), (is_marked, _apart(lambda: marked(tf.uint8)))]
        return tf.case(rare, default=lambda: shown_pixels(tf.io.decode_png(data), channels, rules))

    def webp() -> tf.Tensor:
        is_animated, has_exif = (has_webp_flag(tf.cast(header, tf.int64), flag) for flag in (WEBP_ANIMATION, WEBP_EXIF))
        is_turned = tf.cond(has_exif, lambda: webp_orientation(data) > 1, lambda: tf.constant(False))
        still = tf.where(is_animated | is_turned, b"", data)
        return shown_pixels(tf.io.decode_webp(still)[0], channels, rules)

    def gif_or_bmp() -> tf.Tensor:
        is_transparent = tf.cond(header[0] == ord("G"), lambda: gif_is_transparent(data), lambda: tf.constant(False))
        pixels = _decode_any(tf.where(is_transparent, b"", data))
        drops = (tf.shape(pixels)[-1] == 4) & ~has_bmp_alpha(tf.cast(header, tf.int64))
        return shown_pixels(tf.cond(drops, lambda: pixels[..., :3], lambda: pixels), channels, rules)

    kinds = [(header[0] == _JPEG_FIRST, jpeg), (header[0] == _PNG_FIRST, png)]
    if DECODES_WEBP:
        kinds.append((header[0] == _WEBP_FIRST, _apart(webp)))
    return tf.ensure_shape(tf.case(kinds, default=_apart(gif_or_bmp)), [None, None, channels])


def _apart(branch: Callable[[], tf.Tensor]) -> Callable[[], tf.Tensor]:
    """Returns a branch of a graph as a function that is called. TensorFlow visits every operation of other branches, taken or not."""
    return tf.function(branch, autograph=False, experimental_attributes={"_noinline": True})


def shown_pixels(pixels: tf.Tensor, channels: int, rules: PixelRules) -> tf.Tensor:
    """Lays stored pixels on the background, scales 16 bits, and converts the channels.

    Args:
        pixels: uint8 or uint16 `[..., C]`: gray (C = 1), gray and alpha (2), RGB (3) or RGBA (4).
        channels: 1 or 3.
        rules: The rules of the run.

    Returns:
        uint8 `[..., channels]`.
    """
    if pixels.dtype == tf.uint16:
        return _laid(pixels, channels, rules)
    is_opaque = tf.shape(pixels)[-1] % 2 == 1
    return tf.cond(is_opaque, lambda: to_channels(pixels, channels), lambda: _laid(pixels, channels, rules))


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


def _laid(pixels: tf.Tensor, channels: int, rules: PixelRules) -> tf.Tensor:
    """Returns stored pixels, uint8 or uint16 `[..., C]`, on the background, as uint8 `[..., channels]`."""
    full = pixels.dtype.max
    # Each type holds the whole numbers of the numerator exactly, so that its quotient is rounded as that of real numbers is.
    largest, real = (255, tf.float32) if pixels.dtype == tf.uint8 else (rules.largest, tf.float64)
    count = tf.shape(pixels)[-1]
    has_alpha = count % 2 == 0
    values = tf.cast(pixels, real)
    alpha = tf.cond(has_alpha, lambda: values[..., -1:], lambda: tf.fill(tf.shape(values[..., :1]), tf.constant(full, real)))

    def lay(colour: tf.Tensor, background: tuple[float, ...]) -> tf.Tensor:
        under = tf.constant(background, real) * largest
        return (tf.minimum(colour, largest) * 255.0 * alpha + under * (full - alpha)) / (largest * full)

    def whole(laid: tf.Tensor) -> tf.Tensor:
        return tf.cast(tf.floor(laid + 0.5), tf.uint8)

    background = rules.background or (0, 0, 0)
    if channels == 3:
        colour = tf.cond(count <= 2, lambda: tf.repeat(values[..., :1], 3, axis=-1), lambda: values[..., :3])
        return whole(lay(colour, background))
    gray = (sum(weight * part for weight, part in zip(_LUMA, background, strict=True)),)

    def luma() -> tf.Tensor:
        # TensorFlow's conversion of whole numbers, without its rounding before. Opaque images come out as `to_channels` has them.
        part = tf.cast(lay(values[..., :3], background), tf.float32) * (1.0 / 255)
        return tf.image.convert_image_dtype(tf.image.rgb_to_grayscale(part), tf.uint8, saturate=True)

    return tf.cond(count <= 2, lambda: whole(lay(values[..., :1], gray)), luma)


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


def _decode_marked_png(data: tf.Tensor, colours: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Decodes a png that may have EXIF, or a transparent colour, to uint8 or uint16; it fails if EXIF asks for a turn."""
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
    """Decodes a file of any format to uint8 as it is stored."""
    return tf.io.decode_image(data, channels=0, expand_animations=False)


def _largest(pixels: np.ndarray) -> int:
    """Returns the largest visible value of stored pixels of 16 bits; 0 for those of 8."""
    if pixels.dtype != np.uint16:
        return 0
    channels = pixels.shape[-1]
    colours = pixels[..., : channels - (channels % 2 == 0)]
    return int(colours.max() if channels % 2 else np.where(pixels[..., -1:] > 0, colours, 0).max())
