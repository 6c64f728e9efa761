"""Two folders of colour pictures with transparency: Debian's cliparts and npm's emoji, as train/CLASS and test/CLASS."""

from __future__ import annotations

import hashlib
import json
import pathlib
import struct
from collections.abc import Callable

from PIL import Image

from benchmarks.own_images.fetching import debian_package, npm_package

EMOJI_VERSION = "16.0.0"
_CLIPARTS, _HELD_OUT_CLIPARTS = 5200, 1200
"""Chosen so that 4,000 images are left to train on, and the standard error of an accuracy is below .015."""
_HELD_OUT_EMOJI = 1 / 3
_NO_CATEGORIES = ("unsorted", "special")
_FEWEST = 50
"""Images of a category, without which its directory is left out."""
_SHORTER_SIDE = 128
"""Enough for views of 64 pixels that keep a quarter of the area."""
_MOST_PIXELS = 2**24
FINE = "--"
"""In a file's name, what stands before it is the finer class."""


def emoji(directory: pathlib.Path, sets_dir: pathlib.Path, *, download: bool) -> None:
    """Writes Google's emoji, 64 x 64, by category; names begin with the subcategory. Skin tones of one emoji are in one split."""
    package = npm_package(
        "emoji-datasource-google", EMOJI_VERSION, sets_dir, members=("emoji.json", "img/google/64/"), download=download
    )
    for each in json.loads((package / "emoji.json").read_text()):
        split = "test" if _draw(each["unified"]) < _HELD_OUT_EMOJI else "train"
        category = each["category"].replace(" & ", "-")
        for variant in [each, *each.get("skin_variations", {}).values()]:
            source = package / "img/google/64" / variant["image"]
            if category != "Component" and source.exists():
                _on_white(source, directory / split / category / f"{each['subcategory']}{FINE}{variant['image']}")


def cliparts(directory: pathlib.Path, sets_dir: pathlib.Path, *, download: bool) -> None:
    """Writes a part of Debian's openclipart-png, by top-level category. Of files with the same content there is one."""
    root = debian_package("openclipart-png", sets_dir, download=download) / "usr/share/openclipart/png"
    by_content: dict[str, pathlib.Path] = {}
    for path in sorted(root.rglob("*.png")):
        is_own = path.is_file() and not path.is_symlink() and _category(path, root) not in _NO_CATEGORIES
        if is_own and _num_pixels(path) <= _MOST_PIXELS:
            by_content.setdefault(hashlib.sha256(path.read_bytes()).hexdigest(), path)
    sizes: dict[str, int] = {}
    for path in by_content.values():
        sizes[_category(path, root)] = sizes.get(_category(path, root), 0) + 1
    paths = [path for _, path in sorted(by_content.items()) if sizes[_category(path, root)] >= _FEWEST]
    for number, path in enumerate(paths[:_CLIPARTS]):
        split = "test" if number < _HELD_OUT_CLIPARTS else "train"
        name = "-".join(path.relative_to(root).parts[1:])
        _on_white(path, directory / split / _category(path, root) / name)


PICTURES: dict[str, Callable[..., None]] = {"emoji": emoji, "cliparts": cliparts}


def _category(path: pathlib.Path, root: pathlib.Path) -> str:
    return path.relative_to(root).parts[0]


def _num_pixels(path: pathlib.Path) -> int:
    """Returns the number of pixels of a png file, by its header: Pillow refuses to open one that is very large."""
    with path.open("rb") as file:
        width, height = struct.unpack(">II", file.read(24)[16:])
    return width * height


def _draw(key: str) -> float:
    """Returns a number in [0, 1) that depends on `key` alone."""
    return int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) / 2**32


def _on_white(source: pathlib.Path, target: pathlib.Path) -> None:
    """Writes a picture laid on white, with a shorter side of at most _SHORTER_SIDE pixels."""
    with Image.open(source) as opened:
        picture = opened.convert("RGBA")
    scale = _SHORTER_SIDE / min(picture.size)
    if scale < 1:
        picture = picture.resize(tuple(max(1, round(side * scale)) for side in picture.size), Image.Resampling.BOX)
    laid = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    target.parent.mkdir(parents=True, exist_ok=True)
    laid.convert("RGB").save(target)
