"""Tasks of an ingestion: a worker inspects files, or writes a shard. Tasks and results are JSON files, which all processes can read."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf

from components.data_ingestion.shard_sources import SHARD_SOURCES
from sela_tf.data.converting import inspect_or_convert
from sela_tf.data.left_out import ImageNote
from sela_tf.data.listing import FileInfo
from sela_tf.data.record_writer import Shard, write_shard
from sela_tf.files.remote import whole_remote_file
from sela_tf.files.storage import storage_errno

STOP = threading.Event()
"""Set where tasks run in the process of the command, and a signal ends it."""


def run_task(number: int, place: str, kind: str) -> None:
    """Runs one task, and writes its result or its error to a file. A task that runs twice has the same result.

    Args:
        number: The number of the task.
        place: The directory of tasks and results.
        kind: "inspect" or "write".

    Raises:
        OSError: The disk is full, or cannot be written for another reason.
        tf.errors.OpError: The same, by TensorFlow.
    """
    task = json.loads(read_text(f"{place}/task-{number}.json"))
    try:
        result: dict[str, Any] = {"result": _inspected(*task) if kind == "inspect" else _written(*task)}
    except (ValueError, OSError, tf.errors.OpError) as error:
        if storage_errno(error) is not None:
            raise
        result = {"error": " ".join(str(getattr(error, "message", error)).split())}
    # Beam may run the same task twice at once.
    mine = f"{place}/.done-{number}-{time.monotonic_ns()}.json"
    with whole_remote_file(done_file(place, number), unfinished=mine) as unfinished:
        write_text(unfinished, json.dumps(result))


def done_file(place: str, number: int) -> str:
    """Returns the path of the result of a task."""
    return f"{place}/done-{number}.json"


def _inspected(root: str, *names: str) -> list[tuple[FileInfo, str]]:
    """Inspects files of a folder; returns the result for each, and the reason for its conversion."""
    found = (inspect_or_convert(root, name) for name in _until_stopped(names))
    return [(each.file, each.reason) for each in found]


def _written(directory: str, file: str, kind: str, values: Sequence[Any]) -> tuple[Shard, list[ImageNote]]:
    """Writes the shard of one source, and returns it with the images that are left out."""
    rejected = []

    def good() -> Iterator[Any]:
        for record in _until_stopped(SHARD_SOURCES[kind](*values).records()):
            if isinstance(record, ImageNote):
                rejected.append(record)
            else:
                yield record

    return write_shard(directory, file, good()), rejected


def _until_stopped(items: Any) -> Iterator[Any]:
    for item in items:
        if STOP.is_set():
            raise InterruptedError("stopped by a signal")
        yield item


def read_text(path: str) -> str:
    """Reads a file on any file system that TensorFlow knows."""
    with tf.io.gfile.GFile(path, "r") as file:
        return file.read()


def write_text(path: str, text: str) -> None:
    """Writes a file on any file system that TensorFlow knows."""
    with tf.io.gfile.GFile(path, "w") as file:
        file.write(text)
