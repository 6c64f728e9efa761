"""The Keras callback that saves a training in `model.fit` at the end of every epoch, so that it can be continued bit for bit."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from sela_tf.compat.progress import say
from sela_tf.compat.randomness import unsaveable_draws
from sela_tf.compat.releases import RELEASE, build_optimizer, learning_rate_of, learning_rate_variable, steps_per_execution
from sela_tf.files import saves
from sela_tf.models.finite import DivergedError
from sela_tf.self_labelling.fit_state import FitState, HasState, named_parts


class Checkpoint(keras.callbacks.Callback):
    """A Keras callback that saves a training at its start and after every epoch, and continues it as if it had not been stopped.

    A program that is killed at any instant and started again ends with the weights, labels, optimizer state and `logs`, bit for bit, that
    it would have had; an epoch that was not finished is taken again from its start. It needs three things: `initial_epoch=checkpoint.epoch`,
    data that depend on the number of the epoch alone, and this callback after all `parts` in the list of `fit`.

        checkpoint = sela_tf.Checkpoint("fit", [labelling])
        batches = tf.data.Dataset.counter(checkpoint.epoch).flat_map(batches_of)  # batches_of(epoch): the data set of one epoch
        model.fit(
            batches, epochs=30, steps_per_epoch=steps, initial_epoch=checkpoint.epoch, shuffle=False, callbacks=[labelling, checkpoint]
        )

    Saved are the variables of the model and the optimizer, the label table, the generators of Keras, Python and NumPy, and `parts`. `fit`
    cannot tell where in an epoch it is, so that an epoch broken off by `stop_training` is not saved.

    Args:
        directory: the directory of the saves, of one `fit`; made where it is not there.
        parts: what else has a state: the SelfLabelling, with its table; ClusterMonitor, CollapseDoctor; any object with a method `state`,
            which returns arrays by name, and `restore`, which takes them.
        keep: the number of saves to keep, the newest.
        verbose: 0 for no lines; None for the `verbose` of `fit`.

    Raises:
        ValueError: at once, if an argument is out of range, a part has no state, or all saves are damaged; when training starts, if a part
            is not before this callback in the list of `fit`, or the save is of another model, optimizer, table, number of devices or
            release; if the first epoch is not `epoch`; after the first step, if it draws random numbers whose state cannot be saved; if the
            data end before the epoch.
        DivergedError: a number to save is not finite; the save before stays.
        OSError: the save cannot be written; the one before stays.
    """

    epoch: int
    """The number of epochs that the newest save holds, which is the `initial_epoch` of `fit`: 0 where there is none."""
    logs: list[dict[str, Any]]
    """The logs of every epoch that the newest save holds, from the first on, those of earlier processes included."""

    def __init__(self, directory: str | os.PathLike[str], parts: Sequence[HasState], *, keep: int = 2, verbose: int | None = None):
        super().__init__()
        # Keras 2 has them from `fit` alone.
        self.params: dict[str, Any] | None = None
        if keep < 1:
            raise ValueError(f"`keep` must be at least 1. Received: keep={keep}")
        self.directory, self.parts, self.keep, self.verbose = pathlib.Path(directory), named_parts(parts), keep, verbose
        self._found = self._newest()
        self.epoch, self.logs = (self._found.meta["epoch"], self._found.meta["logs"]) if self._found else (0, [])
        self._learning_rate: float | None = None
        self._is_current = self._has_looked = False
        self._executions = 0

    def _newest(self) -> saves.Checkpoint | None:
        """Returns the newest whole save, or None where there is none."""
        found, passed_over = saves.load_newest(self.directory)
        for line in passed_over:
            say(f"save passed over: {line}", verbose=self.verbose, params=self.params)
        if found is None and passed_over:
            raise ValueError(
                f"`directory={self.directory}`: all saves are damaged ({'; '.join(passed_over)}): name another one to begin anew"
            )
        if found is not None and "logs" not in found.meta:
            raise ValueError(f"`directory={self.directory}` has saves that are not of a `fit`: name another one")
        return found

    def set_params(self, params: dict) -> None:
        super().set_params(params)
        # `fit` gives all its callbacks the same dict, in their order.
        self._later = [name for name, part in self.parts.items() if getattr(part, "params", params) is not params]

    def on_train_begin(self, logs: dict | None = None) -> None:
        if self._later:
            raise ValueError(
                f"`callbacks` of `fit` must have all `parts`, and Checkpoint after them. Not before it: {', '.join(self._later)}"
            )
        optimizer = self.model.optimizer
        with self.model.distribute_strategy.scope():
            build_optimizer(optimizer, self.model.trainable_variables)
            self._state = FitState(self.model, self.parts)
        self._has_looked = False
        if self._learning_rate is None:
            self._learning_rate = learning_rate_of(optimizer)
        if self._is_current:
            return
        found, self._found = self._found or self._newest(), None
        if found is None:
            self._save()
        else:
            self._put_back(found)
        self._is_current = True

    def _put_back(self, found: saves.Checkpoint) -> None:
        """Puts a save back, but for a learning rate that the program has changed since."""
        meta, optimizer = found.meta, self.model.optimizer
        try:
            for key, value in self._origin().items():
                if meta[key] != value:
                    raise ValueError(f"it has {key} {meta[key]}, now {value}")
            self._state.put_back(found.arrays)
        except ValueError as error:
            raise ValueError(
                f"`directory={self.directory}` has the save of another training: {error}. Run the program that wrote it, or name another directory"
            ) from error
        self.epoch, self.logs = meta["epoch"], meta["logs"]
        rate = learning_rate_variable(optimizer)
        if rate is not None and meta["learning_rate"] != self._learning_rate:
            rate.assign(self._learning_rate)
            words = f"Checkpoint: the learning rate is {self._learning_rate:g} from here on; until here, it began with {meta['learning_rate']:g}"
            say(words, verbose=self.verbose, params=self.params)

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        if epoch != self.epoch:
            raise ValueError(
                f"`fit` begins with epoch {epoch}, and the newest save in `directory={self.directory}` is of the start of epoch {self.epoch}: "
                "give `fit` `initial_epoch=checkpoint.epoch` and data from that epoch on, or name another directory to begin anew"
            )
        self._is_current, self._executions = False, 0

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        self._executions += 1
        if self._has_looked:
            return
        self._has_looked = True
        draws = unsaveable_draws(self.model)
        if draws:
            raise ValueError(
                f"The training step draws random numbers whose state TensorFlow does not give, in {', '.join(draws)}: draw them with "
                "`keras.random` and a `keras.random.SeedGenerator` or with a `tf.random.Generator` that is one of `parts`; on Keras 2, call "
                "`keras.backend.experimental.enable_tf_random_generator()` before the layers are made"
            )

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        steps = (self.params or {}).get("steps")
        taken = self._executions * steps_per_execution(self.model)
        is_stopped = bool(self.model.stop_training)
        if taken < steps if steps is not None else is_stopped:
            words = f"epoch {epoch} ended after {taken} of {steps or 'an unknown number of'} steps"
            if not is_stopped:
                raise ValueError(f"{words}, because the data ran out: give data of `steps_per_epoch` batches for each epoch")
            words += (
                ": it is not saved, and the next `fit` takes it again. To lose nothing, stop the training at the end of an epoch"
            )
            say(f"Checkpoint: {words}", verbose=self.verbose, params=self.params)
            return
        self.epoch, self.logs = epoch + 1, [*self.logs, {name: np.asarray(value).tolist() for name, value in (logs or {}).items()}]
        self._save()
        self._is_current = True

    def _origin(self) -> dict[str, Any]:
        """Returns what a save must have in common with the training that it continues."""
        optimizer = getattr(self.model.optimizer, "inner_optimizer", self.model.optimizer)
        replicas = self.model.distribute_strategy.num_replicas_in_sync
        return {"tensorflow": RELEASE, "devices": replicas, "optimizer": type(optimizer).__name__, "parts": list(self.parts)}

    def _save(self) -> None:
        """Writes the state to the disk.

        Raises:
            DivergedError: a number is not finite.
        """
        arrays = self._state.arrays()
        bad = self._state.not_finite(arrays)
        if bad:
            raise DivergedError(
                f"{len(bad)} of {len(arrays)} arrays are not finite after {self.epoch} epochs, first {bad[0]}: training diverged. The save before "
                f"stays in `directory={self.directory}`: compile with a lower learning rate, and run again"
            )
        meta = {"epoch": self.epoch, "logs": self.logs, "learning_rate": self._learning_rate, **self._origin()}
        saves.save(self.directory, self.epoch, arrays, meta, keep=self.keep)
