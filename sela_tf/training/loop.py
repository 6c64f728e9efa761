"""The training loop: batches in, callbacks around every step, a save at every epoch's end and on a signal."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

import keras
import tensorflow as tf
from tqdm import tqdm

from sela_tf.runs.workdir import Workdir


class TrainingInterrupted(Exception):  # noqa: N818 - it is no error
    """Training was stopped by a signal; the state of the run is saved."""

    def __init__(self, signal_number: int, step: int):
        super().__init__(f"{signal.Signals(signal_number).name}: stopped and saved at step {step}")
        self.signal_number = signal_number


@dataclasses.dataclass
class Stop:
    """The signal that asked training to stop, once it has come."""

    signal_number: int | None = None


@dataclasses.dataclass
class Clock:
    """Where the time of the present epoch went, in seconds; relabelling and monitors do not count."""

    waiting: float = 0.0
    stepping: float = 0.0
    steps: int = 0
    step: int = 0
    """Steps taken since the run began."""

    @property
    def waiting_share(self) -> float:
        """Of the training time, spent waiting for data."""
        return self.waiting / max(self.waiting + self.stepping, 1e-9)

    def rate(self, batch_size: int) -> float:
        """Images a second."""
        return self.steps * batch_size / max(self.waiting + self.stepping, 1e-9)


@contextlib.contextmanager
def signals_noted() -> Iterator[Stop]:
    """Within, the first SIGINT or SIGTERM is noted for the loop to stop after its step; the second acts as ever.

    Python hands signals to its main thread alone: in another one, none is noted, and what the program does with them stays.
    """
    stop = Stop()
    before: dict[int, Any] = {}

    def put_back() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, frame: FrameType | None) -> None:
        stop.signal_number = number
        print(f"\n{signal.Signals(number).name}: saving after this step; once more stops at once", file=sys.stderr, flush=True)
        put_back()

    in_main_thread = threading.current_thread() is threading.main_thread()
    for number in (signal.SIGINT, signal.SIGTERM) if in_main_thread else ():
        before[number] = signal.signal(number, note)
    try:
        yield stop
    finally:
        put_back()


def step_function(model: keras.Model, strategy: tf.distribute.Strategy, xla: bool) -> Callable[[Any], dict[str, tf.Tensor]]:
    """One optimizer step of a compiled model on every replica: a (distributed) batch to the logs so far."""
    replica_step = tf.function(model.train_step, jit_compile=True) if xla else model.train_step

    @tf.function
    def step(batch: Any) -> dict[str, tf.Tensor]:
        logs = strategy.run(replica_step, args=(batch,))
        # each replica has the mean of its own, equally large share of the batch
        return {name: strategy.reduce(tf.distribute.ReduceOp.MEAN, value, axis=None) for name, value in logs.items()}

    return step


def train(
    model: keras.Model,
    batches: tf.data.Dataset,
    *,
    strategy: tf.distribute.Strategy,
    xla: bool,
    callbacks: Sequence[keras.callbacks.Callback],
    clock: Clock,
    first_step: int,
    last_step: int,
    steps_per_epoch: int,
    log_every_steps: int,
    save: Callable[[int], None],
    stop: Stop,
) -> None:
    """Takes the steps from `first_step` up to, not including, `last_step`; `batches` begin with that of `first_step`.

    Logs reach the callbacks as in `model.fit`, but they are means since the last row, every `log_every_steps` and at the end of
    an epoch, so that a device is not waited for at every step.

    Raises:
        TrainingInterrupted: after a signal, saved.
    """
    step_of = step_function(model, strategy, xla)
    distributed = strategy.experimental_distribute_dataset(batches) if strategy.num_replicas_in_sync > 1 else batches
    hooks = keras.callbacks.CallbackList(list(callbacks), model=model, epochs=last_step // steps_per_epoch, steps=steps_per_epoch)
    clock.step = first_step
    hooks.on_train_begin()
    iterator = iter(distributed)
    rows: list[tuple[dict[str, float], int]] = []
    since = 0
    for step in range(first_step, last_step):
        epoch, position = divmod(step, steps_per_epoch)
        if position == 0 or step == first_step:
            hooks.on_epoch_begin(epoch)
            model.reset_metrics()
            rows, since = [], 0
        start = time.perf_counter()
        batch = next(iterator)
        clock.waiting += time.perf_counter() - start
        hooks.on_train_batch_begin(position)
        start = time.perf_counter()
        values = step_of(batch)
        since += 1
        stopping = stop.signal_number
        logs: dict[str, float] = {}
        if (position + 1) % log_every_steps == 0 or position + 1 == steps_per_epoch or stopping is not None:
            logs = {name: float(value) for name, value in values.items()}
            rows.append((dict(logs), since))
            model.reset_metrics()
            since = 0
        clock.stepping += time.perf_counter() - start
        clock.steps += 1
        clock.step = step + 1
        hooks.on_train_batch_end(position, logs)
        if position + 1 == steps_per_epoch:
            steps = sum(count for _, count in rows)
            hooks.on_epoch_end(epoch, {name: sum(row[name] * count for row, count in rows) / steps for name in logs})
            save(step + 1)
        elif stopping is not None:
            save(step + 1)
        if stopping is not None:
            hooks.on_train_end()
            raise TrainingInterrupted(stopping, step + 1)
    hooks.on_train_end()


class Progress(keras.callbacks.Callback):
    """A bar for the person watching, a line an epoch, and the rows of the loss in the run's files."""

    def __init__(self, epochs: int, batch_size: int, directory: Workdir, clock: Clock):
        super().__init__()
        self.epochs, self.batch_size = epochs, batch_size
        self.directory, self.clock = directory, clock
        self._bar: tqdm | None = None
        self._epoch = 0
        self._loss = float("nan")

    def on_train_begin(self, logs: dict | None = None) -> None:
        taken = self.clock.step
        # on a terminal only: a log file has the lines of the epochs
        total = self.epochs * self.params["steps"]
        self._bar = tqdm(total=total, initial=taken, disable=None, unit="step", dynamic_ncols=True, smoothing=0.05, leave=False)

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self._epoch = epoch
        self.clock.waiting = self.clock.stepping = self.clock.steps = 0

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        if logs:
            self._loss = logs["loss"]
            step = self.clock.step
            row = {"epoch": self._epoch, **logs, "learning_rate": float(self.model.optimizer.learning_rate)}
            self.directory.write_metrics("train", step, row)
        if self._bar is not None:
            self._bar.update()
            if not self._bar.disable:
                self._bar.set_description(f"epoch {self._epoch + 1}/{self.epochs}", refresh=False)
                rate, share = self.clock.rate(self.batch_size), self.clock.waiting_share
                self._bar.set_postfix_str(f"{rate:.0f} images/s, waiting {share:.0%}, loss {self._loss:.3f}", refresh=False)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        logs = logs or {}
        step = self.clock.step
        rate, share = self.clock.rate(self.batch_size), self.clock.waiting_share
        self.directory.write_metrics("epoch", step, {"epoch": epoch, **logs})
        self.directory.write_timings("epoch", step, {"epoch": epoch, "images_per_second": rate, "waiting_share": share})
        knn = f", kNN {logs['knn']:.3f}" if "knn" in logs else ""
        tqdm.write(f"epoch {epoch + 1}/{self.epochs}: loss {logs['loss']:.4f}{knn}, {rate:.0f} images/s, waiting {share:.0%}")
        sys.stdout.flush()

    def on_train_end(self, logs: dict | None = None) -> None:
        if self._bar is not None:
            self._bar.close()
