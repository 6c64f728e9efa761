"""Other ways to train, tried beside the library's own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from benchmarks.other_labels import start_heads_anew
from benchmarks.other_views import averaged
from benchmarks.own_images.sela import TimedExperiment
from sela_tf.self_labelling.callback import SelfLabelling
from sela_tf.self_labelling.label_pass import HeadLabels


class HeadsAnew(SelfLabelling):
    """Relabels, and begins the heads anew each time but the last, which is after training."""

    _in_training = False

    def on_train_begin(self, logs: dict | None = None) -> None:
        super().on_train_begin(logs)
        self._in_training = True

    def on_train_end(self, logs: dict | None = None) -> None:
        super().on_train_end(logs)
        self._in_training = False

    def write(self, step: int, outcome: list[HeadLabels]) -> None:
        super().write(step, outcome)
        if self._in_training:
            start_heads_anew(self.model, step)


class HeadsAnewExperiment(TimedExperiment):
    """A run whose heads begin anew at each relabelling."""

    def make_labelling(self, *args: Any, **options: Any) -> SelfLabelling:
        return super().make_labelling(HeadsAnew, *args, **options)


class AveragedExperiment(TimedExperiment):
    """A run that labels by the mean of the features of four views; with `label_view="training"`.

    The heads are linear, so that the mean of the logits is the mean of the log-probabilities but for a number of each image, which the
    transport does not see.
    """

    def make_labelling(self, *args: Any, **options: Any) -> SelfLabelling:
        return super().make_labelling(*args, features=averaged(self.label_views), batch_statistics=False, **options)


_TEACHER_DECAY = 0.99
_CROPS, _SHORTEST, _LONGEST = 2, 0.35, 0.7
"""Small crops of each view, and their sides as shares of the view's."""


class TeacherLabelling(SelfLabelling):
    """Relabels by a teacher: the same network with the moving average of the weights (decay .99 a step), heads included."""

    _average: list[tf.Variable] | None = None

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        super().on_train_batch_end(batch, logs)
        weights = [weight.value if hasattr(weight, "value") else weight for weight in self.model.weights]
        if self._average is None:
            self._average = [tf.Variable(weight, trainable=False) for weight in weights]
        self._move(weights)

    @functools.cached_property
    def _move(self) -> Callable[[list], None]:
        @tf.function
        def move(weights: list) -> None:
            for mean, weight in zip(self._average, weights, strict=True):
                if mean.dtype.is_floating:
                    mean.assign(_TEACHER_DECAY * mean + (1 - _TEACHER_DECAY) * tf.convert_to_tensor(weight))

        return move

    def relabel(self, step: int, *, only: Sequence[int] | None = None) -> list[HeadLabels]:
        if self._average is None:
            return super().relabel(step, only=only)
        own = self.model.get_weights()
        self.model.set_weights([np.asarray(mean) for mean in self._average])
        try:
            return super().relabel(step, only=only)
        finally:
            self.model.set_weights(own)


class TeacherExperiment(TimedExperiment):
    """A run that labels by an averaged teacher."""

    def make_labelling(self, *args: Any, **options: Any) -> SelfLabelling:
        return super().make_labelling(TeacherLabelling, *args, **options)


class MultiCropExperiment(TimedExperiment):
    """A run that also learns the labels from two small crops of each view, of half its side; on one device."""

    @functools.cached_property
    def take_step(self) -> Callable[[Any], dict[str, tf.Tensor]]:
        model = self.model
        height, width, channels = model.input.shape[1:]
        size = (height // 2, width // 2)
        small = keras.models.clone_model(model, input_tensors=keras.Input((*size, channels)), clone_function=lambda layer: layer)

        @tf.function
        def step(batch: Any) -> dict[str, tf.Tensor]:
            images, targets, weights = keras.utils.unpack_x_y_sample_weight(batch)
            count = tf.shape(images)[0]
            with tf.GradientTape() as tape:
                views = [(images, model(images, training=True))]
                for _ in range(_CROPS):
                    sides = tf.random.uniform([count], _SHORTEST, _LONGEST)
                    corners = tf.random.uniform([2, count]) * (1 - sides)
                    boxes = tf.stack([*tf.unstack(corners), corners[0] + sides, corners[1] + sides], axis=1)
                    crops = tf.image.crop_and_resize(images, boxes, tf.range(count), size)
                    views.append((crops, small(crops, training=True)))
                loss = tf.add_n(
                    [model.compute_loss(x=x, y=targets, y_pred=outputs, sample_weight=weights) for x, outputs in views]
                ) / len(views)
            variables = model.trainable_variables
            model.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
            return {"loss": loss, "heads_loss": loss, "rotation_loss": loss}

        return step


VARIANTS: dict[str, type[TimedExperiment]] = {
    "": TimedExperiment,
    "heads_anew": HeadsAnewExperiment,
    "averaged": AveragedExperiment,
    "teacher": TeacherExperiment,
    "multi_crop": MultiCropExperiment,
}
