"""Letters and digits drawn from Debian's fonts: 62 classes, held-out families of fonts."""

from __future__ import annotations

import pathlib
import string
import zlib

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from benchmarks.own_images.fetching import debian_package

CHARACTERS = string.ascii_uppercase + string.ascii_lowercase + string.digits
SIDE = 32
_FACES = 5
"""The most faces of a package, evenly spaced in the order of their names."""
_LARGEST = 28
"""Pixels that the largest character of a font is high and wide."""
_MISSING = "\U0010fffe"
"""No character, so that a font draws its sign for a missing one."""

PACKAGES = tuple(pathlib.Path(__file__).with_name("fonts.txt").read_text().split())
"""Names of Debian packages of Latin fonts, without "fonts-"."""


def write_glyphs(directory: pathlib.Path, sets_dir: pathlib.Path, *, download: bool) -> None:
    """Writes glyphs.npz: training images in a random order, and those of held-out packages."""
    parts: dict[bool, list[np.ndarray]] = {False: [], True: []}
    for package in PACKAGES:
        root = debian_package(f"fonts-{package}", sets_dir, download=download)
        files = sorted(path for path in root.rglob("*") if path.suffix in (".ttf", ".otf", ".t1") and path.is_file())
        drawn = [glyphs for glyphs in map(font_glyphs, _spread(files)) if glyphs is not None]
        parts[zlib.crc32(package.encode()) % 5 == 0] += drawn
    arrays = {}
    for held_out, drawn in parts.items():
        images = np.concatenate(drawn)
        order = np.random.default_rng(0).permutation(len(images))
        prefix = "eval_" if held_out else ""
        arrays[f"{prefix}images"] = images[order]
        arrays[f"{prefix}classes"] = np.tile(np.arange(len(CHARACTERS)), len(drawn))[order]
    np.savez_compressed(directory / "glyphs.npz", **arrays)


def _spread(files: list[pathlib.Path]) -> list[pathlib.Path]:
    """Returns at most _FACES of the files."""
    return [files[i * len(files) // _FACES] for i in range(_FACES)] if len(files) > _FACES else files


def font_glyphs(file: pathlib.Path) -> np.ndarray | None:
    """Returns the characters of a font, black on white on one line, uint8 `[62, 32, 32]`; None if it lacks one of them."""
    try:
        font = ImageFont.truetype(str(file), 100)
        boxes = np.array([font.getbbox(character, anchor="ls") for character in CHARACTERS])
        shapes = [bytes(font.getmask(character)) for character in CHARACTERS]
        if bytes(font.getmask(_MISSING)) in shapes or not all(map(any, shapes)):
            return None
    except (OSError, ValueError):
        return None
    top, bottom = boxes[:, 1].min(), boxes[:, 3].max()
    size = int(100 * _LARGEST / max(bottom - top, (boxes[:, 2] - boxes[:, 0]).max()))
    font = font.font_variant(size=max(size, 6))
    line = (SIDE - (top + bottom) * size / 100) / 2
    return np.stack([_draw(font, character, line) for character in CHARACTERS])


def _draw(font: ImageFont.FreeTypeFont, character: str, line: float) -> np.ndarray:
    """Returns one character in the middle, its baseline at the height `line`, uint8 `[32, 32]`."""
    image = Image.new("L", (SIDE, SIDE), 255)
    left, _, right, _ = font.getbbox(character, anchor="ls")
    ImageDraw.Draw(image).text(((SIDE - left - right) / 2, line), character, fill=0, font=font, anchor="ls")
    return np.asarray(image)
