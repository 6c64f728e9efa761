"""Labels without equal clusters: `python -m benchmarks.other_labels WAY --flagfile=FILE.cfg --workdir=DIR`, a run as sela_tf.train makes it.

argmax: at each relabelling an image gets the cluster that the network holds most likely; nothing keeps clusters equal.
kmeans: DeepCluster (arXiv 1807.05520, section 3). scikit-learn's k-means on what the heads see, by PCA reduced to 64 values and whitened, of
length 1; the heads and their momentum start anew, as one k-means' clusters are not the next one's; batches are drawn evenly over the clusters.
The new clusters get the numbers of the old that they have most images in common with, so that the share of labels that change means something.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import flags as absl_flags
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import confusion_matrix
from sklearn.preprocessing import normalize

from sela_tf.cli import flags
from sela_tf.data import augment
from sela_tf.data.pipeline import with_rotations
from sela_tf.models.heads import find_multi_head
from sela_tf.self_labelling.callback import SelfLabelling
from sela_tf.self_labelling.label_pass import HeadLabels
from sela_tf.settings.training import SelaConfig
from sela_tf.training.experiment import Experiment
from sela_tf.training.images import augmentation
from sela_tf.training.run import run
from sela_tf.transport.assignment import Assignment
from sela_tf.transport.linear_logits import LinearLogits

_COMPONENTS = 64


def argmax(logits: LinearLogits, *, initial_potentials: np.ndarray | None = None) -> Assignment:
    """The cluster of the largest logit."""
    labels = np.concatenate([tf.argmax(block, axis=1).numpy() for _, block in logits.blocks()])
    return Assignment(labels, np.zeros(logits.kernel.shape[1], np.float32))


class ArgmaxExperiment(Experiment):
    def make_labelling(self, *args: Any, **options: Any) -> SelfLabelling:
        return super().make_labelling(*args, assign=argmax, **options)


def deep_clusters(features: np.ndarray, num_clusters: int, *, seed: int) -> np.ndarray:
    """Clusters int [N] of features [N, D]."""
    components = min(_COMPONENTS, features.shape[1])
    reduced = normalize(PCA(components, whiten=True, random_state=seed).fit_transform(features))
    return KMeans(num_clusters, n_init=1, random_state=seed).fit_predict(reduced)


def renumbered(clusters: np.ndarray, before: np.ndarray, num_clusters: int) -> np.ndarray:
    """The same clusters [N], numbered so that as many as possible of the labels `before` [N] stay: k-means numbers them at random."""
    common = confusion_matrix(clusters, before, labels=np.arange(num_clusters))
    return linear_sum_assignment(common, maximize=True)[1][clusters]


def start_heads_anew(model: keras.Model, step: int) -> None:
    """Draws the heads' weights again, and forgets their momentum."""
    heads, optimizer = find_multi_head(model), model.optimizer
    random = keras.initializers.RandomNormal(stddev=0.01, seed=step)
    heads.kernel.assign(random(heads.kernel.shape))
    heads.bias.assign(tf.zeros(heads.bias.shape))
    own = {id(variable) for variable in heads.trainable_variables}
    for variable, velocity in zip(model.trainable_variables, optimizer.velocities, strict=True):
        if id(variable) in own:
            velocity.assign(tf.zeros(velocity.shape))


class DeepCluster(SelfLabelling):
    """Labels by k-means; batches must come from `even_views`."""

    def __init__(self, *args: Any, assign: object, **options: Any):
        super().__init__(*args, assign=self._clusters, **options)
        self._in_training = False
        self._clustered = np.empty((0, 0), np.float32)

    def on_train_begin(self, logs: dict | None = None) -> None:
        super().on_train_begin(logs)
        self._in_training = True

    def on_train_end(self, logs: dict | None = None) -> None:
        self._in_training = False

    def write(self, step: int, outcome: list[HeadLabels]) -> None:
        """The last time, after training, the heads stay. Otherwise `objective_after` is that of the new ones, which know nothing."""
        if self._in_training:
            start_heads_anew(self.model, step)
            outcome = [head._replace(metrics={**head.metrics, "objective_after": self._objective(head)}) for head in outcome]
        super().write(step, outcome)

    def _clusters(self, logits: LinearLogits, *, initial_potentials: np.ndarray | None) -> Assignment:
        self._clustered = np.asarray(logits.features)
        seed = int(self.labels.num_relabellings[0])
        clusters = deep_clusters(self._clustered, self.labels.num_clusters, seed=seed)
        clusters = renumbered(clusters, self.labels.labels[0], self.labels.num_clusters)
        return Assignment(clusters, np.zeros(self.labels.num_clusters, np.float32))

    def _objective(self, head: HeadLabels) -> float:
        logits = find_multi_head(self.model).head_logits(tf.constant(self._clustered), head.head)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(head.assignment.labels, logits)
        return float(tf.reduce_mean(losses))


class DeepClusterExperiment(Experiment):
    def make_labelling(self, *args: Any, **options: Any) -> SelfLabelling:
        return super().make_labelling(DeepCluster, *args, **options)

    def views(self, first_step: int, last_step: int, *, batch_size: int | None = None) -> tf.data.Dataset:
        return even_views(self, range(first_step, last_step), batch_size or self.config.batch_size)


def even_views(experiment: Experiment, steps: range, batch_size: int) -> tf.data.Dataset:
    """Training views whose clusters are equally likely, and within a cluster its images; of images of one size, in memory.

    A batch is drawn when it is asked for, so that the first after a relabelling is drawn by the labels of before.
    """
    num_images = experiment.labels.num_examples

    def draw(step: int) -> np.ndarray:
        labels = experiment.labels.labels[0]
        weights = 1.0 / np.bincount(labels)[labels]
        rng = np.random.default_rng([experiment.config.seed, step])
        return rng.choice(num_images, batch_size, p=weights / weights.sum())

    return drawn_views(experiment, draw, steps, batch_size)


def drawn_views(experiment: Experiment, draw: Callable[[int], np.ndarray], steps: range, batch_size: int) -> tf.data.Dataset:
    """Training views, with turns where the settings have them, of the images whose `batch_size` indices `draw` gives for each step.

    Not by sela_tf's own batches, which are drawn ahead: `draw` may go by labels that change.
    """
    config, data, replicas = experiment.config, experiment.data, experiment.strategy.num_replicas_in_sync
    if data.train.images is None:
        raise ValueError(f"Images must lie in memory. Received: {data.train.name}")
    pixels, views = data.train.arrays.tensor, augmentation(config)
    aspect = pixels.shape[2] / pixels.shape[1]

    def batch(step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        indices = tf.ensure_shape(tf.numpy_function(lambda number: draw(int(number)), [step], tf.int64), [batch_size])
        draws = tf.random.stateless_uniform([batch_size, augment.NUM_DRAWS], seed=[config.seed, step], alg="philox")
        aspects = tf.fill([batch_size], tf.constant(aspect, tf.float32))
        boxes = augment.crop_boxes(draws, aspects, views, target_aspect=data.size[1] / data.size[0])
        crops = augment.crop_batch(pixels, indices, boxes, data.size)
        crops = tf.ensure_shape(crops, [batch_size, *data.size, data.train.channels])
        return augment.recolour(crops, draws, views), indices

    batches = tf.data.Dataset.range(steps.start, steps.stop).map(batch)
    return with_rotations(batches, share=config.rotation_share, replicas=replicas) if config.rotation else batches


def main(usage: str | None, ways: Mapping[str, Callable[[SelaConfig, str], object]]) -> None:
    """Trains in the way that the first argument names."""
    if sys.argv[1:2] not in [[way] for way in ways]:
        sys.exit(usage)
    values = absl_flags.FlagValues()
    flags.define(values, SelaConfig)
    absl_flags.DEFINE_string("workdir", None, "Directory of the run.", flag_values=values)
    flags.parse(values, sys.argv[1:])
    ways[sys.argv[1]](flags.settings(values, SelaConfig), values["workdir"].value)


if __name__ == "__main__":
    main(
        __doc__,
        {
            "argmax": functools.partial(run, experiment_of=ArgmaxExperiment),
            "kmeans": functools.partial(run, experiment_of=DeepClusterExperiment),
        },
    )
