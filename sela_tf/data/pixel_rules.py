"""The rules by which the files of a run become pixels: the same in training, labelling, probing and serving."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

BACKGROUNDS = {"white": (255, 255, 255), "black": (0, 0, 0)}
"""Colours that transparent parts are laid on, by the names of the setting `background`."""
FULL_DEPTH = 65535
"""The largest value that 16 bits can hold."""


class PixelRules(NamedTuple):
    """The rules by which image files become uint8 pixels. They are made once for a run, and kept with its network."""

    background: tuple[int, int, int] | None = BACKGROUNDS["white"]
    """The colour under transparent parts, RGB in [0, 255]; None for the rules of older runs, see `OLD_RULES`."""
    largest: int = FULL_DEPTH
    """The value of 16-bit files that becomes 255; larger ones saturate. 8-bit files are not scaled."""
    shorter_side: int = 0
    """The bound on the shorter side in pixels; larger images are reduced to it, by the mean over areas. 0 for none."""

    @property
    def are_old(self) -> bool:
        """True for the rules of runs that are older than these rules."""
        return self.background is None


DEFAULT_RULES = PixelRules()
"""The rules of images without 16-bit files, on white."""
OLD_RULES = PixelRules(background=None)
"""The rules of runs whose network.json has none: transparency is dropped, no image is turned, and of 16 bits the upper eight are kept."""


def reduced_sizes(sizes: np.ndarray, shorter_side: int) -> np.ndarray:
    """Returns the sizes of images whose shorter side is brought down to a bound.

    Args:
        sizes: (height, width) of images, integers `[N, 2]`.
        shorter_side: The bound in pixels; 0 for none.

    Returns:
        int64 `[N, 2]`.
    """
    shorter = sizes.min(axis=1, keepdims=True)
    reduced = np.rint(sizes.astype(np.float64) * shorter_side / np.maximum(shorter, 1)).astype(np.int64)
    return np.where((shorter > shorter_side) & (shorter_side > 0), reduced, sizes)
