"""Tasks and their results: JSON files, which the processes of all workers can read and write."""

from __future__ import annotations

import importlib
import json
import threading
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import tensorflow as tf

from sela_tf.files.remote import whole_remote_file
from sela_tf.files.storage import storage_errno

STOP = threading.Event()
"""Set where tasks run in the process of the command, and a signal ends it."""
Item = TypeVar("Item")


def run_task(number: int, place: str, function: str) -> None:
    """Runs one task, and writes its result or its error to a file. A task that runs twice has the same result.

    Args:
        number: The number of the task.
        place: The directory of tasks and results.
        function: MODULE:NAME of the function, which is called with the task's arguments; JSON can hold what it returns.

    Raises:
        OSError: The disk is full, or cannot be written for another reason.
        tf.errors.OpError: The same, by TensorFlow.
    """
    module, _, name = function.partition(":")
    task = json.loads(read_text(f"{place}/task-{number}.json"))
    try:
        result = {"result": getattr(importlib.import_module(module), name)(*task)}
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


def until_stopped(items: Iterable[Item]) -> Iterator[Item]:
    """Yields items until a signal ends the process of the command.

    Raises:
        InterruptedError: A signal ends it.
    """
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
