"""The table of the labels of all images under every head, which the loss reads and the callback rewrites."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from sela_tf.files.archives import write_npz

_SIDE, _REMAINDERS = 64, 4093
"""Side of the square of counters of the lookups, and the number of counters in use. Lookups are counted by the remainder of their index,
modulo the largest prime that the square holds, so that no stride of the indices misses most remainders."""

_FEW = 16
"""The ratio above which the looked-up indices are taken for class labels: the number of different indices that uniform draws with
replacement would have met, over the number that were met.

Class labels have a ratio of 19 on CUB-200 (200 classes, 5,994 images), and of 300 on CIFAR-100. Draws that take nine tenths of their images
from a hundredth of the set have a ratio of 6.
"""

_SMALL = 4
"""Bound on the largest index, as a multiple of the number of different indices, below which few indices are class labels. The indices of
the same few images in every epoch, as in a test that overfits one batch, are spread over the table."""


class LabelTable(tf.train.experimental.PythonState):
    """The labels of T heads and N images in a TensorFlow variable, int64, so that a compiled training step sees a relabelling at once.

    The initial labels are those of the reference code, i mod K, permuted for each head; or `initial`. A table that is made in a strategy's
    scope has its labels on each device. `tf.train.Checkpoint(labels=table)` saves and restores all of `state`, and so do the weights files
    of a model that is compiled with `SelfLabelLoss`.

    Args:
        num_heads: the number T of heads, at least 1.
        num_clusters: the number K of clusters, at least 2.
        num_examples: the number N of images, at least K.
        seed: the seed of the permutations.
        initial: labels to start from instead, integers [T, N] from 0 to K - 1.

    Raises:
        ValueError: a number is out of range, or `initial` has another shape or range.
    """

    def __init__(self, num_heads: int, num_clusters: int, num_examples: int, *, seed: int = 0, initial: np.ndarray | None = None):
        if num_heads < 1:
            raise ValueError(f"`num_heads` must be at least 1. Received: num_heads={num_heads}")
        if num_clusters < 2:
            raise ValueError(f"`num_clusters` must be at least 2. Received: num_clusters={num_clusters}")
        if num_examples < num_clusters:
            raise ValueError(
                "`num_clusters` must not exceed the number of images, or clusters would stay empty. "
                f"Received: num_clusters={num_clusters}, num_examples={num_examples}"
            )
        self.num_heads, self.num_clusters, self.num_examples = num_heads, num_clusters, num_examples
        if initial is None:
            random = np.random.default_rng([seed, num_clusters])
            initial = np.stack([random.permutation(np.arange(num_examples) % num_clusters) for _ in range(num_heads)])
        initial = np.asarray(initial)
        if initial.shape != (num_heads, num_examples) or initial.dtype.kind not in "iu":
            raise ValueError(f"`initial` must be integers {(num_heads, num_examples)}. Received: {initial.dtype} {initial.shape}")
        if initial.min() < 0 or initial.max() >= num_clusters:
            raise ValueError(f"`initial` must be from 0 to {num_clusters - 1}. Received: {initial.min()} to {initial.max()}")
        # The variable is int64, because XLA on a GPU refuses int32 variables, which TensorFlow places on the CPU. Its shape is [N, T],
        # because rows are gathered where the variable is; along another axis TensorFlow reads the whole variable first, and sends it to
        # a replica that has none. The aggregation only matters for a table that is made inside a strategy's scope.
        first = tf.VariableAggregation.ONLY_FIRST_REPLICA
        self._variable = tf.Variable(initial.T, dtype=tf.int64, trainable=False, aggregation=first, name="labels")
        self._outside = tf.Variable(0, dtype=tf.int64, trainable=False, aggregation=first, name="index_outside")
        self._largest = tf.Variable(0, dtype=tf.int64, trainable=False, aggregation=first, name="largest_index")
        # Each replica counts for itself, as the metrics of Keras do.
        self._draws = tf.Variable(
            tf.zeros([_SIDE, _SIDE]),
            trainable=False,
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=tf.VariableAggregation.SUM,
            name="draws",
        )
        self.potentials = np.zeros((num_heads, num_clusters), np.float32)
        """Potentials log alpha of each head's last transport, float32 [T, K]; 0 before its first."""
        self.lam = np.full(num_heads, np.nan, np.float32)
        """Value of lam in the transport that found each head's potentials, float32 [T]; NaN where it is not known, as before the first
        relabelling."""
        self.num_changes = np.zeros((num_heads, num_examples), np.int64)
        """Number of relabellings that changed each label, int64 [T, N]; the replacement of the initial labels is not counted."""
        self.num_relabellings = np.zeros(num_heads, np.int64)
        """Number of relabellings of each head, int64 [T]."""

    @property
    def labels(self) -> np.ndarray:
        """A copy of the labels, int64 [T, N]."""
        return np.ascontiguousarray(self._variable.numpy().T)

    @property
    def index_outside(self) -> int | None:
        """An index outside 0 … N - 1 that was looked up since `forget_lookups`, or None."""
        value = int(self._outside.numpy())
        return None if 0 <= value < self.num_examples else value

    @property
    def num_drawn(self) -> int:
        """Number of lookups of an example since `forget_lookups`, repeated ones included."""
        return int(tf.reduce_sum(tf.convert_to_tensor(self._draws)))

    @property
    def few_indices(self) -> int | None:
        """The number of different indices looked up since `forget_lookups`, if they are too few and small to be example indices; else None.

        Example indices are drawn in permutations, with replacement, oversampled, or a part of them in each epoch; class labels are the same
        few small numbers in every batch. The number is an estimate by linear counting (Whang et al. 1990), good up to a few thousand.
        """
        met = int(np.count_nonzero(tf.convert_to_tensor(self._draws)))
        if met == _REMAINDERS:
            return None
        different = -_REMAINDERS * math.log1p(-met / _REMAINDERS)
        expected = self.num_examples * -math.expm1(-self.num_drawn / self.num_examples)
        are_small = int(self._largest.numpy()) < _SMALL * different
        return round(different) if different * _FEW < expected and are_small else None

    def forget_lookups(self) -> None:
        """Forgets the indices looked up so far, so that a later failure is not blamed on them."""
        self._outside.assign(0)
        self._largest.assign(0)
        self._draws.assign(tf.zeros([_SIDE, _SIDE]))

    def lookup(self, index: tf.Tensor) -> tf.Tensor:
        """Returns the labels int64 [B, T] of the examples `index` int64 [B]; -1 where an index lies outside the table.

        Under XLA a gather out of bounds returns a plausible label, and assertions have no effect: hence -1, and `index_outside`.
        """
        inside = (index >= 0) & (index < self.num_examples)
        stray = tf.gather(index, tf.argmin(tf.cast(inside, tf.int32), axis=0))
        self._outside.assign(tf.where(tf.reduce_all(inside), self._outside.read_value(), stray))
        self._largest.assign(tf.maximum(self._largest.read_value(), tf.reduce_max(index)))
        # Under a strategy Keras builds a model by a call outside its replicas, which is no lookup of a training.
        if not tf.distribute.in_cross_replica_context():
            self._count(index)
        labels = tf.gather(self._variable, tf.clip_by_value(index, 0, self.num_examples - 1))
        return tf.where(inside[:, tf.newaxis], labels, -1)

    def _count(self, index: tf.Tensor) -> None:
        """Counts the examples `index` int64 [B]."""
        # A matrix product counts them: a scatter would be slow on a GPU where results must repeat.
        remainders = tf.math.floormod(index, _REMAINDERS)
        rows, columns = tf.one_hot(remainders // _SIDE, _SIDE), tf.one_hot(remainders % _SIDE, _SIDE)
        self._draws.assign_add(tf.matmul(rows, columns, transpose_a=True))

    def assign(
        self, head: int, labels: np.ndarray, potentials: np.ndarray | None = None, lam: float | np.ndarray | None = None
    ) -> None:
        """Replaces the labels of one head.

        Args:
            head: the head, from 0.
            labels: the new labels, integers [N] from 0 to K - 1.
            potentials: the potentials [K] of their transport; None to keep those of before, and their lam.
            lam: the lam of that transport; None where it is not known.

        Raises:
            ValueError: an argument has another shape or range; the table is then unchanged.
        """
        labels = np.asarray(labels)
        if not 0 <= head < self.num_heads:
            raise ValueError(f"`head` must be from 0 to {self.num_heads - 1}. Received: head={head}")
        if labels.shape != (self.num_examples,) or labels.dtype.kind not in "iu":
            raise ValueError(f"`labels` must be {self.num_examples} integers. Received: {labels.dtype} {labels.shape}")
        outside = labels[(labels < 0) | (labels >= self.num_clusters)]
        if len(outside):
            raise ValueError(f"`labels` must be from 0 to {self.num_clusters - 1}. Received: {outside[0]}")
        if lam is not None and (potentials is None or not lam > 0):
            raise ValueError(f"`lam` must be positive, and come with its potentials. Received: lam={lam}")
        if potentials is not None:
            potentials = np.asarray(potentials, np.float32)
            if potentials.shape != (self.num_clusters,) or not np.isfinite(potentials).all():
                raise ValueError(f"`potentials` must be {self.num_clusters} finite numbers. Received: shape {potentials.shape}")
            self.potentials[head] = potentials
            self.lam[head] = np.nan if lam is None else lam
        current = self._variable.numpy()
        if self.num_relabellings[head]:
            self.num_changes[head] += current[:, head] != labels
        self.num_relabellings[head] += 1
        current[:, head] = labels
        self._variable.assign(current)

    def state(self) -> dict[str, np.ndarray]:
        """Returns the arrays that a checkpoint needs, as copies: labels, potentials, lam, num_changes and num_relabellings."""
        return {
            "labels": self.labels,
            "potentials": self.potentials.copy(),
            "lam": self.lam.copy(),
            "num_changes": self.num_changes.copy(),
            "num_relabellings": self.num_relabellings.copy(),
        }

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Restores the arrays of `state`.

        Raises:
            ValueError: they belong to a table of another shape; the table is then unchanged.
        """
        for name, value in self.state().items():
            if name not in state or state[name].shape != value.shape:
                found = state[name].shape if name in state else "nothing"
                raise ValueError(f"`{name}` of the saved labels must have the shape {value.shape}. Received: {found}")
        if state["labels"].min() < 0 or state["labels"].max() >= self.num_clusters:
            raise ValueError(f"The saved labels must be from 0 to {self.num_clusters - 1}. Received: {state['labels'].max()}")
        self._variable.assign(state["labels"].T)
        self.potentials = np.array(state["potentials"])
        self.lam = np.array(state["lam"])
        self.num_changes = np.array(state["num_changes"], np.int64)
        self.num_relabellings = np.array(state["num_relabellings"])

    def serialize(self) -> bytes:
        """Returns the state as the bytes of an npz file, for `tf.train.Checkpoint`."""
        file = io.BytesIO()
        write_npz(file, self.compact_state())
        return file.getvalue()

    def deserialize(self, string_value: bytes) -> None:
        """Restores the state from the bytes of `serialize`.

        Raises:
            ValueError: they belong to a table of another shape.
        """
        with np.load(io.BytesIO(string_value), allow_pickle=False) as state:
            self.restore(dict(state))

    def compact_state(self) -> dict[str, np.ndarray]:
        """Returns `state` with labels and counts in the smallest integer types that hold them, for files."""
        state = self.state()
        for name in ("labels", "num_changes"):
            state[name] = state[name].astype(np.min_scalar_type(int(state[name].max())))
        return state
