"""Pictures, nearest images and the points of TensorBoard's projector, which viewers of labelled images show beside the labels."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from sela_tf.commands.label_blocks import Block, LabelledSplit
from sela_tf.compat.activity import Activity
from sela_tf.data.stores import DecodedFiles, Files
from sela_tf.evaluation.knn import Neighbours, neighbours
from sela_tf.reporting.projector import MAX_POINTS, write_projector
from sela_tf.reporting.small_pictures import jpeg_files
from sela_tf.serving.label_writer import Column
from sela_tf.settings.commands import LabelConfig
from sela_tf.settings.fields import ConfigError
from sela_tf.settings.paths import absolute_path, refuse_unwritable
from sela_tf.training.images import tell

_MAX_IMAGES = 50_000
"""The most images whose neighbours are searched, which takes a time that grows with its square, and whose pictures are kept in memory."""


class ForViewers:
    """Pictures and nearest images for the columns of a Parquet file, and a sample of the images for TensorBoard's projector.

    Args:
        settings: the settings of the command.
        splits: the images to label.
        projector: the directory of the projector, which exists; None if there is to be none.
    """

    def __init__(self, settings: LabelConfig, splits: Sequence[LabelledSplit], projector: pathlib.Path | None):
        num_images = sum(len(split.images) for split in splits)
        is_parquet = settings.output.endswith(".parquet")
        if is_parquet and num_images > _MAX_IMAGES and (settings.neighbours or settings.pictures):
            tell(f"{num_images} images: the columns neighbours and picture, for at most {_MAX_IMAGES} images, are left out")
        has_columns = is_parquet and num_images <= _MAX_IMAGES
        are_images = not splits[0].images.is_vectors
        # A single image has no other one beside it, and gets no column.
        self.num_neighbours = min(settings.neighbours, num_images - 1) if has_columns else 0
        self._has_pictures = settings.pictures and has_columns and are_images
        self._neighbours: Neighbours | None = None
        self._directory = projector
        self._points = np.zeros(num_images, bool)
        if self._directory is not None:
            chosen = np.random.default_rng(0).permutation(num_images)[:MAX_POINTS]
            self._points[chosen] = True
        self._is_pictured = np.full(num_images, are_images) & (self._has_pictures | self._points)
        self._pictures = np.full(num_images, None, object)
        self._noted: list[tuple[np.ndarray, dict[str, np.ndarray]]] = []

    def see(self, places: slice, views: tf.Tensor) -> None:
        """Keeps small pictures of the views [B, H, W, C] of the images at `places`."""
        here = np.flatnonzero(self._is_pictured[places])
        if len(here):
            self._pictures[places.start + here] = jpeg_files(tf.gather(views, here))

    def pictures(self, places: slice) -> np.ndarray:
        """Returns the small pictures of the images at `places`, jpeg files as bytes [B]; empty ones where none is kept."""
        # A jpeg does not end with a zero, which such an array would drop.
        return np.array([picture or b"" for picture in self._pictures[places]], np.bytes_)

    def keep(self, places: slice, pictures: np.ndarray) -> None:
        """Keeps what `pictures` of another process returned for `places`."""
        self._pictures[places] = [picture or None for picture in pictures.tolist()]

    def find_neighbours(self, embedding: np.ndarray) -> None:
        """Finds the nearest images of each by the embedding [N, D] of all images."""
        if self.num_neighbours:
            with Activity("finding the nearest images"):
                self._neighbours = neighbours(embedding, k=self.num_neighbours)

    def columns(self, block: Block) -> dict[str, Column]:
        """Returns the columns of a block: `neighbours` with rows of the file, and `picture` as Hugging Face's datasets have it."""
        columns: dict[str, Column] = {}
        if self._neighbours is not None:
            rows, similarity = (values[block.places] for values in self._neighbours)
            columns["neighbours"] = {"ids": rows, "distances": np.maximum(1.0 - similarity, 0.0)}
        if self._has_pictures:
            columns["picture"] = {"bytes": self._pictures[block.places], "path": _paths(block)}
        return columns

    def note(self, block: Block, columns: Mapping[str, np.ndarray]) -> None:
        """Keeps what the projector shows of the images of a block, whose columns are given."""
        here = np.flatnonzero(self._points[block.places])
        if len(here):
            self._noted.append((block.embedding[here], {name: values[here] for name, values in columns.items()}))

    def write_projector(self) -> None:
        """Writes the directory of the projector, if there is to be one."""
        if self._directory is None:
            return
        embedding = np.concatenate([vectors for vectors, _ in self._noted])
        columns = {name: np.concatenate([noted[name] for _, noted in self._noted]) for name in self._noted[0][1]}
        pictures = self._pictures[self._points].tolist()
        with Activity("writing the projector"):
            write_projector(self._directory, embedding, columns, None if pictures[0] is None else pictures)
        count, total = len(embedding), len(self._points)
        sampled = f"{count} images" if count == total else f"{count} of the {total} images, drawn at random,"
        tell(f"{sampled} for TensorBoard's projector: tensorboard --logdir={self._directory}")


def projector_directory(path: str) -> pathlib.Path | None:
    """Returns the directory of the projector, which is made if it is missing; None if there is to be none.

    Raises:
        ConfigError: it cannot be written.
    """
    if not path:
        return None
    if "://" in path:
        raise ConfigError(f"`projector={path}` must be a local directory")
    directory = pathlib.Path(absolute_path(path))
    refuse_unwritable("projector", directory)
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def _paths(block: Block) -> np.ndarray:
    """Returns the paths of the files of a block's images, objects [B]; None for images that are no files."""
    store = block.split.images.store
    store = store.files if isinstance(store, DecodedFiles) else store
    paths = store.paths[block.rows] if isinstance(store, Files) else (None,) * len(block.embedding)
    return np.array(paths, object)
