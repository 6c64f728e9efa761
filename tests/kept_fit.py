"""A `fit` with `sela_tf.Checkpoint`, in the process of a test or, as a program, in one that is killed: python kept_fit.py DIRECTORY OUT [MOMENT]."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import signal
import sys
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from user_model import K, N, T, by_argmax

import sela_tf
from sela_tf.compat.releases import IS_KERAS_3, optimizer_variables
from sela_tf.models.inference import read_variable

BATCH, EPOCHS = 16, 4
STEPS = N // BATCH
VALUES = np.random.default_rng(3).normal(size=(N, 6)).astype(np.float32)
if not IS_KERAS_3:
    keras.backend.experimental.enable_tf_random_generator()


def batches_of(epoch: tf.Tensor) -> tf.data.Dataset:
    order = tf.random.experimental.stateless_shuffle(tf.range(N), seed=[0, epoch])
    return tf.data.Dataset.from_tensor_slices(order).map(lambda index: (tf.gather(VALUES, index), index)).batch(BATCH)


class Luck(keras.callbacks.Callback):
    """Draws from NumPy's global generator, lowers the learning rate after the second epoch, and does `at` at a batch of an epoch."""

    def __init__(self, at=None, do=None):
        super().__init__()
        self.at, self.do, self.epoch = at, do, -1

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == self.at:
            self.do(self.model)

    def on_epoch_end(self, epoch, logs=None):
        logs["luck"] = np.random.random()
        if epoch == 1:
            self.model.optimizer.learning_rate = 0.02


class Fit(NamedTuple):
    model: keras.Model
    labels: sela_tf.LabelTable
    checkpoint: sela_tf.Checkpoint
    callbacks: list
    """Callbacks before the checkpoint, which are its parts."""

    def contents(self) -> dict[str, Any]:
        """Everything that a stop must not change, by name."""
        digest = {
            name: [hashlib.sha256(read_variable(each).tobytes()).hexdigest() for each in variables]
            for name, variables in (("model", self.model.variables), ("optimizer", optimizer_variables(self.model.optimizer)))
        }
        table = {name: hashlib.sha256(value.tobytes()).hexdigest() for name, value in self.labels.state().items()}
        rate = float(tf.convert_to_tensor(self.model.optimizer.learning_rate))
        monitors = [{name: value.tolist() for name, value in each.state().items()} for each in self.callbacks[1:]]
        found = {**digest, "table": table, "rate": rate, "logs": self.checkpoint.logs, "monitors": monitors}
        return json.loads(json.dumps(found))


def make(directory: pathlib.Path, *, optimizer=None, labels=None, width=8, dropout=True, monitors=False, **options) -> Fit:
    """A model before its `fit`, with its callbacks; without monitors it runs eagerly, because tracing takes longer than these few steps."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6,))
    x = keras.layers.BatchNormalization()(keras.layers.Dense(width, activation="relu")(inputs))
    model = keras.Model(inputs, sela_tf.MultiHead(T, K)(keras.layers.Dropout(0.3)(x) if dropout else x))
    labels = labels or sela_tf.LabelTable(T, K, N, seed=2)
    loss = sela_tf.SelfLabelLoss(labels)
    model.compile(optimizer or keras.optimizers.SGD(0.05, momentum=0.9), loss=loss, **{"run_eagerly": not monitors, **options})
    every = tf.data.Dataset.from_tensor_slices((VALUES, np.arange(N))).batch(48)
    steps = [0, 7, 15, 22]
    callbacks = [sela_tf.SelfLabelling(labels, every, relabel_steps=steps, assign=None if monitors else by_argmax)]
    if monitors:
        doctor = sela_tf.CollapseDoctor(labels, sample=every, relabel_steps=steps, verbose=0, min_changed=0.9)
        callbacks += [doctor, sela_tf.ClusterMonitor(labels, directory / "tensorboard", sample=every)]
    return Fit(model, labels, sela_tf.Checkpoint(directory / "saves", callbacks), callbacks)


def train(made: Fit, *others: keras.callbacks.Callback, data: tf.data.Dataset | None = None, **options) -> Fit:
    """Trains a model that `make` gave from the newest save on, with further callbacks."""
    first = made.checkpoint.epoch
    options = {"epochs": EPOCHS, "initial_epoch": first, "steps_per_epoch": STEPS, **options}
    batches = tf.data.Dataset.counter(first).flat_map(batches_of) if data is None else data
    callbacks = [*made.callbacks, *others, made.checkpoint]
    made.model.fit(batches, shuffle=False, verbose=0, callbacks=callbacks, **options)
    return made


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at_call(name: str, number: int) -> None:
    """Kills this process before the call of this number, from 1, of a function of `os`."""
    original, calls = getattr(os, name), iter(range(1, 10**6))

    def counted(*args: Any, **kwargs: Any) -> Any:
        return die() if next(calls) == number else original(*args, **kwargs)

    setattr(os, name, counted)


if __name__ == "__main__":
    directory, out, *moment = sys.argv[1:]
    kind, first, second = f"{[*moment, 'none'][0]}:0:0".split(":")[:3]
    if kind in ("fsync", "rename"):
        die_at_call(kind, int(first))
    strategy = tf.distribute.get_strategy()
    if "TWO_DEVICES" in os.environ:
        (cpu,) = tf.config.list_physical_devices("CPU")
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
        strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        made = make(pathlib.Path(directory), monitors=True, jit_compile=False)
    finished = train(made, Luck((int(first), int(second)) if kind == "batch" else None, die))
    if kind == "end":
        die()
    pathlib.Path(out).write_text(json.dumps(finished.contents()))
