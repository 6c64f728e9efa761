"""Apache Beam, which runs tasks: in processes that end with this one, or in this process."""

from __future__ import annotations

import concurrent.futures
import json
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from sela_tf.files.storage import storage_errno
from sela_tf.settings.fields import ConfigError
from sela_tf.tasks import beam_process, task_files
from sela_tf.tasks.beam_pipeline import check_arguments, run_pipeline
from sela_tf.tasks.child_group import ChildGroup
from sela_tf.tasks.lost import WorkerLostError, how_it_ended, signal_of

_IN_THIS_PROCESS = "--direct_running_mode=in_memory"


def start_beam(arguments: Sequence[str], scratch: str) -> BeamHere | BeamProcess:
    """Starts Beam.

    Args:
        arguments: Options of Beam.
        scratch: A directory that is removed at the end; temporary files of workers go there if it is not at a URL.

    Raises:
        ConfigError: Beam refuses the options.
        WorkerLostError: The process of Beam has ended.
    """
    return BeamHere(arguments) if _IN_THIS_PROCESS in arguments else BeamProcess(arguments, scratch)


class BeamProcess:
    """Beam in a process of its own, with its workers. See `start_beam`."""

    where = "by Apache Beam"

    def __init__(self, arguments: Sequence[str], scratch: str):
        self._arguments = list(arguments)
        # Where Beam's workers are processes of this machine, the lines that they write come out only if one fails.
        is_here = "--runner=FnApiRunner" in arguments
        self._kept_back = tempfile.TemporaryFile() if is_here else None  # noqa: SIM115 - `end` closes it
        self._environment = {}
        if "://" not in scratch:
            # A worker that is killed cannot remove its temporary files.
            self._environment["TMPDIR"] = f"{scratch}/temporary"
            os.makedirs(self._environment["TMPDIR"])
        self._child: ChildGroup | None = None
        try:
            self._started()
        except BaseException:
            self.end()
            raise

    def run(self, num_tasks: int, place: str, function: str) -> None:
        """Runs tasks."""
        outcome, detail = self._ask(self._started(), [num_tasks, place, function])
        if outcome == beam_process.LOST:
            self._end_child()
            # A worker that fails when all work is done has lost nothing.
            if not all(tf.io.gfile.exists(task_files.done_file(place, number)) for number in range(num_tasks)):
                self._tell_noise_of(detail)
                raise _lost("a worker of Apache Beam", detail)
        elif outcome == beam_process.FAILED:
            failed = RuntimeError(f"Beam has failed: {detail}")
            if storage_errno(failed) is None:
                self._tell_noise_of(1)
            raise failed

    def end(self) -> None:
        """Ends the process of Beam and its workers."""
        self._end_child()
        if self._kept_back is not None:
            self._kept_back.close()

    def _started(self) -> ChildGroup:
        """Returns the process of Beam, which is started if there is none."""
        if self._child is None:
            self._child = ChildGroup("sela_tf.tasks.beam_process", stderr=self._kept_back, **self._environment)
            outcome, why = self._ask(self._child, self._arguments)
            if outcome == beam_process.REFUSED:
                raise _refused(self._arguments, why)
        return self._child

    def _end_child(self) -> int:
        child, self._child = self._child, None
        return 0 if child is None else child.end()

    def _ask(self, child: ChildGroup, message: Any) -> tuple[str, Any]:
        child.tell(message)
        line = child.lines.readline()
        if not line:
            status = self._end_child()
            self._tell_noise_of(status)
            raise _lost("the process of Apache Beam", status)
        outcome, detail = json.loads(line)
        return outcome, detail

    def _tell_noise_of(self, status: int) -> None:
        """Writes out the lines that were kept back, unless the process was killed: then they do not tell why."""
        if self._kept_back is not None and signal_of(status) not in (signal.SIGKILL, signal.SIGTERM):
            self._kept_back.seek(0)
            sys.stderr.write(self._kept_back.read().decode(errors="replace"))


class BeamHere:
    """Beam in a thread of this process. See `start_beam`.

    Beam would take the exception that a signal raises in the main thread for a failure of its own, and this process could not be stopped.
    """

    where = "by Apache Beam, in this process"

    def __init__(self, arguments: Sequence[str]):
        self._arguments = arguments
        if why := check_arguments(arguments):
            raise _refused(arguments, why)

    def run(self, num_tasks: int, place: str, function: str) -> None:
        """Runs tasks."""
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            done = pool.submit(run_pipeline, self._arguments, num_tasks, place, function)
            try:
                done.result()
            except KeyboardInterrupt:
                task_files.STOP.set()
                done.exception()
                raise
            finally:
                task_files.STOP.clear()

    def end(self) -> None:
        """Does nothing: there are no processes."""


def _refused(arguments: Sequence[str], why: str) -> ConfigError:
    return ConfigError(f"`beam_pipeline_args={','.join(arguments)}`: {why}")


def _lost(what: str, status: int) -> WorkerLostError:
    fewer = ", or with --direct_num_workers=1 in `beam_pipeline_args`" if signal_of(status) == signal.SIGKILL else ""
    return WorkerLostError(
        f"{what} {how_it_ended(status)}: nothing was written, and what was there before is as it was; repeat the command{fewer}"
    )
