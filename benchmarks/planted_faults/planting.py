"""Sets of images with planted faults: images of another class, near-duplicates and foreign images."""

from __future__ import annotations

import functools
import io
import pathlib
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage
from sklearn.datasets import load_digits, load_sample_images

from benchmarks.own_images.sets import set_settings

NUM_FAULTS = {"class": 17, "duplicate": 17, "foreign": 16}
"""Planted faults of each kind."""
_CLIPART_SIDE = 64
_DIGITS_HELD_OUT = 0.3
_FASHION_HELD_OUT = 2000


class Images(NamedTuple):
    """Images of one size with classes, some of them held out."""

    pixels: np.ndarray
    """uint8 [n, h, w, c]."""
    classes: np.ndarray
    """int64 [n], from 0."""
    held_out: np.ndarray
    """bool [n]."""


class Fault(NamedTuple):
    """A planted fault."""

    kind: str
    """A key of NUM_FAULTS."""
    how: str
    """The way it was planted: a change of `COPIES`, the source of a foreign image, or the two classes."""
    image: int
    """The image at fault."""
    of: int = -1
    """The original of a duplicate; -1 of others."""


class Planted(NamedTuple):
    """A set of images and the faults that were planted in it."""

    images: Images
    faults: list[Fault]


def plant(name: str, draw: int, sets_dir: pathlib.Path) -> Planted:
    """Returns a set of SETS with NUM_FAULTS planted; each draw chooses other images.

    The images keep their split, a duplicate goes to either split, a foreign image into any class; then all change places.
    """
    clean = SETS[name](sets_dir)
    rng = np.random.default_rng([sum(name.encode()), draw])
    count, num_classes = len(clean.classes), int(clean.classes.max()) + 1
    chosen = rng.choice(count, NUM_FAULTS["class"] + NUM_FAULTS["duplicate"], replace=False)
    classes, faults = clean.classes.copy(), []
    for image in chosen[: NUM_FAULTS["class"]]:
        right, wrong = int(classes[image]), int(rng.integers(num_classes - 1))
        classes[image] = wrong + (wrong >= right)
        faults.append(Fault("class", f"{right} to {classes[image]}", int(image)))
    added, added_classes, ways = [], [], list(COPIES)
    for number, image in enumerate(chosen[NUM_FAULTS["class"] :]):
        how = ways[number % len(ways)]
        faults.append(Fault("duplicate", how, count + len(added), int(image)))
        added.append(COPIES[how](clean.pixels[image], rng))
        added_classes.append(classes[image])
    for number in range(NUM_FAULTS["foreign"]):
        how = _FOREIGN[name][number % len(_FOREIGN[name])]
        faults.append(Fault("foreign", how, count + len(added)))
        added.append(_fitted(_SOURCES[how](rng, sets_dir), clean.pixels.shape[1:]))
        added_classes.append(int(rng.integers(num_classes)))
    # Half of what is added is held out, whatever the share of the set, so that some duplicates lie across the splits.
    images = Images(
        np.concatenate([clean.pixels, np.stack(added)]),
        np.concatenate([classes, added_classes]),
        np.concatenate([clean.held_out, rng.random(len(added)) < 0.5]),
    )
    order = rng.permutation(len(images.classes))
    places = np.argsort(order)
    moved = [fault._replace(image=int(places[fault.image]), of=int(places[fault.of]) if fault.of >= 0 else -1) for fault in faults]
    return Planted(Images(*(part[order] for part in images)), moved)


def _arrays(name: str, sets_dir: pathlib.Path, num_held_out: int | None = None) -> Images:
    """Returns a set that `own_images` keeps as arrays, with the first of its held-out images."""
    with np.load(pathlib.Path(set_settings(name, sets_dir)["dataset"].partition(":")[2])) as file:
        train, classes = file["images"], file["classes"]
        held_out, held_out_classes = file["eval_images"][:num_held_out], file["eval_classes"][:num_held_out]
    pixels, all_classes = np.concatenate([train, held_out]), np.concatenate([classes, held_out_classes])
    return Images(pixels, all_classes, np.arange(len(pixels)) >= len(train))


def _folder(name: str, sets_dir: pathlib.Path, without: str = "") -> Images:
    """Returns the set of a folder, each image whole on a white square of 64 pixels.

    Args:
        name: a key of `own_images.sets.SETS`.
        sets_dir: the directory that sets are kept in.
        without: a regular expression; files whose names have it are left out.
    """
    root = pathlib.Path(set_settings(name, sets_dir)["dataset"].partition(":")[2])
    paths = sorted(path for path in root.glob("*/*/*") if not (without and re.search(without, path.name)))
    names = sorted({path.parent.name for path in paths})
    pixels = np.stack([_on_square(Image.open(path)) for path in paths])
    classes = np.array([names.index(path.parent.name) for path in paths])
    return Images(pixels, classes, np.array([path.parent.parent.name == "test" for path in paths]))


def _on_square(image: Image.Image) -> np.ndarray:
    image = image.convert("RGB")
    image.thumbnail((_CLIPART_SIDE, _CLIPART_SIDE), Image.Resampling.LANCZOS)
    square = Image.new("RGB", (_CLIPART_SIDE, _CLIPART_SIDE), "white")
    square.paste(image, ((_CLIPART_SIDE - image.width) // 2, (_CLIPART_SIDE - image.height) // 2))
    return np.asarray(square)


def _digits(sets_dir: pathlib.Path) -> Images:
    found = load_digits()
    pixels = np.round(found.images * (255 / 16)).astype(np.uint8)[..., np.newaxis]
    return Images(pixels, found.target.astype(np.int64), np.random.default_rng(0).random(len(pixels)) < _DIGITS_HELD_OUT)


SETS: dict[str, Callable[[pathlib.Path], Images]] = {
    "fashion": lambda sets_dir: _arrays("fashion-10000", sets_dir, _FASHION_HELD_OUT),
    "glyphs": lambda sets_dir: _arrays("glyphs-2000", sets_dir),
    "emoji": lambda sets_dir: _folder("emoji", sets_dir, without="1f3f[b-f]"),
    "cliparts": lambda sets_dir: _folder("cliparts", sets_dir),
    "digits": _digits,
    "mnist": lambda sets_dir: _arrays("mnist", sets_dir),
}
"""The sets: 12,000 gray clothes and 10,000 digits of MNIST (28 x 28), 4,914 gray letters (32 x 32), 1,906 emoji and 5,200
cliparts in colour (64 x 64), and 1,797 gray digits (8 x 8). Of an emoji with several skin tones there is one, as the others are near-duplicates."""


def _compressed(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns an image as a JPEG file of quality 60 keeps it."""
    file = io.BytesIO()
    picture = _picture(pixels)
    picture.save(file, "jpeg", quality=60)
    return _array(Image.open(file), pixels.shape[-1])


def _resized(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns an image that was reduced to 60 % of its sides, at the size that it had."""
    height, width = pixels.shape[:2]
    small = _picture(pixels).resize((round(0.6 * width), round(0.6 * height)), Image.Resampling.BILINEAR)
    return _array(small.resize((width, height), Image.Resampling.BICUBIC), pixels.shape[-1])


def _cropped(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns an image without up to a twelfth of its sides (at least a pixel), at the size that it had."""
    height, width = pixels.shape[:2]
    most = max(1, round(min(height, width) / 12))
    top, left = (int(each) for each in rng.integers(0, most + 1, 2))
    side = (left, top, width - (most - left), height - (most - top))
    return _array(_picture(pixels).crop(side).resize((width, height), Image.Resampling.BICUBIC), pixels.shape[-1])


def _shifted(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns an image moved by a pixel, its edge repeated."""
    down, right = [(0, 1), (1, 0), (1, 1), (0, -1), (-1, 0), (-1, -1)][rng.integers(6)]
    padded = np.pad(pixels, ((1, 1), (1, 1), (0, 0)), mode="edge")
    height, width = pixels.shape[:2]
    return padded[1 - down : 1 - down + height, 1 - right : 1 - right + width]


def _brightened(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns an image with 85 % of its contrast, 30 levels brighter."""
    return np.clip(np.round(0.85 * pixels + 30.0), 0, 255).astype(np.uint8)


def _same(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns the image itself."""
    return pixels.copy()


COPIES: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "compressed": _compressed,
    "resized": _resized,
    "cropped": _cropped,
    "shifted": _shifted,
    "brightened": _brightened,
    "same": _same,
}
"""Changes of a copy, taken in turn."""


@functools.cache
def _pixels_of(name: str, sets_dir: pathlib.Path) -> np.ndarray:
    return SETS[name](sets_dir).pixels


def _one_of(name: str) -> Callable[[np.random.Generator, pathlib.Path], np.ndarray]:
    def draw(rng: np.random.Generator, sets_dir: pathlib.Path) -> np.ndarray:
        pixels = _pixels_of(name, sets_dir)
        return pixels[rng.integers(len(pixels))]

    return draw


def _emoji(rng: np.random.Generator, sets_dir: pathlib.Path) -> np.ndarray:
    """Returns an emoji of any skin tone."""
    pixels = _all_emoji(sets_dir)
    return pixels[rng.integers(len(pixels))]


@functools.cache
def _all_emoji(sets_dir: pathlib.Path) -> np.ndarray:
    return _folder("emoji", sets_dir).pixels


def _photograph(rng: np.random.Generator, sets_dir: pathlib.Path) -> np.ndarray:
    """Returns a part of 96 x 96 pixels of a photograph."""
    photographs = load_sample_images().images
    photograph = photographs[rng.integers(len(photographs))]
    top, left = (int(rng.integers(side - 96)) for side in photograph.shape[:2])
    return photograph[top : top + 96, left : left + 96]


def _noise(rng: np.random.Generator, sets_dir: pathlib.Path) -> np.ndarray:
    """Returns colour noise, coarse or fine."""
    noise = ndimage.gaussian_filter(rng.normal(size=(64, 64, 3)), (*[rng.choice([0.0, 1.0, 3.0])] * 2, 0))
    return np.clip(128 + 60 * noise / noise.std(), 0, 255).astype(np.uint8)


_SOURCES: dict[str, Callable[[np.random.Generator, pathlib.Path], np.ndarray]] = {
    "fashion": _one_of("fashion"),
    "glyphs": _one_of("glyphs"),
    "emoji": _emoji,
    "photograph": _photograph,
    "noise": _noise,
}
_FOREIGN = {
    "fashion": ("emoji", "glyphs", "photograph", "noise"),
    "glyphs": ("emoji", "fashion", "photograph", "noise"),
    "emoji": ("fashion", "glyphs", "photograph", "noise"),
    "cliparts": ("fashion", "glyphs", "photograph", "noise"),
    "digits": ("emoji", "fashion", "photograph", "noise"),
    "mnist": ("emoji", "fashion", "photograph", "noise"),
}


def _fitted(pixels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Returns an image in the size and the channels of a set."""
    height, width, channels = shape
    return _array(_picture(pixels).resize((width, height), Image.Resampling.LANCZOS), channels)


def _picture(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def _array(picture: Image.Image, channels: int) -> np.ndarray:
    pixels = np.asarray(picture.convert("L" if channels == 1 else "RGB"))
    return pixels.reshape(*pixels.shape[:2], channels)
