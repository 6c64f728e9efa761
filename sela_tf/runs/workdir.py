"""The directory of a run: which run it belongs to, and the files that others read."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from sela_tf.cli import flags
from sela_tf.files import saves
from sela_tf.files.atomic import to_disk, write_whole
from sela_tf.files.storage import StorageError, storage_errors
from sela_tf.runs.finished import Finished, own_names, path_of, read_finished, settle, write_finished
from sela_tf.runs.flagfile import settings_of_run, write_settings
from sela_tf.runs.labels import digest_of_labels, write_labels
from sela_tf.runs.lock import lock_run
from sela_tf.runs.names import (
    CHECKPOINTS,
    GALLERIES,
    LABELS,
    LOCK,
    METRICS,
    NETWORK,
    PAGE,
    PICTURE,
    REPORT,
    RESULTS,
    RUN_FILES,
    TENSORBOARD,
    TIMINGS,
    WEIGHTS,
)  # fmt: skip
from sela_tf.runs.network import NetworkDescription, save_weights
from sela_tf.runs.results import has_results, read_results
from sela_tf.settings.fields import ConfigError
from sela_tf.settings.paths import refuse_unwritable
from sela_tf.settings.training import SelaConfig

_FILE_SYSTEM_DIRECTORIES = ("lost+found",)
"""Directories that a fresh volume holds."""

_UNFINISHED = ".unfinished-"

_KINDS_BEFORE_STEP = ("first_labels", "relabel")
"""Rows that belong before their step; the others come after it."""


class Workdir:
    """The directory of one run, its lock, and the files that training writes into it.

    Args:
        path: the directory, which `start` makes if it is missing. One that holds a run is accepted only if it is the same run: settings
            may differ in a larger `epochs` and in those that a continued run may change.
        given: the settings that were given, by name, see `settings_of_run`.
        restart: the run begins anew: `start` removes its checkpoints and rows. A finished network stays until there is another one.

    Raises:
        ConfigError: the path is a file, cannot be written, or holds something else; with what differs, old and new.
    """

    def __init__(self, path: str | os.PathLike[str], given: Mapping[str, Any], *, restart: bool = False):
        self.path = pathlib.Path(path).expanduser().absolute()
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"`workdir={path}` is a file: name a directory")
        self.restart = restart
        self.config, self.previous = settings_of_run(self.path, given, restart=restart)
        if self.previous is None and self.path.is_dir() and (found := self._other_files()):
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

    def _other_files(self) -> list[str]:
        """Returns what lies here and is neither of a run nor of a fresh volume; a process that was killed may leave unfinished files."""
        of_runs = {LOCK, *_FILE_SYSTEM_DIRECTORIES, *((CHECKPOINTS, TENSORBOARD, GALLERIES, *RUN_FILES) if self.restart else ())}
        return sorted(name for name in set(os.listdir(self.path)) - of_runs if not name.startswith(_UNFINISHED))

    @property
    def has_network(self) -> bool:
        """True if a training ended here, perhaps a shorter one."""
        return any((self.path / name).exists() for name in (NETWORK, WEIGHTS, LABELS, RESULTS))

    @property
    def has_begun(self) -> bool:
        """True if training took place here: its first checkpoint was written before the first row of metrics.jsonl."""
        return (self.path / METRICS).exists() or self.has_network

    @property
    def has_results(self) -> bool:
        """True if the verdict that is asked for is there, with its network and its labels; where none is asked for, any will do."""
        finished = read_finished(self.path)
        there = all(path_of(self.path, finished, name).exists() for name in (WEIGHTS, LABELS)) and has_results(self.path)
        if not there or (finished is not None and finished.superseded):
            return False
        found = self.read_results()["config"]
        asked = self.config.evaluate
        return found["epochs"] == self.config.epochs and asked in ("none", found.get("evaluate", asked))

    @property
    def is_finished(self) -> bool:
        """True if nothing that is asked for is missing."""
        return not self.restart and self.has_results and ((self.path / REPORT).exists() or not self.config.report)

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

    def lock(self) -> None:
        """Makes a directory that is there this run's own before anything is loaded; `start` makes and locks one that is not.

        Raises:
            ConfigError: another process writes it.
            StorageError: the disk is full.
        """
        if self.path.is_dir() and self._descriptor is None:
            self._descriptor = lock_run(self.path)

    def start(self, step: int, config: SelaConfig) -> None:
        """Makes the directory this run's own, if it is not yet, and begins writing at `step`; `close` lets go of it.

        Its flags.cfg gets the settings `config`, all of which have values by now. Where the verdict that is asked for is not there, rows of
        later steps, which will be taken again, are removed. A finished network stays, with its labels and verdict, until there is another.

        Raises:
            ConfigError: the directory cannot be made, or another process writes it.
            StorageError: the disk is full.
        """
        self.config = config
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock()
            if self.restart:
                self._clear()
            write_settings(self.path, self.config)
            for left in self.path.glob(f"{_UNFINISHED}*"):
                left.unlink()
            settle(self.path, read_finished(self.path))
            saves.prune(self.checkpoints, step, keep=config.keep_checkpoints)
            if not self.has_results:
                for name in (METRICS, TIMINGS):
                    self._remove_rows(self.path / name, step)
        except StorageError:
            raise
        except OSError as error:
            raise ConfigError(f"`workdir={self.path}` cannot be written: {error.strerror or error}") from error
        self._writer = tf.summary.create_file_writer(str(self.path / TENSORBOARD))

    def _clear(self) -> None:
        """Removes checkpoints and rows; a finished network stays, and is known to be an earlier one."""
        if (finished := read_finished(self.path)) is not None:
            write_finished(self.path, finished._replace(superseded=True))
        for name in (CHECKPOINTS, TENSORBOARD):
            shutil.rmtree(self.path / name, ignore_errors=True)
        for name in (METRICS, TIMINGS):
            (self.path / name).unlink(missing_ok=True)

    def _remove_rows(self, file: pathlib.Path, step: int) -> None:
        """Removes the rows of a file that will be written again by a run that goes on at `step`."""
        if file.exists():
            rows = [row for row in map(_row, file.read_text(errors="replace").splitlines()) if row]
            kept = [row for row in rows if row["step"] < step or (row["step"] == step and row["kind"] not in _KINDS_BEFORE_STEP)]
            write_whole(file, "".join(json.dumps(row) + "\n" for row in kept))

    def finish(
        self, model: keras.Model, description: NetworkDescription, step: int, labels: Callable[[str], Mapping[str, np.ndarray]]
    ) -> None:
        """Makes a network of `step` steps and its labels the run's, both or neither; the verdict and the report on an earlier one go.

        Args:
            model: the trained model.
            description: the description of its network.
            step: the number of steps that it has taken.
            labels: makes the arrays of labels.npz, from the digest of the weights.

        Raises:
            StorageError: the disk is full.
        """
        weights_name, labels_name = own_names(step)
        weights = save_weights(self.path / weights_name, model)
        arrays = labels(weights)
        write_labels(self.path / labels_name, arrays)
        finished = Finished(
            step=step, network=description.to_json(), weights=weights_name, weights_sha256=weights, labels=labels_name,
            labels_sha256=digest_of_labels(arrays), settings=tuple(flags.to_flagfile(self.config).splitlines()),
        )  # fmt: skip
        write_finished(self.path, finished)
        is_judged = (self.path / RESULTS).exists() and self.read_results().get("network") == finished.identity()
        for name in () if is_judged else (RESULTS, REPORT, PAGE, PICTURE):
            (self.path / name).unlink(missing_ok=True)

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
        """Brings the rows that were written so far, and what TensorBoard's writer still holds, to the disk."""
        if self._writer is not None:
            self._writer.flush()
        for name in (METRICS, TIMINGS):
            if (self.path / name).exists():
                with storage_errors(self.path / name):
                    to_disk(self.path / name)

    def rows(self) -> list[dict[str, Any]]:
        """Returns all rows of metrics.jsonl, each with its `kind` and `step`."""
        return [row for row in map(_row, (self.path / METRICS).read_text().splitlines()) if row]

    def write_results(self, results: Mapping[str, Any]) -> None:
        """Writes results.json, whole or not at all, with the network that it judges."""
        self.flush()
        finished = read_finished(self.path)
        judged = {} if finished is None else {"network": finished.identity()}
        write_whole(self.path / RESULTS, json.dumps({**results, **judged}, indent=1) + "\n")

    def read_results(self) -> dict[str, Any]:
        """Returns what `write_results` wrote."""
        return read_results(self.path)

    def _append(self, name: str, kind: str, step: int, values: Mapping[str, Any]) -> None:
        # A row that is cut is no row.
        with storage_errors(self.path / name), open(self.path / name, "a") as file:
            file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")


def _row(line: str) -> dict[str, Any] | None:
    """Returns the row of a line; None for one that was cut when the machine stopped, or is none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    is_row = isinstance(row, dict) and isinstance(row.get("kind"), str) and isinstance(row.get("step"), int)
    return row if is_row else None
