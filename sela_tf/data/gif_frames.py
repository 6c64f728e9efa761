"""The frames of a gif, counted before it is decoded."""

from __future__ import annotations

from sela_tf.data.headers import MAX_PIXELS, BadImageError

_GIF_EXTENSION, _GIF_FRAME = 0x21, 0x2C
"""The first bytes of the parts of a gif."""


def check_frames(data: bytes) -> None:
    """Checks that all frames of a gif fit into memory, because TensorFlow decodes each of them, at its own size, before it takes the first.

    Raises:
        BadImageError: They have more pixels than the bytes of the largest image.
    """

    def after_blocks(at: int) -> int:
        while at < len(data) and data[at]:
            at += 1 + data[at]
        return at + 1

    def colours(flags: int) -> int:
        return 3 * 2 ** (flags % 8 + 1) if flags & 0x80 else 0

    pixels, at = 0, 13 + colours(data[10])
    # A gif that ends within a frame does not decode.
    while at + 9 < len(data) and data[at] in (_GIF_EXTENSION, _GIF_FRAME):
        if data[at] == _GIF_EXTENSION:
            at = after_blocks(at + 2)
            continue
        width, height = (int.from_bytes(data[at + start : at + start + 2], "little") for start in (5, 7))
        pixels += width * height
        at = after_blocks(at + 11 + colours(data[at + 9]))
    if pixels > 4 * MAX_PIXELS:
        raise BadImageError(f"a gif whose frames have {pixels:,} pixels; at most {4 * MAX_PIXELS:,} are decoded")
