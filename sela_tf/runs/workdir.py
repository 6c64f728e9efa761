"""The directory of a run: which run it belongs to, and the files that others read."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import shlex
import socket
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from sela_tf.cli import flags
from sela_tf.files.atomic import whole_file, write_whole
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
        config: the settings of the run.

    Raises:
        ConfigError: the path is a file, cannot be written, or holds something else; with what differs, old and new.
    """

    def __init__(self, path: str | os.PathLike[str], config: SelaConfig):
        self.path = pathlib.Path(path).expanduser().absolute()
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"`workdir={path}` is a file: name a directory")
        flagfile = self.path / FLAGS
        self.previous: SelaConfig | None = None
        if flagfile.exists():
            try:
                self.previous = flags.from_flagfile(flagfile)
            except ConfigError as error:
                raise ConfigError(f"{flagfile} is damaged ({error}): name another directory") from error
            _refuse_other_run(self.path, self.previous, config)
        elif self.path.is_dir() and (found := sorted(set(os.listdir(self.path)) - {LOCK, *_FILE_SYSTEM_DIRECTORIES})):
            raise ConfigError(
                f"`workdir={path}` holds other files ({', '.join(found[:3])}) and no run: name a new or an empty directory"
            )
        refuse_unwritable("workdir", self.path)
        self.config = config
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

    def start(self, step: int) -> None:
        """Makes the directory this run's own, and begins writing at `step`; `close` lets go of it.

        Where the verdict that is asked for is not there, rows of later steps, which will be taken again, are removed, and so are another
        verdict and its report. The network and the labels of a shorter training stay until there are others.
        """
        outdated = not self.has_results
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock()
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

    def _lock(self) -> None:
        """Locks the directory: two processes that write one run would destroy it. The lock is the kernel's and ends with the process.

        It is on a file opened for writing, without which NFS has no exclusive locks; the file says who holds it.
        """
        self._descriptor = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(self._descriptor, 2000, 0).decode(errors="replace").strip()
            self.close()
            raise ConfigError(
                f"`workdir={self.path}` is in use by {holder or 'another process'}: stop that, or name another directory"
            ) from error
        os.ftruncate(self._descriptor, 0)
        words = f"process {os.getpid()} on {socket.gethostname()}: {shlex.join(sys.argv)}"
        os.pwrite(self._descriptor, words.encode(errors="replace")[:2000], 0)

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

    def write_labels(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Writes labels.npz, whole or not at all."""
        with whole_file(self.path / LABELS) as unfinished:
            np.savez(unfinished, **arrays)  # type: ignore[arg-type]

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


def read_config(workdir: str | os.PathLike[str]) -> SelaConfig:
    """The settings of the run in `workdir`.

    Raises:
        ConfigError: there is none, or they cannot be read.
    """
    path = pathlib.Path(workdir).expanduser() / FLAGS
    if not path.exists():
        raise ConfigError(f"`workdir={workdir}` holds no run (no {FLAGS})")
    try:
        return flags.from_flagfile(path)
    except ConfigError as error:
        raise ConfigError(f"{path} is damaged, or was written by another version of sela_tf ({error})") from error


def with_rules_of_older_run(config: SelaConfig, workdir: str | os.PathLike[str]) -> SelaConfig:
    """Returns the settings with the rules of the run in `workdir`, if it is older than `background` and none is asked for."""
    path = pathlib.Path(workdir).expanduser() / FLAGS
    if config.background != "white" or not path.exists():
        return config
    with contextlib.suppress(ConfigError):  # `Workdir` says what is wrong with the file.
        if flags.from_flagfile(path).background == "old":
            return dataclasses.replace(config, background="old")
    return config


def _row(line: str) -> dict[str, Any] | None:
    """Returns the row of a line; None for one that was cut when the machine stopped."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and {"kind", "step"} <= set(row) else None


def _refuse_other_run(path: pathlib.Path, old: SelaConfig, new: SelaConfig) -> None:
    different = [
        f"`{field.name}` was {getattr(old, field.name)!r}, is {getattr(new, field.name)!r}"
        for field in dataclasses.fields(SelaConfig)
        if getattr(old, field.name) != getattr(new, field.name)
        and not field.metadata["may_change"]
        and not (field.name == "epochs" and new.epochs > old.epochs)
    ]
    if different:
        raise ConfigError(
            f"`workdir={path}` holds another run: {'; '.join(different)}. Name another directory, or repeat the run's own settings "
            "(more `epochs` may be asked for)"
        )
