"""Thumbnails in sprites: pictures that hold many images each, so that a page of fifty thousand has some two hundred files in it."""

from __future__ import annotations

import io
import math
from typing import NamedTuple

import numpy as np
from PIL import Image, features

from sela_tf.reporting.small_pictures import sheet_of

COLUMNS, CELLS = 16, 256
"""Images in a row of a sprite, and in a sprite."""

_LARGEST_SIDE = 96
_PIXELS = {1: 40e6, 3: 29e6}
"""Pixels of all thumbnails by channels: fifty thousand of 28 pixels in gray, or of 24 in colour."""

_BYTES = 11e6
"""Bytes that all sprites may take, a third more within the page, where they are written in base64."""
_QUALITIES = (75, 60, 45, 30, 15)
"""Qualities of the lossy encoding, of which the first is taken that keeps within `_BYTES`; they are tried on some sprites."""
_TRIED = 6


class Sprites(NamedTuple):
    """The thumbnails of n images, encoded."""

    files: list[bytes]
    """Pictures with up to CELLS images each, in rows of COLUMNS; image i is cell i % CELLS of picture i // CELLS."""
    kind: str
    """MIME type of the pictures."""
    height: int
    """Height of an image in pixels."""
    width: int
    """Width of an image in pixels."""


def thumbnail_size(num_images: int, size: tuple[int, ...], channels: int) -> tuple[int, int]:
    """Returns (height, width) of thumbnails of images that the network sees at `size`, so that all of them fit into a page."""
    height, width = size
    scale = min(1.0, _LARGEST_SIDE / max(size), math.sqrt(_PIXELS[channels] / (num_images * height * width)))
    return max(1, int(height * scale)), max(1, int(width * scale))


def make_sprites(thumbnails: np.ndarray) -> Sprites:
    """Returns the sprites of thumbnails uint8 [n, h, w, 1 or 3], in their order."""
    kind = "webp" if features.check("webp") else "jpeg"
    parts = [thumbnails[start : start + CELLS] for start in range(0, len(thumbnails), CELLS)]
    tried = parts[:: max(1, len(parts) // _TRIED)]
    for quality in _QUALITIES:
        size = sum(len(_encoded(part, kind, quality)) for part in tried) * len(parts) / len(tried)
        if size <= _BYTES:
            break
    height, width = thumbnails.shape[1:3]
    return Sprites([_encoded(part, kind, quality) for part in parts], f"image/{kind}", height, width)


def _encoded(part: np.ndarray, kind: str, quality: int) -> bytes:
    """Returns one sprite as a file."""
    sheet = sheet_of(part, COLUMNS)
    file = io.BytesIO()
    Image.fromarray(sheet[..., 0] if sheet.shape[2] == 1 else sheet).save(file, kind, quality=quality)
    return file.getvalue()
