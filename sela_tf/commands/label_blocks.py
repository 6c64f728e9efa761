"""The outputs of a network for the images to label, block by block, and their storage on disk."""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from sela_tf.data.image_set import ImageSet
from sela_tf.settings.fields import ConfigError


class LabelledSplit(NamedTuple):
    """The images of one split."""

    name: str
    """Name of the split, "train" or "eval"."""
    images: ImageSet
    num_changes: np.ndarray
    """Changes of each image's label during training, float32 [N], summed over heads; NaN where it is not known."""
    offset: int
    """Number of images in the splits before."""


class Block(NamedTuple):
    """The outputs of the network for B consecutive images of a split."""

    split: LabelledSplit
    start: int
    """Index of the first of these images within the split."""
    embedding: np.ndarray
    """Embedding float32 [B, D]."""
    head_inputs: np.ndarray
    """Inputs of the heads, float32 [B, F]."""

    @property
    def rows(self) -> slice:
        """The indices of the images within their split."""
        return slice(self.start, self.start + len(self.embedding))

    @property
    def places(self) -> slice:
        """The indices of the images among those of all splits."""
        return slice(self.split.offset + self.start, self.split.offset + self.start + len(self.embedding))


class StoredOutputs(NamedTuple):
    """The outputs of the network for all images, in files that are mapped into memory."""

    embedding: np.ndarray
    """Embedding float32 [N, D]."""
    head_inputs: np.ndarray
    """Inputs of the heads, float32 [N, F]."""


def store_blocks(blocks: Iterable[Block], directory: pathlib.Path, num_images: int, widths: Sequence[int]) -> StoredOutputs:
    """Writes all blocks into files in `directory`.

    Args:
        blocks: the blocks of all images.
        directory: an empty directory.
        num_images: number of images N.
        widths: (D, F), widths of the embedding and of the inputs of the heads.

    Raises:
        ConfigError: the disk has too little space.
    """
    size, free = 4 * num_images * sum(widths), shutil.disk_usage(directory).free
    print(f"features of {num_images} images are kept on disk meanwhile: {size / 1e6:.1f} MB in {directory.parent}", flush=True)
    if size > free:
        raise ConfigError(f"features of {size / 1e9:.1f} GB do not fit into {directory.parent}, which has {free / 1e9:.1f} GB left")
    files = [
        np.lib.format.open_memmap(directory / name, "w+", np.float32, (num_images, width))
        for name, width in zip(StoredOutputs._fields, widths, strict=True)
    ]
    stored = StoredOutputs(*files)
    for block in blocks:
        stored.embedding[block.places] = block.embedding
        stored.head_inputs[block.places] = block.head_inputs
    return stored


def stored_blocks(stored: StoredOutputs, splits: Sequence[LabelledSplit], batch_size: int) -> Iterator[Block]:
    """Yields from the files the blocks that `store_blocks` was given."""
    for split in splits:
        for start in range(0, len(split.images), batch_size):
            stop = min(start + batch_size, len(split.images))
            places = slice(split.offset + start, split.offset + stop)
            yield Block(split, start, np.array(stored.embedding[places]), np.array(stored.head_inputs[places]))
