"""Other views to label and to learn by: `python -m benchmarks.other_views WAY --flagfile=FILE.cfg --workdir=DIR`, a run as sela_tf.train makes it.

averaged: labels by the mean of an image's features in four training views, in inference mode.
bank: after the first epoch labels by the features that training itself had of each image when it last came by, without a pass over the images
(SeLa-v2, appendix of arXiv 2006.09882).
pairs: a batch of half as many images, each in two training views.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from benchmarks.other_labels import drawn_views, main
from sela_tf.models.heads import find_multi_head
from sela_tf.self_labelling.callback import SelfLabelling
from sela_tf.settings.training import SelaConfig
from sela_tf.training.experiment import Experiment
from sela_tf.training.run import run

_VIEWS = 4
# beyond all steps, by which other passes are numbered
_OTHER_PASSES = 2**32

Collect = Callable[[tf.data.Dataset], np.ndarray]
"""A pass of the network over a data set of (image, index): features [N, D]."""


def averaged(views_of: Callable[[int], tf.data.Dataset]) -> Callable[[int, Collect], np.ndarray]:
    """For `SelfLabelling(features=…)`: the mean of the features of several views, of the step's and of others."""
    passes = itertools.count(_OTHER_PASSES + 1)

    def features(step: int, collect: Collect) -> np.ndarray:
        pass_numbers = [step, *itertools.islice(passes, _VIEWS - 1)]
        return sum(collect(views_of(pass_number)) for pass_number in pass_numbers) / _VIEWS

    return features


class AveragedExperiment(Experiment):
    def make_labelling(self, *args: Any, **options: Any) -> SelfLabelling:
        return super().make_labelling(*args, features=averaged(self.label_views), batch_statistics=False, **options)


class Bank:
    """The features [N, D] of all images when training last saw them; of an epoch's left-over images those of an earlier epoch, or of a pass.

    Args:
        num_examples: N.
        width: D.
        batch_size: so many views of a batch count, the first; those behind are turned.
        steps_per_epoch: labels of the first epoch come from a pass.
        views_of: the views of a pass, by its number.
    """

    def __init__(
        self,
        num_examples: int,
        width: int,
        *,
        batch_size: int,
        steps_per_epoch: int,
        views_of: Callable[[int], tf.data.Dataset],
    ):
        self.values = tf.Variable(tf.zeros([num_examples, width]), trainable=False)
        self.loss = _Noting(self.values, batch_size)
        self._steps_per_epoch, self._views_of = steps_per_epoch, views_of
        self._passed = False

    def watched(self, model: keras.Model) -> keras.Model:
        """`model` with the output "features" besides "heads", compiled as it was; what comes by is noted by a loss that is always 0."""
        heads = find_multi_head(model)
        outputs = model.output if isinstance(model.output, dict) else {"heads": model.output}
        losses = model.loss if isinstance(model.loss, dict) else {"heads": model.loss}
        watched = keras.Model(model.input, {**outputs, "features": heads.input}, name=model.name)
        watched.compile(model.optimizer, loss={**losses, "features": self.loss}, jit_compile=False)
        return watched

    def features(self, step: int, collect: Collect) -> np.ndarray:
        """For `SelfLabelling(features=…)`."""
        # of a run that is continued, the bank is empty
        if not self._passed or step < self._steps_per_epoch:
            self.values.assign(collect(self._views_of(step)))
            self._passed = True
        return self.values.numpy()


class _Noting(keras.losses.Loss):
    """Writes predictions into rows of a variable, by the index that stands for the target."""

    def __init__(self, values: tf.Variable, batch_size: int):
        # Keras hands the index over as a float of the loss's dtype
        super().__init__(dtype="float64")
        self._values, self._batch_size = values, batch_size

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        indices = tf.cast(tf.reshape(y_true, [-1])[: self._batch_size], tf.int64)
        self._values.scatter_update(tf.IndexedSlices(tf.cast(y_pred[: self._batch_size], tf.float32), indices))
        return tf.zeros(tf.shape(y_pred)[:1])


def with_features(batches: tf.data.Dataset) -> tf.data.Dataset:
    """Batches for a watched model: the indices are the target of the features as well."""

    def note(images: tf.Tensor, targets: Any, weights: Any = None) -> tuple:
        targets = targets if isinstance(targets, dict) else {"heads": targets}
        weights = weights or {"heads": tf.ones(tf.shape(targets["heads"]))}
        targets, weights = ({**each, "features": each["heads"]} for each in (targets, weights))
        return images, targets, weights

    return batches.map(note)


class BankExperiment(Experiment):
    """A run on one device."""

    bank: Bank

    def make_model(self) -> keras.Model:
        model = super().make_model()
        width = find_multi_head(model).input.shape[-1]
        self.bank = Bank(
            self.labels.num_examples,
            width,
            batch_size=self.config.batch_size,
            steps_per_epoch=self.steps_per_epoch,
            views_of=self.label_views,
        )
        return self.bank.watched(model)

    def make_labelling(self, *args: Any, **options: Any) -> SelfLabelling:
        return super().make_labelling(*args, features=self.bank.features, **options)

    def views(self, first_step: int, last_step: int, *, batch_size: int | None = None) -> tf.data.Dataset:
        return with_features(super().views(first_step, last_step, batch_size=batch_size))


def pairs(num_images: int, batch_size: int, *, seed: int) -> Callable[[int], np.ndarray]:
    """A function from the step to indices [batch_size], half of them and these again; a permutation of all images an epoch."""
    half = batch_size // 2
    steps_per_epoch = num_images // half

    @functools.lru_cache(maxsize=2)
    def order(epoch: int) -> np.ndarray:
        return np.random.default_rng([seed, epoch]).permutation(num_images)

    def draw(step: int) -> np.ndarray:
        epoch, position = divmod(step, steps_per_epoch)
        return np.tile(order(epoch)[position * half : (position + 1) * half], 2)

    return draw


class PairsExperiment(Experiment):
    def views(self, first_step: int, last_step: int, *, batch_size: int | None = None) -> tf.data.Dataset:
        size = batch_size or self.config.batch_size
        draw = pairs(self.labels.num_examples, size, seed=self.config.seed)
        return drawn_views(self, draw, range(first_step, last_step), size)


def _averaged(config: SelaConfig, workdir: str) -> dict[str, Any]:
    return run(dataclasses.replace(config, label_view="training"), workdir, experiment_of=AveragedExperiment)


if __name__ == "__main__":
    main(
        __doc__,
        {
            "averaged": _averaged,
            "bank": functools.partial(run, experiment_of=BankExperiment),
            "pairs": functools.partial(run, experiment_of=PairsExperiment),
        },
    )
