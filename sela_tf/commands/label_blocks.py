"""The outputs of a network for the images to label, block by block, and their storage on disk."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from sela_tf.data.image_set import ImageSet
from sela_tf.data.pipeline import inference_batches
from sela_tf.files.scratch import scratch_array
from sela_tf.files.storage import StorageError
from sela_tf.models.build import cut_at
from sela_tf.models.heads import find_multi_head
from sela_tf.models.layer_names import EMBEDDING


class LabelledSplit(NamedTuple):
    """The images of one split."""

    name: str
    """Name of the split, "train" or "eval"."""
    images: ImageSet
    num_changes: np.ndarray
    """Changes of each image's label during training, float32 [N], summed over heads; NaN where it is not known."""
    offset: int
    """Number of images in the splits before."""
    said: Mapping[int, str]
    """Names of the images that were named one by one, by their index in the split."""


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


def classes_of(splits: Sequence[LabelledSplit]) -> np.ndarray | None:
    """Returns the classes [N] of the images of all splits; None where one has none, or numbers them otherwise."""
    known = [split.images.classes for split in splits if split.images.classes is not None]
    if len(known) < len(splits) or len({split.images.class_names for split in splits}) > 1:
        return None
    return np.concatenate(known)


def take_places(splits: Sequence[LabelledSplit], places: np.ndarray) -> list[LabelledSplit]:
    """Returns the splits with some images only, at increasing `places` among those of all splits, and without names of single images."""
    taken: list[LabelledSplit] = []
    offset = 0
    for split in splits:
        rows = places[(places >= split.offset) & (places < split.offset + len(split.images))] - split.offset
        taken.append(LabelledSplit(split.name, split.images.take(rows), split.num_changes[rows], offset, {}))
        offset += len(rows)
    return taken


class StoredOutputs(NamedTuple):
    """The outputs of the network for all images, in files that are mapped into memory."""

    embedding: np.ndarray
    """Embedding float32 [N, D]."""
    head_inputs: np.ndarray
    """Inputs of the heads, float32 [N, F]."""


def read_blocks(
    model: keras.Model,
    splits: Sequence[LabelledSplit],
    *,
    batch_size: int,
    views_seen: Callable[[slice, tf.Tensor], None] | None = None,
    share: tuple[int, int] = (0, 1),
) -> Iterator[Block]:
    """Yields the outputs of the network, a batch at a time, with a progress bar.

    Args:
        model: the network.
        splits: the images.
        batch_size: images at a time.
        views_seen: is called with the places of the images of a block among those of all splits, and with their clean views, float32
            [B, H, W, C], before the block is yielded; None for nobody.
        share: number of this worker and of all workers, each of which has every so many-th batch of a split.
    """
    cut = cut_at(model, EMBEDDING, find_multi_head(model).input)
    forward = tf.function(lambda images: cut(images, training=False), reduce_retracing=True)
    total = sum(len(split.images) for split in splits) // share[1]
    with tqdm(total=total, unit="image", disable=None, dynamic_ncols=True, leave=False) as bar:
        for split in splits:
            size = tuple(model.input.shape[1:-1])
            for images, indices in inference_batches(split.images, size=size, batch_size=batch_size, in_order=True, share=share):
                embedding, head_inputs = (tf.cast(values, tf.float32).numpy() for values in forward(images))
                block = Block(split, int(indices[0]), embedding, head_inputs)
                if views_seen is not None:
                    views_seen(block.places, images)
                yield block
                bar.update(len(embedding))


def store_blocks(blocks: Iterable[Block], directory: pathlib.Path, num_images: int, widths: Sequence[int]) -> StoredOutputs:
    """Writes all blocks to disk.

    Args:
        blocks: the blocks of all images.
        directory: the directory whose disk they lie on, in files without names.
        num_images: number of images N.
        widths: (D, F), widths of the embedding and of the inputs of the heads.

    Raises:
        StorageError: the disk has too little space.
    """
    size = 4 * num_images * sum(widths)
    print(f"features of {num_images} images are kept on disk meanwhile: {size / 1e6:.1f} MB in {directory}", flush=True)
    try:
        files = [scratch_array(directory, (num_images, width)) for width in widths]
    except StorageError as error:
        raise StorageError(
            f"features of {size / 1e6:.1f} MB do not fit into {directory} ({error.strerror}): nothing was written; make room there, or name an "
            "`output` on another disk, and repeat the command"
        ) from error
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
