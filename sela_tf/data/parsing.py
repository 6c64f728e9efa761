"""Parsers of image files in TensorFlow operations, so that the served model reads orientation and transparency as training does."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

_MOST_PARTS = 10_000
"""The most parts of a file that are walked through, so that no file keeps a server busy."""
_ORIENTATION_TAG, _SHORT = 0x0112, 3
"""The EXIF tag of the orientation, and the TIFF type of a number of 16 bits."""
_JPEG_APP1, _JPEG_END, _JPEG_SCAN = 0xE1, 0xD9, 0xDA
_GIF_EXTENSION, _GIF_IMAGE, _GIF_CONTROL = 0x21, 0x2C, 0xF9


def _read_bytes(data: tf.Tensor, at: tf.Tensor | int, count: tf.Tensor | int) -> tf.Tensor:
    """Returns `count` bytes of a file from the offset `at` on as int64 `[count]`; bytes beyond its end are zero."""
    length = tf.strings.length(data, unit="BYTE")
    at = tf.cast(tf.clip_by_value(tf.cast(at, tf.int64), 0, tf.cast(length, tf.int64)), tf.int32)
    count = tf.cast(count, tf.int32)
    return tf.cast(tf.io.decode_raw(tf.strings.substr(data, at, count), tf.uint8, fixed_length=count), tf.int64)


def _number(part: tf.Tensor, is_little: tf.Tensor | bool) -> tf.Tensor:
    """Returns the numbers in bytes `[..., n]`, int64 `[...]`."""
    little = [256**i for i in range(part.shape[-1])]
    return tf.reduce_sum(part * _choose(is_little, little, little[::-1]), axis=-1)


def _choose(condition: tf.Tensor, then: tf.Tensor | int, otherwise: tf.Tensor | int) -> tf.Tensor:
    """Returns `then` where the condition holds, and `otherwise` elsewhere, as int64."""
    return tf.where(condition, tf.cast(then, tf.int64), tf.cast(otherwise, tf.int64))


def _walk(start: int, step: Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor, tf.Tensor]]) -> tf.Tensor:
    """Walks through the parts of a file until a step finds what is looked for.

    Args:
        start: The offset of the first part.
        step: A function of an offset and a state, 0 at first, that returns the next offset, the next state, and the result; -1 for none
            yet.

    Returns:
        The result, int64; -1 if there is none.
    """
    zero = tf.constant(0, tf.int64)
    return tf.while_loop(
        lambda at, state, found: found < 0,
        lambda at, state, found: step(at, state),
        (zero + start, zero, zero - 1),
        maximum_iterations=_MOST_PARTS,
    )[2]


def _exif_orientation(data: tf.Tensor, at: tf.Tensor) -> tf.Tensor:
    """Returns the orientation, 1 to 8, in the TIFF header at the offset `at`; 1 if there is none."""
    head = _read_bytes(data, at, 8)
    is_little = tf.reduce_all(head[:4] == [0x49, 0x49, 42, 0])
    is_tiff = is_little | tf.reduce_all(head[:4] == [0x4D, 0x4D, 0, 42])
    directory = at + _number(head[4:8], is_little)
    count = _choose(is_tiff, _number(_read_bytes(data, directory, 2), is_little), 0)
    entries = tf.reshape(_read_bytes(data, directory + 2, 12 * tf.maximum(count, 1)), [-1, 12])
    tags, types = _number(entries[:, 0:2], is_little), _number(entries[:, 2:4], is_little)
    values = _choose(types == _SHORT, _number(entries[:, 8:10], is_little), _number(entries[:, 8:12], is_little))
    found = tf.concat([tf.boolean_mask(values, tags == _ORIENTATION_TAG), [1]], axis=0)[0]
    return _choose((found >= 1) & (found <= 8), found, 1)


@tf.function(input_signature=[tf.TensorSpec([], tf.string)], autograph=False)
def jpeg_orientation(data: tf.Tensor) -> tf.Tensor:
    """Returns the EXIF orientation of a jpeg, int64 from 1 to 8; 1 for a file without one."""

    def step(at: tf.Tensor, state: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        head = _read_bytes(data, at, 10)
        marker = head[1]
        is_filler = (head[0] == 255) & (marker == 255)
        is_exif = (marker == _JPEG_APP1) & tf.reduce_all(head[4:] == list(b"Exif\0\0"))
        # No segment follows the scan, the end or what is no marker: the answer is then the offset 0, where no TIFF header is.
        is_over = (head[0] != 255) | (marker == _JPEG_SCAN) | (marker == _JPEG_END)
        found = _choose(is_over, 0, _choose(is_exif, at + 10, -1))
        return _choose(is_filler, at + 1, at + 2 + _number(head[2:4], False)), state, found

    return _exif_orientation(data, tf.maximum(_walk(2, step), 0))


@tf.function(input_signature=[tf.TensorSpec([], tf.string)], autograph=False)
def png_orientation(data: tf.Tensor) -> tf.Tensor:
    """Returns the orientation in the chunk eXIf of a png, int64 from 1 to 8; 1 for a file without one."""
    # A text may hold the four letters, too, but no TIFF header behind them.
    lengths = tf.cast(tf.strings.length(tf.strings.split(data, b"eXIf"), unit="BYTE"), tf.int64)
    ends = tf.cumsum(lengths + 4)[:-1]
    found = tf.map_fn(lambda at: _exif_orientation(data, at), ends, fn_output_signature=tf.int64)
    return tf.reduce_max(tf.concat([found, [1]], axis=0))


@tf.function(input_signature=[tf.TensorSpec([], tf.string)], autograph=False)
def webp_orientation(data: tf.Tensor) -> tf.Tensor:
    """Returns the EXIF orientation of a webp, int64 from 1 to 8; 1 for a file without one."""
    length = tf.cast(tf.strings.length(data, unit="BYTE"), tf.int64)

    def step(at: tf.Tensor, state: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        head = _read_bytes(data, at, 14)
        size = _number(head[4:8], True)
        # Some programs write the beginning of a jpeg's segment before the TIFF header.
        begin = at + 8 + _choose(tf.reduce_all(head[8:] == list(b"Exif\0\0")), 6, 0)
        found = _choose(tf.reduce_all(head[:4] == list(b"EXIF")), begin, _choose(at >= length, 0, -1))
        return at + 8 + size + size % 2, state, found

    return _exif_orientation(data, tf.maximum(_walk(12, step), 0))


@tf.function(input_signature=[tf.TensorSpec([], tf.string)], autograph=False)
def gif_is_transparent(data: tf.Tensor) -> tf.Tensor:
    """Returns True if the first frame of a gif declares a transparent colour, or does not fill the image."""
    screen = _read_bytes(data, 6, 5)
    table = _choose(screen[4] >= 128, 3 * 2 ** (screen[4] % 8 + 1), 0)

    def step(at: tf.Tensor, state: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """The state is 0 at the beginning of a block, and 1 at the length of a part of an extension."""
        head = _read_bytes(data, table + at, 9)
        covers = tf.reduce_all(head[1:5] == 0) & tf.reduce_all(_number(tf.reshape(head[5:9], [2, 2]), True) >= sides)
        is_control = (head[0] == _GIF_EXTENSION) & (head[1] == _GIF_CONTROL)
        is_marked = is_control & (head[3] % 2 == 1)
        is_transparent = is_marked | ((head[0] == _GIF_IMAGE) & ~covers)
        inside = state == 1
        goes_on = inside | ((head[0] == _GIF_EXTENSION) & ~is_marked)
        return (
            at + _choose(inside, 1 + head[0], 2),
            _choose(inside & (head[0] == 0), 0, 1),
            _choose(goes_on, -1, tf.cast(is_transparent, tf.int64)),
        )

    sides = _number(tf.reshape(screen[:4], [2, 2]), True)
    return _walk(13, step) == 1
