"""The training loop: batches in, callbacks around every step, a save every few epochs and on a signal."""

from __future__ import annotations

import dataclasses
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from sela_tf.cli.signals import Stop, StoppedBySignal


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
    stepping: float = 0.0
    steps: int = 0
    step: int = 0
    """Steps taken since the run began."""

    @property
    def waiting_share(self) -> float:
        """The share of the training time that was spent on data, waiting for them or making them, in [0, 1]."""
        of_data = max(self.waiting, self.drawing_each * self.steps)
        return min(of_data / max(self.waiting + self.stepping, 1e-9), 1.0)

    def rate(self, batch_size: int) -> float:
        """Images a second, for batches of `batch_size` images."""
        return self.steps * batch_size / max(self.waiting + self.stepping, 1e-9)


def step_function(model: keras.Model, strategy: tf.distribute.Strategy, xla: bool) -> Callable[[Any], dict[str, tf.Tensor]]:
    """Returns one optimizer step of a compiled model on every replica, a function from a (distributed) batch to the logs so far."""
    replica_step = tf.function(model.train_step, jit_compile=True) if xla else model.train_step

    @tf.function
    def step(batch: Any) -> dict[str, tf.Tensor]:
        logs = strategy.run(replica_step, args=(batch,))
        # Each replica has the mean of its own, equally large share of the batch, so the mean of the means is that of the batch.
        return {name: strategy.reduce(tf.distribute.ReduceOp.MEAN, value, axis=None) for name, value in logs.items()}

    return step


class _EpochMeans:
    """The means of the logs over an epoch, gathered from rows that are means over several steps each."""

    def __init__(self) -> None:
        self._rows: list[tuple[dict[str, float], int]] = []
        self._steps_since_row = 0

    def count_step(self) -> None:
        self._steps_since_row += 1

    def add_row(self, values: Mapping[str, tf.Tensor]) -> dict[str, float]:
        """Reads the logs of the steps since the last row, which waits for the device, and returns them."""
        logs = {name: float(value) for name, value in values.items()}
        self._rows.append((dict(logs), self._steps_since_row))
        self._steps_since_row = 0
        return logs

    def means(self) -> dict[str, float]:
        steps = sum(count for _, count in self._rows)
        return {name: sum(row[name] * count for row, count in self._rows) / steps for name in self._rows[-1][0]}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingLoop:
    """The loop that trains a compiled model, a step at a time, with Keras callbacks around every step.

    Logs reach the callbacks as in `model.fit`, but as means since the last row: every `log_every_steps` and at the end of an epoch. So a
    device is not waited for at every step.
    """

    model: keras.Model
    strategy: tf.distribute.Strategy
    """The strategy that the model was built under."""
    take_step: Callable[[Any], dict[str, tf.Tensor]]
    """One optimizer step, see `step_function`."""
    steps_per_epoch: int
    log_every_steps: int
    clock: Clock
    save_epochs: int = 1
    """Epochs between two saves."""

    def run(
        self,
        batches: tf.data.Dataset,
        *,
        first_step: int,
        last_step: int,
        callbacks: Sequence[keras.callbacks.Callback],
        save: Callable[[int], None],
        stop: Stop,
    ) -> None:
        """Takes the steps from `first_step` up to, not including, `last_step`.

        Args:
            batches: the batches of these steps, in order.
            first_step: the first step to take.
            last_step: the step to stop before, the end of an epoch.
            callbacks: Keras callbacks.
            save: a function of the number of steps taken that writes the state; called at the end of every `save_epochs` epochs, of the
                last one, and after a signal.
            stop: holds the signal that asks the loop to end, once it has come.

        Raises:
            TrainingInterrupted: a signal came; the state is saved.
        """
        take_step, model, clock = self.take_step, self.model, self.clock
        epochs = last_step // self.steps_per_epoch
        hooks = keras.callbacks.CallbackList(list(callbacks), model=model, epochs=epochs, steps=self.steps_per_epoch)
        clock.step = first_step
        hooks.on_train_begin()
        iterator = iter(self._distributed(batches))
        means = _EpochMeans()
        for step in range(first_step, last_step):
            epoch, position = divmod(step, self.steps_per_epoch)
            ends_epoch = position + 1 == self.steps_per_epoch
            if position == 0 or step == first_step:
                hooks.on_epoch_begin(epoch)
                model.reset_metrics()
                means = _EpochMeans()
            start = time.perf_counter()
            batch = next(iterator)
            clock.waiting += time.perf_counter() - start
            hooks.on_train_batch_begin(position)
            start = time.perf_counter()
            values = take_step(batch)
            means.count_step()
            stopping = stop.signal_number
            logs: dict[str, float] = {}
            if (position + 1) % self.log_every_steps == 0 or ends_epoch or stopping is not None:
                logs = means.add_row(values)
                model.reset_metrics()
            clock.stepping += time.perf_counter() - start
            clock.steps += 1
            clock.step = step + 1
            hooks.on_train_batch_end(position, logs)
            if ends_epoch:
                hooks.on_epoch_end(epoch, means.means())
            due = ends_epoch and ((epoch + 1) % self.save_epochs == 0 or step + 1 == last_step)
            if due or stopping is not None:
                save(step + 1)
            if stopping is not None:
                hooks.on_train_end()
                raise TrainingInterrupted(stopping, step + 1)
        hooks.on_train_end()

    def _distributed(self, batches: tf.data.Dataset) -> Any:
        """The batches, each split over the replicas where there are several."""
        return self.strategy.experimental_distribute_dataset(batches) if self.strategy.num_replicas_in_sync > 1 else batches
