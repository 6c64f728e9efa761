"""Other views to label and to learn by: `python -m benchmarks.other_views WAY --flagfile=FILE.cfg --workdir=DIR`, a run as sela_tf.train makes it.

averaged: labels by the mean of an image's features in four training views, in inference mode.
bank: after the first epoch labels by the features that training itself had of each image when it last came by, without a pass over the images
(SeLa-v2, appendix of arXiv 2006.09882).
pairs: a batch of half as many images, each in two training views.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from benchmarks.other_labels import drawn_views, main
from sela_tf.config import SelaConfig
from sela_tf.models.features import FeatureExtractor, steps_taken
from sela_tf.models.heads import find_multi_head
from sela_tf.parts import Data
from sela_tf.self_labelling.callback import SelfLabelling
from sela_tf.self_labelling.label_pass import cut_at_heads
from sela_tf.trainer import run

_VIEWS = 4


class AveragedLabelling(SelfLabelling):
    """Takes the place of SelfLabelling in a run with --label_view=training."""

    def __init__(self, *args: Any, batch_statistics: bool, **options: Any):
        super().__init__(*args, **options)

    def on_train_begin(self, logs: dict | None = None) -> None:
        super().on_train_begin(logs)
        self._extractor = _MeanOfViews(cut_at_heads(self.model), self.inference_dataset)


class _MeanOfViews(FeatureExtractor):
    """Of the views that are given, and of others."""

    def __init__(self, model: keras.Model, views_of: Callable[[int], tf.data.Dataset]):
        super().__init__(model)
        self._views_of, self._number = views_of, 2**32  # beyond all steps, by which other passes are numbered

    def collect(self, batches: tf.data.Dataset, num_examples: int, *, batch_statistics: bool = False) -> np.ndarray:
        total = super().collect(batches, num_examples, batch_statistics=batch_statistics)
        for _ in range(1, _VIEWS):
            self._number += 1
            total += super().collect(self._views_of(self._number), num_examples, batch_statistics=batch_statistics)
        return total / _VIEWS


class BankLabelling(SelfLabelling):
    """Takes the place of SelfLabelling in a run on one device; `batch_size` views of a batch are not turned, and come first."""

    def __init__(self, *args: Any, batch_size: int, **options: Any):
        super().__init__(*args, **options)
        self._batch_size = batch_size

    def on_train_begin(self, logs: dict | None = None) -> None:
        super().on_train_begin(logs)
        self._extractor = _Bank(self.model, self.labels.num_examples, self._batch_size)


class _Bank(FeatureExtractor):
    """The features of all images when training last saw them; of an epoch's left-over images those of an earlier epoch, or of a pass."""

    def __init__(self, model: keras.Model, num_examples: int, batch_size: int):
        super().__init__(cut_at_heads(model))
        self._trained, self._steps_per_epoch = model, num_examples // batch_size
        self._passed = False
        heads = find_multi_head(model)
        self.bank = bank = tf.Variable(tf.zeros([num_examples, heads.input.shape[-1]]), trainable=False)
        loss = model.loss["heads"] if isinstance(model.loss, dict) else model.loss
        forward, loss_of = heads.call, loss.call
        seen: list[tf.Tensor] = []

        def heads_call(features: tf.Tensor) -> tf.Tensor:
            seen[:] = [features]
            return forward(features)

        # a layer does not know which images it is shown, the loss does; both are traced in one step, the layer first
        def loss_call(y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
            indices = tf.cast(tf.reshape(y_true, [-1])[:batch_size], tf.int64)
            bank.scatter_update(tf.IndexedSlices(tf.cast(seen[0][:batch_size], tf.float32), indices))
            return loss_of(y_true, y_pred)

        heads.call, loss.call = heads_call, loss_call

    def collect(self, batches: tf.data.Dataset, num_examples: int, *, batch_statistics: bool = False) -> np.ndarray:
        # of a run that is continued, the bank is empty
        if self._passed and steps_taken(self._trained) >= self._steps_per_epoch:
            return self.bank.numpy()
        features = super().collect(batches, num_examples, batch_statistics=batch_statistics)
        self.bank.assign(features)
        self._passed = True
        return features


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


def pairs_of_views(
    config: SelaConfig, data: Data, *, batch_size: int, first_step: int, last_step: int, replicas: int = 1
) -> tf.data.Dataset:
    """Takes the place of training_views in a run."""
    draw = pairs(len(data.train), batch_size, seed=config.seed)
    return drawn_views(config, data, draw, batch_size=batch_size, steps=range(first_step, last_step), replicas=replicas)


def _averaged(config: SelaConfig, workdir: str) -> dict[str, Any]:
    return run(dataclasses.replace(config, label_view="training"), workdir, labelling_of=AveragedLabelling)


def _bank(config: SelaConfig, workdir: str) -> dict[str, Any]:
    return run(config, workdir, labelling_of=functools.partial(BankLabelling, batch_size=config.batch_size))


if __name__ == "__main__":
    main(__doc__, {"averaged": _averaged, "bank": _bank, "pairs": functools.partial(run, views_of=pairs_of_views)})
