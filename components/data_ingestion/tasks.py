"""Tasks of an ingestion: a worker inspects files, or writes a shard."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from components.data_ingestion.shard_sources import SHARD_SOURCES
from sela_tf.data.converting import inspect_or_convert
from sela_tf.data.left_out import ImageNote
from sela_tf.data.listing import FileInfo
from sela_tf.data.record_writer import Shard, write_shard
from sela_tf.tasks.task_files import until_stopped

INSPECT, WRITE = f"{__name__}:inspect", f"{__name__}:write"
"""The functions below, as workers find them."""


def inspect(root: str, *names: str) -> list[tuple[FileInfo, str]]:
    """Inspects files of a folder; returns the result for each, and the reason for its conversion."""
    found = (inspect_or_convert(root, name) for name in until_stopped(names))
    return [(each.file, each.reason) for each in found]


def write(directory: str, file: str, kind: str, values: Sequence[Any]) -> tuple[Shard, list[ImageNote]]:
    """Writes the shard of one source, and returns it with the images that are left out."""
    rejected = []

    def good() -> Iterator[Any]:
        for record in until_stopped(SHARD_SOURCES[kind](*values).records()):
            if isinstance(record, ImageNote):
                rejected.append(record)
            else:
                yield record

    return write_shard(directory, file, good()), rejected
