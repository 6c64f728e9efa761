"""The directory of a run: which run it belongs to, and the files that others read."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from sela_tf.cli import flags
from sela_tf.files.atomic import write_whole
from sela_tf.runs.flagfile import settings_of_run
from sela_tf.runs.lock import lock_run
from sela_tf.runs.names import CHECKPOINTS, FLAGS, LABELS, LOCK, METRICS, NETWORK, REPORT, RESULTS, TENSORBOARD, TIMINGS, WEIGHTS
from sela_tf.runs.results import read_results
from sela_tf.settings.fields import ConfigError
from sela_tf.settings.paths import refuse_unwritable
from sela_tf.settings.training import SelaConfig

_FILE_SYSTEM_DIRECTORIES = ("lost+found",)
"""Directories that a fresh volume holds."""

_KINDS_BEFORE_STEP = ("first_labels", "relabel")
"""Rows that belong before their step; the others come after it."""


class Workdir:
    """The directory of one run, its lock, and the files that training writes into it.

    Args:
        path: the directory, which `start` makes if it is missing. One that holds a run is accepted only if it is the same run: settings
            may differ in a larger `epochs` and in those that a continued run may change.
        given: the settings that were given, by name, see `settings_of_run`.

    Raises:
        ConfigError: the path is a file, cannot be written, or holds something else; with what differs, old and new.
    """

    def __init__(self, path: str | os.PathLike[str], given: Mapping[str, Any]):
        self.path = pathlib.Path(path).expanduser().absolute()
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"`workdir={path}` is a file: name a directory")
        self.config, self.previous = settings_of_run(self.path, given)
        if (
            self.previous is None
            and self.path.is_dir()
            and (found := sorted(set(os.listdir(self.path)) - {LOCK, *_FILE_SYSTEM_DIRECTORIES}))
        ):
            raise ConfigError(
                f"`workdir={path}` holds other files ({', '.join(found[:3])}) and no run: name a new or an empty directory"
            )
        refuse_unwritable("workdir", self.path)
        self._writer: tf.summary.SummaryWriter | None = None
        self._descriptor: int | None = None

    @property
    def checkpoints(self) -> pathlib.Path:
        """The directory of the run's checkpoints."""
        return self.path / CHECKPOINTS

    @property
    def has_network(self) -> bool:
        """True if a training ended here, perhaps a shorter one."""
        return any((self.path / name).exists() for name in (NETWORK, WEIGHTS, LABELS, RESULTS))

    @property
    def has_results(self) -> bool:
        """True if the verdict that is asked for is there, with its network and its labels; where none is asked for, any will do."""
        if not all((self.path / name).exists() for name in (WEIGHTS, LABELS, RESULTS)):
            return False
        found = self.read_results()["config"]
        asked = self.config.evaluate
        return found["epochs"] == self.config.epochs and asked in ("none", found.get("evaluate", asked))

    @property
    def is_finished(self) -> bool:
        """True if nothing that is asked for is missing."""
        return self.has_results and ((self.path / REPORT).exists() or not self.config.report)

    def changes(self) -> list[str]:
        """Returns a line for each setting that differs from the earlier call's and changes what will be computed."""
        old, new, lines = self.previous, self.config, []
        if old is None:
            return []
        if new.epochs > old.epochs:
            lines.append(
                f"`epochs` was {old.epochs}, is {new.epochs}: later relabellings and drops of the learning rate are spread over the longer "
                "training, so the run will not equal one that was this long from its start"
            )
        if new.label_memory != old.label_memory:
            lines.append(
                f"`label_memory` was {old.label_memory:g}, is {new.label_memory:g}: where that holds log-probabilities in another precision, "
                "some labels (about .1 %) may differ"
            )
        return lines

    def start(self, step: int, config: SelaConfig) -> None:
        """Makes the directory this run's own, and begins writing at `step`; `close` lets go of it.

        Its flags.cfg gets the settings `config`, all of which have values by now.

        Where the verdict that is asked for is not there, rows of later steps, which will be taken again, are removed, and so are another
        verdict and its report. The network and the labels of a shorter training stay until there are others.
        """
        self.config = config
        outdated = not self.has_results
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._descriptor = lock_run(self.path)
            write_whole(self.path / FLAGS, flags.to_flagfile(self.config))
        except OSError as error:
            raise ConfigError(f"`workdir={self.path}` cannot be written: {error.strerror or error}") from error
        for name in (RESULTS, REPORT) if outdated else ():
            (self.path / name).unlink(missing_ok=True)
        for name in (METRICS, TIMINGS) if outdated else ():
            file = self.path / name
            if file.exists():
                rows = [row for row in map(_row, file.read_text(errors="replace").splitlines()) if row]
                kept = [
                    row for row in rows if row["step"] < step or (row["step"] == step and row["kind"] not in _KINDS_BEFORE_STEP)
                ]
                write_whole(self.path / name, "".join(json.dumps(row) + "\n" for row in kept))
        self._writer = tf.summary.create_file_writer(str(self.path / TENSORBOARD))

    @property
    def writer(self) -> tf.summary.SummaryWriter:
        """The writer of the run's TensorBoard files, between `start` and `close`."""
        if self._writer is None:
            raise RuntimeError(f"{self.path} is not being written")
        return self._writer

    def close(self) -> None:
        """Lets another process use the directory."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def write_metrics(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Writes a row of repeatable numbers to metrics.jsonl and TensorBoard."""
        self._append(METRICS, kind, step, values)
        if self._writer is not None:
            head = f"/head{values['head']}" if "head" in values else ""
            with self._writer.as_default(step):
                for name, value in values.items():
                    if isinstance(value, int | float) and name not in ("head", "epoch"):
                        tf.summary.scalar(f"{kind}{head}/{name}", float(value))

    def write_timings(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Writes a row of wall-clock values to timings.jsonl."""
        self._append(TIMINGS, kind, step, values)

    def flush(self) -> None:
        """Writes what TensorBoard's writer still holds to the disk."""
        if self._writer is not None:
            self._writer.flush()

    def rows(self) -> list[dict[str, Any]]:
        """Returns all rows of metrics.jsonl, each with its `kind` and `step`."""
        return [row for row in map(_row, (self.path / METRICS).read_text().splitlines()) if row]

    def write_results(self, results: Mapping[str, Any]) -> None:
        """Writes results.json, whole or not at all."""
        self.flush()
        write_whole(self.path / RESULTS, json.dumps(results, indent=1) + "\n")

    def read_results(self) -> dict[str, Any]:
        """Returns what `write_results` wrote."""
        return read_results(self.path)

    def _append(self, name: str, kind: str, step: int, values: Mapping[str, Any]) -> None:
        with open(self.path / name, "a") as file:
            file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")


def _row(line: str) -> dict[str, Any] | None:
    """Returns the row of a line; None for one that was cut when the machine stopped."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and {"kind", "step"} <= set(row) else None
