"""The training loop: batches in, callbacks around every step, a save every few epochs and on a signal."""

from __future__ import annotations

import dataclasses
import functools
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import keras
import numpy as np
import tensorflow as tf

from sela_tf.cli.signals import PassAborted, Stop, StoppedBySignal
from sela_tf.compat.releases import of_each_replica
from sela_tf.transport.shards import ALONE, Shards


class TrainingInterrupted(StoppedBySignal):
    """Training was stopped by a signal; the state of the run is saved."""

    def __init__(self, signal_number: int, step: int):
        super().__init__(f"{signal.Signals(signal_number).name}: stopped and saved at step {step}", signal_number)


@dataclasses.dataclass
class Clock:
    """The seconds of the present epoch that went into waiting for data and into steps; relabelling and monitors do not count."""

    waiting: float = 0.0
    """Seconds in which the loop had no batch."""
    drawing_each: float = 0.0
    """Seconds in which this machine reads, decodes and draws the views of a batch, doing nothing else; 0 where they are made while a device
    of another kind takes the step. Steps on the same processors are slower by it, although the loop does not wait."""
    view_seconds: float = 0.0
    """Processor seconds in which one view is read, decoded and drawn; 0 where it is not known."""
    views_each: int = 0
    """The views that this machine makes for a step."""
    stepping: float = 0.0
    steps: int = 0
    step: int = 0
    """Steps taken since the run began."""

    @property
    def waiting_share(self) -> float:
        """The share of the training time that was spent on data, waiting for them or making them, in [0, 1]."""
        of_data = max(self.waiting, self.drawing_each * self.steps)
        return min(of_data / max(self.waiting + self.stepping, 1e-9), 1.0)

    @property
    def cores_wanted(self) -> float:
        """The cores that make views as fast as the devices of this machine take steps when they wait for nothing."""
        return self.view_seconds * self.views_each * self.steps / max(self.stepping, 1e-9)

    def rate(self, batch_size: int) -> float:
        """Images a second, for batches of `batch_size` images."""
        return self.steps * batch_size / max(self.waiting + self.stepping, 1e-9)


def step_function(model: keras.Model, strategy: tf.distribute.Strategy, xla: bool) -> Any:
    """Returns one optimizer step of a compiled model on every replica, a tf.function from a (distributed) batch to the logs so far."""
    replica_step = tf.function(model.train_step, jit_compile=True) if xla else model.train_step

    @tf.function
    def step(batch: Any) -> dict[str, tf.Tensor]:
        logs = strategy.run(replica_step, args=(batch,))
        # Each replica has the mean of its own, equally large share of the batch, so the mean of the means is that of the batch.
        return {name: strategy.reduce(tf.distribute.ReduceOp.MEAN, value, axis=None) for name, value in logs.items()}

    return step


class EpochMeans:
    """The means of the logs over an epoch, gathered from rows that are means over several steps each.

    Its state, with that of Keras' metrics, lets a training that was stopped within an epoch write the rows of an unbroken one.
    """

    def __init__(self) -> None:
        self._rows: list[tuple[dict[str, float], int]] = []
        self._steps_since_row = 0
        self._gathered: list[np.ndarray] = []

    def begin_epoch(self) -> None:
        """Forgets the rows of the epoch before."""
        self._rows, self._steps_since_row = [], 0

    def count_step(self) -> None:
        """Counts a step whose values are in Keras' metrics."""
        self._steps_since_row += 1

    def add_row(self, values: Mapping[str, tf.Tensor]) -> dict[str, float]:
        """Reads the logs of the steps since the last row, which waits for the device, and returns them."""
        logs = {name: float(value) for name, value in values.items()}
        self._rows.append((dict(logs), self._steps_since_row))
        self._steps_since_row = 0
        return logs

    def means(self) -> dict[str, float]:
        """Returns the mean of each value over the steps of the epoch so far, as of the last row."""
        steps = sum(count for _, count in self._rows)
        return {name: sum(row[name] * count for row, count in self._rows) / steps for name in self._rows[-1][0]}

    def state(self, model: keras.Model) -> dict[str, np.ndarray]:
        """Returns the rows of the present epoch, and what the metrics of a model have gathered since the last one; empty between two epochs."""
        if not self._rows and not self._steps_since_row:
            return {}
        names = list(self._rows[0][0]) if self._rows else []
        state = {
            "names": np.array(names, np.str_),
            "rows": np.array([[row[name] for name in names] for row, _ in self._rows], np.float64),
            "counts": np.array([count for _, count in self._rows], np.int64),
            "steps_since_row": np.array(self._steps_since_row),
        }
        if self._steps_since_row:
            # Until the loop begins, the metrics are those that were put back.
            gathered = self._gathered or [np.stack([each.numpy() for each in own]) for own in _of_metrics(model)]
            state |= {f"metrics/{i:04d}": values for i, values in enumerate(gathered)}
        return state

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Puts back the rows that `state` gave; `begin` puts back the metrics."""
        names = state["names"].tolist()
        rows = [dict(zip(names, map(float, row), strict=True)) for row in state["rows"]]
        self._rows = list(zip(rows, map(int, state["counts"]), strict=True))
        self._steps_since_row = int(state["steps_since_row"])
        self._gathered = [state[name] for name in sorted(state) if name.startswith("metrics/")]

    def begin(self, model: keras.Model, build: Callable[[], Any]) -> None:
        """Resets the metrics of a model, and gives them what they had gathered when the training was stopped within an epoch.

        Args:
            model: the compiled model.
            build: makes the variables of the metrics, which Keras may make as late as at the first step.
        """
        if self._gathered:
            build()
        model.reset_metrics()
        if self._gathered:
            for own, values in zip(_of_metrics(model), self._gathered, strict=True):
                for variable, value in zip(own, values, strict=True):
                    variable.assign(value)
        self._gathered = []


def _of_metrics(model: keras.Model) -> list[list[tf.Variable]]:
    """Returns the variables of the metrics of a model, of each those of the replicas, which sum their own."""
    variables = (variable for metric in model.metrics for variable in metric.variables)
    return [list(of_each_replica(variable, model.distribute_strategy)) for variable in variables]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingLoop:
    """The loop that trains a compiled model, a step at a time, with Keras callbacks around every step.

    Logs reach the callbacks as in `model.fit`, but as means since the last row: every `log_every_steps` and at the end of an epoch. So a
    device is not waited for at every step.
    """

    model: keras.Model
    take_step: Any
    """One optimizer step, see `step_function`."""
    steps_per_epoch: int
    log_every_steps: int
    clock: Clock
    means: EpochMeans = dataclasses.field(default_factory=EpochMeans)
    """The means of the epoch that the loop begins in, which may have been stopped within it."""
    save_epochs: int = 1
    """Epochs between two saves."""
    save_seconds: float = 0.0
    """Seconds between two saves; 0 for no limit."""
    shards: Shards = ALONE
    """The workers that train together. Where they are several, a signal to one of them, and the time of a save, count at the next row for all."""

    def run(
        self,
        batches: Any,
        *,
        first_step: int,
        last_step: int,
        callbacks: Sequence[keras.callbacks.Callback],
        save: Callable[[int], None],
        stop: Stop,
    ) -> None:
        """Takes the steps from `first_step` up to, not including, `last_step`.

        Args:
            batches: the (distributed) batches of these steps, in order.
            first_step: the first step to take.
            last_step: the step to stop before, the end of an epoch.
            callbacks: Keras callbacks.
            save: a function of the number of steps taken that writes the state; called at the end of every `save_epochs` epochs, of the
                last one, after `save_seconds`, and after a signal.
            stop: holds the signal that asks the loop to save or to end, once it has come.

        Raises:
            TrainingInterrupted: a signal came; the state is saved.
        """
        take_step, model, clock, means = self.take_step, self.model, self.clock, self.means
        epochs = last_step // self.steps_per_epoch
        hooks = keras.callbacks.CallbackList(list(callbacks), model=model, epochs=epochs, steps=self.steps_per_epoch)
        clock.step = first_step
        hooks.on_train_begin()
        iterator = iter(batches)
        saved = time.monotonic()
        for step in range(first_step, last_step):
            epoch, position = divmod(step, self.steps_per_epoch)
            ends_epoch = position + 1 == self.steps_per_epoch
            if position == 0:
                means.begin_epoch()
            if position == 0 or step == first_step:
                hooks.on_epoch_begin(epoch)
            start = time.perf_counter()
            batch = next(iterator)
            clock.waiting += time.perf_counter() - start
            if position == 0 or step == first_step:
                means.begin(model, functools.partial(take_step.get_concrete_function, batch))
            try:
                hooks.on_train_batch_begin(position)
            except PassAborted as aborted:
                # Nothing has changed since the last step: the pass will be taken again.
                self._interrupt(aborted.signal_number, step, hooks, save)
            start = time.perf_counter()
            values = take_step(batch)
            means.count_step()
            logs: dict[str, float] = {}
            if (position + 1) % self.log_every_steps == 0 or ends_epoch:
                logs = means.add_row(values)
                model.reset_metrics()
            clock.stepping += time.perf_counter() - start
            clock.steps += 1
            clock.step = step + 1
            hooks.on_train_batch_end(position, logs)
            if ends_epoch:
                hooks.on_epoch_end(epoch, means.means())
                means.begin_epoch()
            if not logs and self.shards.count > 1:
                continue
            is_late = bool(self.save_seconds) and time.monotonic() - saved >= self.save_seconds
            signal_number, wants_save = self.agreed(stop, is_late)
            if signal_number is not None:
                self._interrupt(signal_number, step + 1, hooks, save)
            due = ends_epoch and ((epoch + 1) % self.save_epochs == 0 or step + 1 == last_step)
            if due or wants_save:
                stop.wants_save = False
                save(step + 1)
                saved = time.monotonic()
        hooks.on_train_end()

    def _interrupt(
        self, signal_number: int, step: int, hooks: keras.callbacks.CallbackList, save: Callable[[int], None]
    ) -> NoReturn:
        """Saves, and ends the loop."""
        save(step)
        hooks.on_train_end()
        raise TrainingInterrupted(signal_number, step)

    def agreed(self, stop: Stop, is_late: bool = False) -> tuple[int | None, bool]:
        """Returns the signal that came to a worker, None if there is none, and whether a worker wants a save.

        A signal that comes while the workers tell each other counts the next time.
        """
        signals, saves = self.shards.joined(np.array([stop.signal_number or 0]), np.array([stop.wants_save or is_late]))
        return next((int(number) for number in signals if number), None), bool(saves.any())
