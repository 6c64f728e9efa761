"""A run of sela_tf, its processor time measured; its length by a number of minutes."""

from __future__ import annotations

import dataclasses
import time
from typing import ClassVar

import keras

from sela_tf.models.build import cut_at_heads
from sela_tf.models.inference import BatchedInference
from sela_tf.runs.workdir import Workdir
from sela_tf.settings.training import SelaConfig
from sela_tf.training.devices import prepare_devices
from sela_tf.training.experiment import Experiment
from sela_tf.training.loop import step_function

_WARM_STEPS, _TIMED_STEPS = 5, 20


class ProcessorTime(keras.callbacks.Callback):
    """Measures the processor time of a training, its label passes included, without evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0

    def on_train_begin(self, logs: dict | None = None) -> None:
        self._start = time.process_time()

    def on_train_end(self, logs: dict | None = None) -> None:
        self.seconds = time.process_time() - self._start


class TimedExperiment(Experiment):
    """An experiment whose training is timed; there is one in a process."""

    timer: ClassVar[ProcessorTime] = ProcessorTime()

    def callbacks(self, directory: Workdir) -> list[keras.callbacks.Callback]:
        return [self.timer, *super().callbacks(directory)]


def fitted(config: SelaConfig, *, cpu_seconds: float) -> SelaConfig:
    """Returns the settings with as many epochs as fit into a processor time, by a few steps and a label pass that are tried."""
    experiment = Experiment(dataclasses.replace(config, epochs=_WARM_STEPS + _TIMED_STEPS), prepare_devices(config))
    chosen = experiment.config
    step = step_function(experiment.model, experiment.strategy, chosen.xla)
    batches = iter(experiment.views(0, _WARM_STEPS + _TIMED_STEPS))
    for _ in range(_WARM_STEPS):
        step(next(batches))
    start = time.process_time()
    for _ in range(_TIMED_STEPS):
        step(next(batches))
    step_seconds = (time.process_time() - start) / _TIMED_STEPS
    inference = BatchedInference(cut_at_heads(experiment.model), experiment.strategy)
    for number in range(2):
        start = time.process_time()
        inference.collect(experiment.label_views(number), len(experiment.data.train))
    label_pass_seconds = time.process_time() - start
    left = cpu_seconds - chosen.num_relabellings * label_pass_seconds
    return dataclasses.replace(chosen, epochs=max(1, round(left / (step_seconds * experiment.steps_per_epoch))))
