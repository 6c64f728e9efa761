"""Workers of an ingestion, run by Apache Beam: they inspect files and write shards.

Tasks and results are JSON files in a directory that this process and all workers can read.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

import tensorflow as tf
from tqdm import tqdm

from components.data_ingestion.shard_sources import SHARD_SOURCES
from sela_tf.compat.quiet import stderr_kept_back
from sela_tf.data.converting import inspect_or_convert
from sela_tf.data.errors import SourceError
from sela_tf.data.left_out import ImageNote
from sela_tf.data.listing import FileInfo
from sela_tf.data.record_writer import Shard, write_shard
from sela_tf.files.remote import whole_remote_file
from sela_tf.settings.fields import ConfigError

_HERE = ("--runner=FnApiRunner", "--direct_running_mode=multi_processing", "--direct_num_workers=0")
"""Beam's default options here: a process on each core. Beam's DirectRunner would try to download a binary of another runner first."""


class Workers:
    """The workers of an ingestion.

    Args:
        scratch: A directory that this process and all workers can read and write.
        arguments: Options of Beam; empty for a process on each core of this machine.

    Raises:
        ConfigError: Beam refuses the options.
    """

    def __init__(self, scratch: str, arguments: Sequence[str]):
        self._scratch, self._arguments = scratch, list(arguments)
        self._count = 0
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                self._pipeline()
        except (SystemExit, ValueError) as error:  # Beam parses options as a command does, and exits.
            why = said.getvalue().strip().rpartition("error: ")[2] or str(error)
            raise ConfigError(f"`beam_pipeline_args={','.join(arguments)}`: {why}") from error

    def _pipeline(self) -> Any:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions

        options = PipelineOptions(self._arguments or list(_HERE))
        options.get_all_options()
        return beam.Pipeline(options=options)

    def run(self, kind: str, tasks: Sequence[Any], what: str, total: int) -> list[Any]:
        """Runs tasks on the workers.

        Args:
            kind: "inspect" or "write".
            tasks: Arguments of each task, as JSON can hold them.
            what: The work, for the user.
            total: The number of images or shards, for the user.

        Returns:
            The result of each task, in order, as JSON gives it back.

        Raises:
            SourceError: A task failed.
        """
        self._count += 1
        place = f"{self._scratch}/{self._count}"
        tf.io.gfile.makedirs(place)
        for number, task in enumerate(tasks):
            write_text(f"{place}/task-{number}.json", json.dumps(task))
        print(f"{what} {total} {'files' if kind == 'inspect' else 'shards'}", flush=True)
        with contextlib.ExitStack() as stack:
            # On this machine, TensorFlow and Beam write lines of their own for each worker.
            shown = sys.stderr if self._arguments else stack.enter_context(stderr_kept_back())
            import apache_beam as beam

            stack.enter_context(_progress(place, what, len(tasks), shown))
            with self._pipeline() as pipeline:
                _ = pipeline | beam.Create(range(len(tasks))) | beam.Reshuffle() | beam.Map(_work, place, kind)
        results = [json.loads(_read(f"{place}/done-{number}.json")) for number in range(len(tasks))]
        for result in results:
            if "error" in result:
                raise SourceError(result["error"])
        return [result["result"] for result in results]


def _work(number: int, place: str, kind: str) -> None:
    """Runs one task in a worker, and writes its result or its error to a file. A task that runs twice has the same result."""
    task = json.loads(_read(f"{place}/task-{number}.json"))
    try:
        result: dict[str, Any] = {"result": _inspected(*task) if kind == "inspect" else _written(*task)}
    except (ValueError, OSError, tf.errors.OpError) as error:
        result = {"error": " ".join(str(getattr(error, "message", error)).split())}
    # Beam may run the same task twice at once.
    mine = f"{place}/.done-{number}-{time.monotonic_ns()}.json"
    with whole_remote_file(f"{place}/done-{number}.json", unfinished=mine) as unfinished:
        write_text(unfinished, json.dumps(result))


def _inspected(root: str, *names: str) -> list[tuple[FileInfo, str]]:
    """Inspects files of a folder; returns the result for each, and the reason for its conversion."""
    found = (inspect_or_convert(root, name) for name in names)
    return [(each.file, each.reason) for each in found]


def _written(directory: str, file: str, kind: str, values: Sequence[Any]) -> tuple[Shard, list[ImageNote]]:
    """Writes the shard of one source, and returns it with the images that are left out."""
    rejected = []

    def good() -> Iterator[Any]:
        for record in SHARD_SOURCES[kind](*values).records():
            if isinstance(record, ImageNote):
                rejected.append(record)
            else:
                yield record

    return write_shard(directory, file, good()), rejected


@contextlib.contextmanager
def _progress(place: str, what: str, num_tasks: int, shown: TextIO) -> Iterator[None]:
    """Shows a progress bar during the context, if `shown` is a terminal."""
    finished = threading.Event()

    def watch() -> None:
        with tqdm(total=num_tasks, desc=what, unit="part", file=shown, disable=None, dynamic_ncols=True, leave=False) as bar:
            while not finished.wait(0.5) and not bar.disable:
                bar.n = sum(name.startswith("done-") for name in tf.io.gfile.listdir(place))
                bar.refresh()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()


def _read(path: str) -> str:
    """Reads a file on any file system that TensorFlow knows."""
    with tf.io.gfile.GFile(path, "r") as file:
        return file.read()


def write_text(path: str, text: str) -> None:
    """Writes a file on any file system that TensorFlow knows."""
    with tf.io.gfile.GFile(path, "w") as file:
        file.write(text)
