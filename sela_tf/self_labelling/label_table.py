"""The labels of all images under every head, where the loss finds them and the callback rewrites them."""

from __future__ import annotations

import numpy as np
import tensorflow as tf


class LabelTable:
    """int64 labels [T, N] in a variable, so that a compiled training step sees a relabelling at once.

    Starts as the reference does: (i mod K), permuted for each head; or from labels that are given.

    Args:
        num_heads: T.
        num_clusters: K, at least 2.
        num_examples: N, at least K.
        seed: of the permutations.
        initial: labels [T, N] to start from instead.
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
        # int64: XLA on a GPU refuses int32 variables, which TensorFlow places on the CPU. The aggregation only matters for a
        # table that is made inside a strategy's scope.
        first = tf.VariableAggregation.ONLY_FIRST_REPLICA
        self._variable = tf.Variable(initial, dtype=tf.int64, trainable=False, aggregation=first, name="labels")
        self._outside = tf.Variable(0, dtype=tf.int64, trainable=False, aggregation=first, name="index_outside")
        self.potentials = np.zeros((num_heads, num_clusters), np.float32)
        """[T, K], log alpha of the last transport of each head."""
        self.num_changes = np.zeros((num_heads, num_examples), np.int64)
        """[T, N], the relabellings that changed the label, not counting the initial labels' replacement."""
        self.num_relabellings = np.zeros(num_heads, np.int64)
        """[T]."""

    @property
    def labels(self) -> np.ndarray:
        """int64 [T, N], a copy."""
        return self._variable.numpy()

    @property
    def index_outside(self) -> int | None:
        """An index outside 0 … N - 1 that a lookup met, or None."""
        value = int(self._outside.numpy())
        return None if 0 <= value < self.num_examples else value

    def forget_index_outside(self) -> None:
        """So that a later failure is not blamed on it."""
        self._outside.assign(0)

    def lookup(self, index: tf.Tensor) -> tf.Tensor:
        """Labels int64 [B, T] of the examples `index` int64 [B]; -1 where the index lies outside the table.

        A gather out of bounds returns a plausible label under XLA, where assertions vanish: hence -1, and a note of the index.
        """
        inside = (index >= 0) & (index < self.num_examples)
        stray = tf.gather(index, tf.argmin(tf.cast(inside, tf.int32), axis=0))
        self._outside.assign(tf.where(tf.reduce_all(inside), self._outside.read_value(), stray))
        labels = tf.gather(self._variable, tf.clip_by_value(index, 0, self.num_examples - 1), axis=1)
        return tf.transpose(tf.where(inside, labels, -1))

    def assign(self, head: int, labels: np.ndarray, potentials: np.ndarray | None = None, lam: float | None = None) -> None:
        """Replaces the labels of one head.

        Args:
            head: from 0.
            labels: integers [N] from 0 to K - 1.
            potentials: [K]; those of before are kept if None.
            lam: under which the potentials were found.

        Raises:
            ValueError: of another shape or outside the range; the table is then as before.
        """
        labels = np.asarray(labels)
        if not 0 <= head < self.num_heads:
            raise ValueError(f"`head` must be from 0 to {self.num_heads - 1}. Received: head={head}")
        if labels.shape != (self.num_examples,) or labels.dtype.kind not in "iu":
            raise ValueError(f"`labels` must be {self.num_examples} integers. Received: {labels.dtype} {labels.shape}")
        outside = labels[(labels < 0) | (labels >= self.num_clusters)]
        if len(outside):
            raise ValueError(f"`labels` must be from 0 to {self.num_clusters - 1}. Received: {outside[0]}")
        if potentials is not None:
            potentials = np.asarray(potentials, np.float32)
            if potentials.shape != (self.num_clusters,) or not np.isfinite(potentials).all():
                raise ValueError(f"`potentials` must be {self.num_clusters} finite numbers. Received: shape {potentials.shape}")
            self.potentials[head] = potentials
        current = self.labels
        if self.num_relabellings[head]:
            self.num_changes[head] += current[head] != labels
        self.num_relabellings[head] += 1
        current[head] = labels
        self._variable.assign(current)

    def state(self) -> dict[str, np.ndarray]:
        """All that a checkpoint needs."""
        return {
            "labels": self.labels,
            "potentials": self.potentials.copy(),
            "num_changes": self.num_changes.copy(),
            "num_relabellings": self.num_relabellings.copy(),
        }

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Puts back what `state` gave.

        Raises:
            ValueError: it belongs to a table of another shape.
        """
        for name, value in self.state().items():
            if name not in state or state[name].shape != value.shape:
                found = state[name].shape if name in state else "nothing"
                raise ValueError(f"`{name}` of the saved labels must have the shape {value.shape}. Received: {found}")
        if state["labels"].min() < 0 or state["labels"].max() >= self.num_clusters:
            raise ValueError(f"The saved labels must be from 0 to {self.num_clusters - 1}. Received: {state['labels'].max()}")
        self._variable.assign(state["labels"])
        self.potentials = np.array(state["potentials"])
        self.num_changes = np.array(state["num_changes"])
        self.num_relabellings = np.array(state["num_relabellings"])
