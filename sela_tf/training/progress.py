"""The progress of a training, for the person watching and in the run's files."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import keras
from tqdm import tqdm

from sela_tf.cli.signals import PassAborted, Stop
from sela_tf.compat.activity import Activity
from sela_tf.compat.releases import learning_rate_of
from sela_tf.models.inference import read_variable
from sela_tf.runs.workdir import Workdir
from sela_tf.self_labelling.callback import SelfLabelling
from sela_tf.self_labelling.label_pass import HeadLabels
from sela_tf.training.loop import Clock


class ShownLabelling(SelfLabelling):
    """A relabelling that shows a line on the terminal while it passes over the images and solves the transport, and that a signal ends."""

    stop: Stop | None = None
    """The requests of signals, where they are noted."""

    def relabel(self, step: int, *, only: Sequence[int] | None = None) -> list[HeadLabels]:
        with Activity("new labels: pass over the images, and transport"):
            # A worker that ended its pass alone would leave the others waiting: all stop after their next row.
            if self.stop is None or self.shards.count > 1:
                return super().relabel(step, only=only)
            # A pass in training mode puts the moving statistics back at its end, which a signal may come before.
            state = [(variable, read_variable(variable)) for variable in self.model.non_trainable_variables]
            try:
                with self.stop.ends_pass():
                    outcome = self.compute(step, only=only)
            except PassAborted:
                for variable, value in state:
                    variable.assign(value)
                raise
            self.write(step, outcome)
            return outcome


class Progress(keras.callbacks.Callback):
    """A Keras callback that shows a progress bar, prints a line an epoch, and writes the rows of the loss into the run's files.

    Args:
        epochs: the number of epochs of the whole training.
        batch_size: images of an optimizer step, over all devices.
        line_epochs: epochs between two lines.
        directory: the run's directory, which gets the rows.
        clock: the loop's clock, which knows the step and the times.
    """

    def __init__(self, epochs: int, batch_size: int, line_epochs: int, directory: Workdir, clock: Clock):
        super().__init__()
        self.epochs, self.batch_size, self.line_epochs = epochs, batch_size, line_epochs
        self.directory, self.clock = directory, clock
        self._bar: tqdm | None = None
        self._epoch = 0
        self._loss = float("nan")

    def on_train_begin(self, logs: dict | None = None) -> None:
        taken = self.clock.step
        # The bar is shown on a terminal only: a log file has the lines of the epochs.
        total = self.epochs * self.params["steps"]
        self._bar = tqdm(total=total, initial=taken, disable=None, unit="step", dynamic_ncols=True, smoothing=0.05, leave=False)

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self._epoch = epoch
        self.clock.waiting = self.clock.stepping = self.clock.steps = 0

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        if logs:
            self._loss = logs["loss"]
            step = self.clock.step
            row = {"epoch": self._epoch, **logs, "learning_rate": learning_rate_of(self.model.optimizer)}
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
        if (epoch + 1) % self.line_epochs and epoch + 1 < self.epochs:
            return
        knn = f", kNN {logs['knn']:.3f}" if "knn" in logs else ""
        tqdm.write(f"epoch {epoch + 1}/{self.epochs}: loss {logs['loss']:.4f}{knn}, {rate:.0f} images/s, waiting {share:.0%}")
        sys.stdout.flush()

    def on_train_end(self, logs: dict | None = None) -> None:
        if self._bar is not None:
            self._bar.close()
