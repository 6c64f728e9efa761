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
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from absl import flags as absl_flags
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import confusion_matrix
from sklearn.preprocessing import normalize

from sela_tf import flags
from sela_tf.config import SelaConfig
from sela_tf.data import augment
from sela_tf.data.pipeline import with_rotations
from sela_tf.models.features import FeatureExtractor
from sela_tf.models.heads import find_multi_head
from sela_tf.parts import Data, augmentation
from sela_tf.self_labelling.callback import SelfLabelling
from sela_tf.self_labelling.label_pass import HeadLabels, cut_at_heads
from sela_tf.self_labelling.label_table import LabelTable
from sela_tf.trainer import run

_COMPONENTS = 64


class Labels(NamedTuple):
    """An assignment that no transport made."""

    labels: np.ndarray
    potentials: np.ndarray
    converged: bool = True


def argmax(log_probs: np.ndarray, *, initial_potentials: np.ndarray | None = None) -> Labels:
    """Of each row of [N, K]."""
    return Labels(np.argmax(log_probs, axis=1), np.zeros(log_probs.shape[1], np.float32))


def argmax_labelling(*args: Any, assign: object, **options: Any) -> SelfLabelling:
    """Takes the place of SelfLabelling in a run, and of the transport."""
    return SelfLabelling(*args, assign=argmax, **options)


def deep_clusters(features: np.ndarray, num_clusters: int, *, seed: int) -> np.ndarray:
    """Clusters int [N] of features [N, D]."""
    components = min(_COMPONENTS, features.shape[1])
    reduced = normalize(PCA(components, whiten=True, random_state=seed).fit_transform(features))
    return KMeans(num_clusters, n_init=1, random_state=seed).fit_predict(reduced)


def renumbered(clusters: np.ndarray, before: np.ndarray, num_clusters: int) -> np.ndarray:
    """The same clusters [N], numbered so that as many as possible of the labels `before` [N] stay: k-means numbers them at random."""
    common = confusion_matrix(clusters, before, labels=np.arange(num_clusters))
    return linear_sum_assignment(common, maximize=True)[1][clusters]


class DeepCluster(SelfLabelling):
    """Labels by k-means; batches must come from `even_views`."""

    def __init__(self, *args: Any, assign: object, **options: Any):
        super().__init__(*args, assign=self._clusters, **options)
        self._in_training = False

    def on_train_begin(self, logs: dict | None = None) -> None:
        super().on_train_begin(logs)
        self._seen = _Remembering(cut_at_heads(self.model))
        self._extractor = self._seen
        self._in_training = True

    def on_train_end(self, logs: dict | None = None) -> None:
        self._in_training = False

    def write(self, step: int, outcome: list[HeadLabels]) -> None:
        """The last time, after training, the heads stay. Otherwise `objective_after` is that of the new ones, which know nothing."""
        if self._in_training:
            self._start_heads_anew(step)
            outcome = [head._replace(metrics={**head.metrics, "objective_after": self._objective(head)}) for head in outcome]
        super().write(step, outcome)

    def _clusters(self, log_probs: np.ndarray, *, initial_potentials: np.ndarray | None) -> Labels:
        seed = int(self.labels.num_relabellings[0])
        clusters = deep_clusters(self._seen.features, self.labels.num_clusters, seed=seed)
        clusters = renumbered(clusters, self.labels.labels[0], self.labels.num_clusters)
        return Labels(clusters, np.zeros(log_probs.shape[1], np.float32))

    def _start_heads_anew(self, step: int) -> None:
        heads, optimizer = find_multi_head(self.model), self.model.optimizer
        random = keras.initializers.RandomNormal(stddev=0.01, seed=step)
        heads.kernel.assign(random(heads.kernel.shape))
        heads.bias.assign(tf.zeros(heads.bias.shape))
        own = {id(variable) for variable in heads.trainable_variables}
        for variable, velocity in zip(self.model.trainable_variables, optimizer.velocities, strict=True):
            if id(variable) in own:
                velocity.assign(tf.zeros(velocity.shape))

    def _objective(self, head: HeadLabels) -> float:
        logits = find_multi_head(self.model).head_logits(tf.constant(self._seen.features), head.head)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(head.assignment.labels, logits)
        return float(tf.reduce_mean(losses))


class _Remembering(FeatureExtractor):
    """Keeps what the last pass collected."""

    features: np.ndarray

    def collect(self, batches: tf.data.Dataset, num_examples: int, *, batch_statistics: bool = False) -> np.ndarray:
        self.features = super().collect(batches, num_examples, batch_statistics=batch_statistics)
        return self.features


def even_views(
    labels_of: Callable[[], LabelTable],
    config: SelaConfig,
    data: Data,
    *,
    batch_size: int,
    first_step: int,
    last_step: int,
    replicas: int = 1,
) -> tf.data.Dataset:
    """Training views whose clusters are equally likely, and within a cluster its images; of images of one size, in memory.

    A batch is drawn when it is asked for, so that the first after a relabelling is drawn by the labels of before.
    """
    num_images = len(data.train)

    def draw(step: int) -> np.ndarray:
        labels = labels_of().labels[0]
        weights = 1.0 / np.bincount(labels)[labels]
        rng = np.random.default_rng([config.seed, step])
        return rng.choice(num_images, batch_size, p=weights / weights.sum())

    return drawn_views(config, data, draw, batch_size=batch_size, steps=range(first_step, last_step), replicas=replicas)


def drawn_views(
    config: SelaConfig, data: Data, draw: Callable[[int], np.ndarray], *, batch_size: int, steps: range, replicas: int = 1
) -> tf.data.Dataset:
    """Training views, with turns where the settings have them, of the images whose `batch_size` indices `draw` gives for each step.

    Not by sela_tf's own batches, which are drawn ahead: `draw` may go by labels that change.
    """
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


def train_by_kmeans(config: SelaConfig, workdir: str) -> dict[str, Any]:
    """A whole run; returns what its results.json holds."""
    made: list[SelfLabelling] = []

    def labelling_of(*args: Any, **options: Any) -> SelfLabelling:
        made.append(DeepCluster(*args, **options))
        return made[0]

    return run(config, workdir, labelling_of=labelling_of, views_of=functools.partial(even_views, lambda: made[0].labels))


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
    main(__doc__, {"argmax": functools.partial(run, labelling_of=argmax_labelling), "kmeans": train_by_kmeans})
