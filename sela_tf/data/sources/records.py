"""Images that were ingested to TFRecord shards with an index, see `sela_tf.data.records`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import tensorflow as tf

from sela_tf.data.decoding import decode_image
from sela_tf.data.image_set import ImageSet, Splits
from sela_tf.data.records import read_index, read_manifest, records_of
from sela_tf.data.stores import Arrays

_AT_ONCE, _PARALLEL = 500, 16


def load_records(directory: str, *, name: str, memory_limit: int) -> Splits:
    """Loads what was ingested into `directory`. Images of one size that fit into memory are decoded at once, others are read as they are needed.

    Shards are there, and are as long as they were when they were written; that each record is unharmed is checked whenever it is read.

    Args:
        directory: with a manifest.
        name: of the source, for messages.
        memory_limit: bytes that decoded images may take in memory.

    Raises:
        SourceError: something is missing, cut or damaged, which is named with counts.
    """
    manifest = read_manifest(directory, name=name)
    index = read_index(directory, manifest, name)
    sets = {split: _image_set(directory, split, manifest, index, name) for split in manifest["splits"]}
    decoded = sum(len(images) * int(np.prod(images.image_size)) * images.channels for images in sets.values() if images.image_size)
    if decoded <= memory_limit:
        sets = {split: _decoded(images) if images.image_size else images for split, images in sets.items()}
    train, held_out = sets["train"], sets.get("eval")
    kind = "in memory" if train.images is not None else "read as they are needed"
    report = f"{len(train)} images for training and {len(held_out or ())} for evaluation in {directory!r}, {kind}"
    return Splits(train, held_out, (report,))


def _image_set(directory: str, split: str, manifest: Mapping[str, Any], index: pa.Table, name: str) -> ImageSet:
    described = manifest["splits"][split]
    rows = index.filter(pa.compute.equal(index["split"], split))
    classes = rows["class"].to_numpy().astype(np.int64)
    class_names = manifest["class_names"]
    return ImageSet(
        name=name,
        channels=manifest["channels"],
        store=records_of(directory, split, manifest, rows, name=name),
        names=tuple(rows["name"].to_pylist()),
        classes=classes if len(classes) and classes.min() >= 0 else None,
        class_names=tuple(class_names) if class_names else None,
        image_size=tuple(described["image_size"]) if described["image_size"] else None,
    )


def _decoded(images: ImageSet) -> ImageSet:
    """The same, in memory."""
    height, width = images.image_size or (0, 0)
    pixels = np.empty((len(images), height, width, images.channels), np.uint8)
    signature = tf.TensorSpec([height, width, images.channels], tf.uint8)

    @tf.function(reduce_retracing=True)
    def decode(encoded: tf.Tensor) -> tf.Tensor:
        def one(data: tf.Tensor) -> tf.Tensor:
            return decode_image(data, images.channels)

        return tf.map_fn(one, encoded, fn_output_signature=signature, parallel_iterations=_PARALLEL)

    for start in range(0, len(images), _AT_ONCE):
        # read outside of a graph, in which a damaged record would be told in TensorFlow's words
        some = tf.range(start, min(start + _AT_ONCE, len(images)), dtype=tf.int64)
        pixels[start : start + len(some)] = decode(images.encoded(some)).numpy()
    return dataclasses.replace(images, store=Arrays(pixels))
