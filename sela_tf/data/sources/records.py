"""The source of records: images in TFRecord shards with an index, see `sela_tf.data.records`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from sela_tf.data.image_set import ImageSet, SourceName, Splits
from sela_tf.data.records import read_index, read_manifest, records_of
from sela_tf.data.rules_of_images import decoded_bytes


def load_records(directory: str, *, source: SourceName, memory_limit: int) -> Splits:
    """Loads the records of a directory.

    If all images have one size and fit into memory, `with_rules` decodes them at once; otherwise they are read when they are needed. Shards
    are checked for their length here, and every record for damage whenever it is read.

    Args:
        directory: A directory with a manifest, as components.data_ingestion writes it.
        source: The name of the source.
        memory_limit: Bytes that decoded images may take in memory.

    Raises:
        SourceError: A file is missing, cut or damaged. The message names it, with counts.
    """
    manifest = read_manifest(directory, name=str(source))
    index = read_index(directory, manifest, str(source))
    sets = {split: _image_set(directory, split, manifest, index, source) for split in manifest["splits"]}
    train, held_out = sets["train"], sets.get("eval")
    kind = "in memory" if train.image_size and decoded_bytes(train, held_out) <= memory_limit else "read as they are needed"
    report = f"{len(train)} images for training and {len(held_out or ())} for evaluation in {directory!r}, {kind}"
    return Splits(train, held_out, (report,))


def _image_set(directory: str, split: str, manifest: Mapping[str, Any], index: pa.Table, source: SourceName) -> ImageSet:
    """Makes the set of one split from its rows of the index."""
    described = manifest["splits"][split]
    rows = index.filter(pa.compute.equal(index["split"], split))
    classes = rows["class"].to_numpy().astype(np.int64)
    class_names = manifest["class_names"]
    return ImageSet(
        name=source.name,
        setting=source.setting,
        channels=manifest["channels"],
        store=records_of(directory, split, manifest, rows, name=str(source)),
        names=tuple(rows["name"].to_pylist()),
        classes=classes if len(classes) and classes.min() >= 0 else None,
        class_names=tuple(class_names) if class_names else None,
        image_size=tuple(described["image_size"]) if described["image_size"] else None,
    )
