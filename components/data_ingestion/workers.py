"""Workers of an ingestion, which inspect files and write shards: threads of this process, or whatever Apache Beam runs."""

from __future__ import annotations

import concurrent.futures
import contextlib
import importlib.util
import json
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import tensorflow as tf
from tqdm import tqdm

from components.data_ingestion.beam import start_beam
from components.data_ingestion.tasks import STOP, done_file, read_text, run_task, write_text
from components.settings import missing_package
from sela_tf.data.errors import SourceError


class Runner(Protocol):
    """The runner of the tasks of an ingestion."""

    place: str
    """The place of the workers, in words for the user."""

    def run(self, num_tasks: int, place: str, kind: str) -> None:
        """Runs the tasks in the directory `place` (see `tasks.run_task`).

        Raises:
            WorkerLostError: A worker has ended before its work was done.
            OSError: The disk is full, or cannot be written for another reason.
            RuntimeError: Beam has failed.
        """

    def end(self) -> None:
        """Ends all processes of the runner."""


class Threads:
    """The runner in this process: a thread for each of its processors. Decoding, digests and files let the others run meanwhile.

    Two processes of Beam start for longer than they save at any size of a set, where there are two processors (docs/components.md).
    """

    def __init__(self) -> None:
        self._count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.place = f"here, on {self._count} thread{'s' if self._count > 1 else ''}"

    def run(self, num_tasks: int, place: str, kind: str) -> None:
        """Runs tasks. After a signal, and after an error, threads end with their present image."""
        with concurrent.futures.ThreadPoolExecutor(self._count) as pool:
            running = [pool.submit(run_task, number, place, kind) for number in range(num_tasks)]
            try:
                for each in running:
                    each.result()
            except BaseException:
                STOP.set()
                pool.shutdown(cancel_futures=True)
                raise
            finally:
                STOP.clear()

    def end(self) -> None:
        """Does nothing: there are no processes."""


class Workers:
    """The workers of an ingestion. At the end of their context, no process of theirs is left.

    Args:
        scratch: A directory that this process and all workers can read and write.
        arguments: Options of Beam; empty for threads of this process.

    Raises:
        ConfigError: Beam is missing, or refuses the options.
        WorkerLostError: The process of Beam has ended.
    """

    def __init__(self, scratch: str, arguments: Sequence[str]):
        self._scratch = scratch
        self._count = 0
        if arguments and importlib.util.find_spec("apache_beam") is None:
            raise missing_package("`beam_pipeline_args` needs Apache Beam", "beam")
        self._runner: Runner = start_beam(arguments, scratch) if arguments else Threads()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *exception: object) -> None:
        self._runner.end()

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
        print(f"{what} {total} {'files' if kind == 'inspect' else 'shards'} {self._runner.place}", flush=True)
        with _progress(place, what, len(tasks)):
            self._runner.run(len(tasks), place, kind)
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
