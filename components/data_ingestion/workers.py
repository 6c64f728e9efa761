"""Workers of an ingestion, run by Apache Beam: they inspect files and write shards."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf
from tqdm import tqdm

from components.data_ingestion.beam import start_beam
from components.data_ingestion.tasks import done_file, read_text, write_text
from sela_tf.data.errors import SourceError


class Workers:
    """The workers of an ingestion. At the end of their context, no process of theirs is left.

    Args:
        scratch: A directory that this process and all workers can read and write.
        arguments: Options of Beam; empty for a process on each core of this machine.

    Raises:
        ConfigError: Beam refuses the options.
        WorkerLostError: The process of Beam has ended.
    """

    def __init__(self, scratch: str, arguments: Sequence[str]):
        self._scratch = scratch
        self._count = 0
        self._beam = start_beam(arguments, scratch)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *exception: object) -> None:
        self._beam.end()

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
            WorkerLostError: A worker has ended before its work was done.
        """
        self._count += 1
        place = f"{self._scratch}/{self._count}"
        tf.io.gfile.makedirs(place)
        for number, task in enumerate(tasks):
            write_text(f"{place}/task-{number}.json", json.dumps(task))
        print(f"{what} {total} {'files' if kind == 'inspect' else 'shards'}", flush=True)
        with _progress(place, what, len(tasks)):
            self._beam.run(len(tasks), place, kind)
        results = [json.loads(read_text(done_file(place, number))) for number in range(len(tasks))]
        for result in results:
            if "error" in result:
                raise SourceError(result["error"])
        return [result["result"] for result in results]


@contextlib.contextmanager
def _progress(place: str, what: str, num_tasks: int) -> Iterator[None]:
    """Shows a progress bar during the context, if the standard error is a terminal."""
    finished = threading.Event()

    def watch() -> None:
        with tqdm(total=num_tasks, desc=what, unit="part", file=sys.stderr, disable=None, dynamic_ncols=True, leave=False) as bar:
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
