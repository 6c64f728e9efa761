"""The checks of the manifest and the index of records: their digests tell damage, and these what was made up."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from sela_tf.data.classes import MOST_CLASSES

PLACE = ("shard", "record", "offset", "size", "crc32", "content_crc32")
"""Columns of the index that say where a record is."""


def check_manifest(manifest: Mapping[str, Any]) -> None:
    """Checks the types of what is read of a manifest.

    Raises:
        ValueError: A value is missing, or is of another kind; the message names it.
    """
    splits, names = manifest.get("splits"), manifest.get("class_names")
    _require("splits", isinstance(splits, dict) and "train" in splits and set(splits) <= {"train", "eval"})
    _require("channels", manifest.get("channels") in (1, 3))
    _require("index_sha256", isinstance(manifest.get("index_sha256"), str))
    _require("class_names", names is None or (isinstance(names, list) and all(isinstance(name, str) for name in names)))
    for split in manifest["splits"].values():
        _require("splits", isinstance(split, dict) and isinstance(split.get("shards"), list))
        size = split.get("image_size")
        _require(
            "image_size",
            size is None or (isinstance(size, list) and len(size) == 2 and all(map(_is_count, size)) and 0 not in size),
        )
        for shard in split["shards"]:
            _require(
                "shards",
                isinstance(shard, dict) and all(_is_count(shard.get(name)) for name in ("num_examples", "size", "ends_crc32")),
            )
            _require("sha256", isinstance(shard.get("sha256"), str))
            path = pathlib.PurePosixPath(str(shard.get("file")))
            _require("file", isinstance(shard.get("file"), str) and not path.is_absolute() and ".." not in path.parts)
        counted = sum(shard["num_examples"] for shard in split["shards"])
        _require("num_examples", _is_count(split.get("num_examples")) and split["num_examples"] == counted)


def check_index(index: pa.Table, manifest: Mapping[str, Any]) -> None:
    """Checks the columns of an index that are read.

    Raises:
        ValueError: A column is missing or of another type, or has values that the manifest has no place for.
    """
    for name in ("split", "name", "class", *PLACE):
        is_right = pa.types.is_string if name in ("split", "name") else pa.types.is_integer
        _require(name, name in index.column_names and is_right(index[name].type) and not index[name].null_count)
    if "largest" in index.column_names:
        _require("largest", pa.types.is_integer(index["largest"].type) and not index["largest"].null_count)
    names = manifest["class_names"]
    most = MOST_CLASSES if names is None else len(names)
    _require("class", not len(index) or pa.compute.max(index["class"]).as_py() < most)


def check_places(columns: Mapping[str, np.ndarray], shards: Sequence[Mapping[str, Any]]) -> None:
    """Checks that records lie within their shards.

    Args:
        columns: The columns `PLACE` of the index, integers `[N]` each.
        shards: The shards of the split, as the manifest describes them.

    Raises:
        ValueError: A record lies outside.
    """
    if not len(columns["shard"]):
        return
    _require("shard", columns["shard"].min() >= 0 and columns["shard"].max() < len(shards))
    ends = np.array([shard["size"] for shard in shards], np.int64)[columns["shard"]]
    offset, size = columns["offset"].astype(np.int64), columns["size"].astype(np.int64)
    _require("size", bool(((offset >= 0) & (size >= 0) & (size <= ends) & (offset <= ends - size)).all()))


def _require(name: str, is_right: bool) -> None:
    if not is_right:
        raise ValueError(f"{name!r} is missing, or has a value that is none")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62
