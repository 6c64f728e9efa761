"""Workers, which run tasks: threads of this process, or whatever Apache Beam runs."""

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

from sela_tf.data.errors import SourceError
from sela_tf.settings.fields import ConfigError
from sela_tf.tasks.beam import start_beam
from sela_tf.tasks.task_files import STOP, done_file, read_text, run_task, write_text


class Runner(Protocol):
    """The runner of tasks."""

    where: str
    """The place of the workers, in words for the user."""

    def run(self, num_tasks: int, place: str, function: str) -> None:
        """Runs the tasks in the directory `place` (see `task_files.run_task`).

        Raises:
            WorkerLostError: A worker has ended before its work was done.
            OSError: The disk is full, or cannot be written for another reason.
            RuntimeError: Beam has failed.
        """

    def end(self) -> None:
        """Ends all processes of the runner."""


def refuse_without_beam(setting: str) -> None:
    """Checks that Apache Beam is there, before any work is done.

    Args:
        setting: The setting that asks for it, with its value, for the message.

    Raises:
        ConfigError: It is missing.
    """
    if importlib.util.find_spec("apache_beam") is None:
        raise ConfigError(f"`{setting}` needs Apache Beam: pip install 'sela-tf[beam]'")


class Threads:
    """The runner in this process: a thread for each of its processors. Decoding, digests and files let the others run meanwhile.

    Two processes of Beam start for longer than they save at any size of a set, where there are two processors (docs/components.md).
    """

    def __init__(self) -> None:
        self._count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.where = f"here, on {self._count} thread{'s' if self._count > 1 else ''}"

    def run(self, num_tasks: int, place: str, function: str) -> None:
        """Runs tasks. After a signal, and after an error, threads end with their present image."""
        with concurrent.futures.ThreadPoolExecutor(self._count) as pool:
            running = [pool.submit(run_task, number, place, function) for number in range(num_tasks)]
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
    """The workers of a command. At the end of their context, no process of theirs is left.

    Args:
        scratch: A directory that this process and all workers can read and write.
        arguments: Options of Beam, from the setting `beam_pipeline_args`; empty for threads of this process.

    Raises:
        ConfigError: Beam refuses the options.
        WorkerLostError: The process of Beam has ended.
    """

    def __init__(self, scratch: str, arguments: Sequence[str]):
        self._scratch = scratch
        self._count = 0
        self._runner: Runner = start_beam(arguments, scratch) if arguments else Threads()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *exception: object) -> None:
        self._runner.end()

    def run(self, function: str, tasks: Sequence[Any], doing: str) -> list[Any]:
        """Runs tasks on the workers.

        Args:
            function: MODULE:NAME of the function that does a task.
            tasks: Arguments of each task, as JSON can hold them.
            doing: The work, in words for the user, such as "checking 20 files".

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
        print(f"{doing} {self._runner.where}", flush=True)
        with _progress(place, doing, len(tasks)):
            self._runner.run(len(tasks), place, function)
        results = [json.loads(read_text(done_file(place, number))) for number in range(len(tasks))]
        for result in results:
            if "error" in result:
                raise SourceError(result["error"])
        return [result["result"] for result in results]


@contextlib.contextmanager
def _progress(place: str, doing: str, num_tasks: int) -> Iterator[None]:
    """Shows a progress bar during the context, if the standard error is a terminal."""
    finished = threading.Event()

    def watch() -> None:
        with tqdm(total=num_tasks, desc=doing, unit="part", file=sys.stderr, disable=None, dynamic_ncols=True, leave=False) as bar:
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
