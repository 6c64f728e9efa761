"""Inference: passes of a model over a data set, whose outputs are collected in the order of the example indices."""

from __future__ import annotations

import collections
import contextlib
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import keras
import numpy as np
import tensorflow as tf

from sela_tf.compat.autotuning import untuned

# Batches that devices work on while the outputs of an earlier one are read: they wait neither for the host nor for its copy.
_IN_FLIGHT = 2

_Kept = TypeVar("_Kept")

NewArray = Callable[[tuple[int, int]], np.ndarray]
"""A function from a shape to an array of it, float32, to be filled."""


def in_memory(shape: tuple[int, int]) -> np.ndarray:
    """Returns an array of a shape, float32, to be filled."""
    return np.empty(shape, np.float32)


def read_variable(variable: keras.Variable) -> np.ndarray:
    """Returns the value of a variable; that of the first replica for a mirrored one, which NumPy cannot read by itself."""
    return tf.convert_to_tensor(variable).numpy()


def steps_taken(model: keras.Model) -> int:
    """Returns the number of optimizer steps that `model` has taken, which a second `fit` and a restored optimizer continue."""
    # A loss-scaling optimizer wraps the one that counts.
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    return int(read_variable(optimizer.iterations))


def batch_norms(model: keras.Model) -> list[keras.layers.BatchNormalization]:
    """Returns the batch normalisation layers of a model, those of nested models included."""
    # `model.layers` has the layers of the top level only.
    return [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]


def has_empty_statistics(model: keras.Model) -> bool:
    """Tests for batch normalisation that has seen no batch yet: there is some, every moving mean is 0 and every moving variance 1.

    The outputs of such a network in inference mode mean nothing, so that a label pass has to run in training mode. A network that starts
    from a file of weights has statistics.
    """
    norms = batch_norms(model)
    return bool(norms) and all(
        (read_variable(norm.moving_mean) == 0).all() and (read_variable(norm.moving_variance) == 1).all() for norm in norms
    )


def _batch_size(images: Any) -> int:
    """Returns the number b of images of a batch, which may be any structure of tensors [b, …]."""
    return len(tf.nest.flatten(images)[0])


def _pair(batch: Any, num_examples: int) -> tuple[Any, np.ndarray]:
    """Returns (images, indices [b]) of a batch.

    Raises:
        ValueError: the batch is no such pair, or an index lies outside 0 … N - 1.
    """
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise ValueError(f"The inference dataset must yield pairs (images, example indices). Received: {type(batch).__name__}")
    images, indices = batch
    rows = np.asarray(indices).reshape(-1)
    num_images = _batch_size(images)
    if rows.dtype.kind not in "iu" or len(rows) != num_images:
        raise ValueError(
            f"The inference dataset must yield batches of images with as many integer indices. Received: {num_images} images, "
            f"indices {rows.dtype} {np.shape(indices)}"
        )
    outside = rows[(rows < 0) | (rows >= num_examples)]
    if len(outside):
        raise ValueError(f"The inference dataset must yield indices from 0 to {num_examples - 1}. Received: {outside[0]}")
    return images, rows


class _Seen:
    """Counts how often each of the indices 0 … N - 1 occurs in a pass."""

    def __init__(self, num_examples: int):
        self._times = np.zeros(num_examples, np.int64)

    def repeats(self, rows: np.ndarray) -> bool:
        """Counts the indices of a batch; returns True if one of them has occurred before, as a data set that repeats may never end."""
        np.add.at(self._times, rows, 1)
        return self._times[rows].max(initial=0) > 1

    def check(self) -> None:
        """Checks that each index occurred once.

        Raises:
            ValueError: an index is missing or repeated.
        """
        if not len(self._times) or (self._times != 1).any():
            missing, repeated = np.flatnonzero(self._times == 0), np.flatnonzero(self._times > 1)
            raise ValueError(
                f"The inference dataset must yield each of {len(self._times)} example indices once. Received: {len(missing)} missing "
                f"(first {missing[:1]}), {len(repeated)} repeated (first {repeated[:1]})"
            )


def check_each_once(indices: np.ndarray, num_examples: int) -> None:
    """Checks the indices [N] of a pass.

    Raises:
        ValueError: an index is missing, repeated or outside 0 … N - 1.
    """
    seen = _Seen(num_examples)
    seen.repeats(indices)
    seen.check()


def check_indices(batches: tf.data.Dataset, num_examples: int) -> None:
    """Checks the indices of `batches` of (images, indices), in one pass over them.

    Raises:
        ValueError: an index is missing, repeated or outside 0 … N - 1.
    """
    seen = _Seen(num_examples)
    for batch in untuned(batches):
        if seen.repeats(_pair(batch, num_examples)[1]):
            break
    seen.check()


def _until_repeated(batches: tf.data.Dataset, num_examples: int, seen: _Seen) -> Iterator[tuple[Any, np.ndarray]]:
    """Yields (images, indices [b]) of batches; the last are those in which an index repeats.

    Raises:
        ValueError: as `_pair`.
    """
    for batch in untuned(batches):
        images, rows = _pair(batch, num_examples)
        yield images, rows
        if seen.repeats(rows):
            return


class BatchedInference:
    """Passes of a functional model over data sets, on every replica of its strategy.

    Batches may have any size, also one smaller than the number of replicas. Where the model has several inputs, the images of a batch are a
    tuple or dict of tensors, as the model takes them.

    Args:
        model: a functional model with one output [B, D].
        strategy: the strategy that the model was built under; None for one device.
    """

    def __init__(self, model: keras.Model, strategy: tf.distribute.Strategy | None = None):
        self.model = model
        self._strategy = strategy or tf.distribute.get_strategy()
        # TensorFlow counts traces by a function's code, and would warn of several instances; a partial is counted by itself.
        self._forward = tf.function(functools.partial(self._run), reduce_retracing=True)

    def collect(
        self,
        batches: tf.data.Dataset,
        num_examples: int,
        *,
        batch_statistics: bool = False,
        new_array: NewArray = in_memory,
    ) -> np.ndarray:
        """Collects the outputs of one pass, in inference mode unless `batch_statistics`; no variable of the model changes.

        Args:
            batches: batches of (images, indices); every index from 0 to N - 1 once, in any order and in batches of any size.
            num_examples: the number N of images.
            batch_statistics: run in training mode, which normalises with the statistics of each batch. The variables that this changes
                (moving statistics, the seeds of dropout) are restored.
            new_array: makes the array that is returned.

        Returns:
            float32 [N, D], row i for example i.

        Raises:
            ValueError: an index is missing, repeated or outside 0 … N - 1.
        """
        seen = _Seen(num_examples)
        collected = np.empty((num_examples, 0), np.float32)
        with self._variables_kept(batch_statistics):
            for outputs, rows in self._outputs(_until_repeated(batches, num_examples, seen), batch_statistics):
                if not collected.size:
                    collected = new_array((num_examples, outputs.shape[-1]))
                collected[rows] = outputs
        seen.check()
        return collected

    def collect_some(
        self,
        batches: tf.data.Dataset,
        num_examples: int,
        *,
        batch_statistics: bool = False,
        new_array: NewArray = in_memory,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Collects the outputs of one pass over some of the examples, each at most once, as `collect` does.

        Returns:
            (float32 [n, D], their indices, int64 [n]), in the order of `batches`, up to the first batch with an index that was there before.

        Raises:
            ValueError: an index is outside 0 … N - 1.
        """
        seen = _Seen(num_examples)
        indices: list[np.ndarray] = []
        number, collected = 0, np.empty((0, 0), np.float32)
        with self._variables_kept(batch_statistics):
            for outputs, rows in self._outputs(_until_repeated(batches, num_examples, seen), batch_statistics):
                if not indices:
                    # Batches are equally large, but for one image.
                    most = int(batches.cardinality()) * (len(rows) + 1)
                    collected = new_array((min(num_examples, most) if most > 0 else num_examples, outputs.shape[-1]))
                if number + len(rows) > len(collected):
                    smaller, collected = collected, new_array((num_examples, outputs.shape[-1]))
                    collected[:number] = smaller[:number]
                collected[number : number + len(rows)] = outputs
                number += len(rows)
                indices.append(rows.astype(np.int64))
        return collected[:number], np.concatenate(indices)

    @contextlib.contextmanager
    def _variables_kept(self, batch_statistics: bool) -> Iterator[None]:
        """Puts back, after passes with the statistics of batches, the variables that these change."""
        trainable = {id(variable) for variable in self.model.trainable_variables}
        state = [variable for variable in self.model.variables if id(variable) not in trainable] if batch_statistics else []
        before = [read_variable(variable) for variable in state]
        try:
            yield
        finally:
            for variable, value in zip(state, before, strict=True):
                variable.assign(value)

    def in_order(self, batches: tf.data.Dataset) -> np.ndarray:
        """Collects the outputs of one pass in inference mode, in the order of `batches`; no variable of the model changes.

        Args:
            batches: batches of images, alone or as the first of a tuple. The images of a model with several inputs are a dict, or the first
                of a tuple.

        Returns:
            float32 [M, D].
        """
        images = (batch[0] if isinstance(batch, tuple | list) else batch for batch in untuned(batches))
        return np.concatenate([outputs for outputs, _ in self._outputs(((each, None) for each in images), False)])

    def fill_moving_statistics(self, batches: tf.data.Dataset, *, num_batches: int = 50) -> None:
        """Fills the moving statistics of batch normalisation from the images of some batches; no weight changes.

        The moving statistics of a network before its first step are empty, and its outputs in inference mode mean nothing. The momentum is
        .9 at most, which leaves .5 % of the old statistics after 50 batches; the .99 of Keras' own networks would leave 60 %.

        Args:
            batches: batches of (images, indices), repeated as often as necessary.
            num_batches: the number of batches that are used.
        """
        norms = batch_norms(self.model)
        before = [layer.momentum for layer in norms]
        for layer in norms:
            layer.momentum = min(layer.momentum, 0.9)
        # The function is traced with these momenta, and therefore not kept.
        forward = tf.function(self._run, reduce_retracing=True)
        try:
            for images, _ in untuned(batches.repeat().take(num_batches)):
                forward(self._split(images), True)
        finally:
            for layer, momentum in zip(norms, before, strict=True):
                layer.momentum = momentum

    def _outputs(self, batches: Iterable[tuple[Any, _Kept]], training: bool) -> Iterator[tuple[np.ndarray, _Kept]]:
        """Yields, for each batch of b images, the outputs of the model, float32 [b, D], with what came beside the images."""
        under_way: collections.deque[tuple[Any, int, _Kept]] = collections.deque()

        def first() -> tuple[np.ndarray, _Kept]:
            made, size, kept = under_way.popleft()
            parts = self._strategy.experimental_local_results(made)
            return np.concatenate([np.asarray(part, np.float32) for part in parts])[:size], kept

        for images, kept in batches:
            under_way.append((self._forward(self._split(images), training), _batch_size(images), kept))
            if len(under_way) > _IN_FLIGHT:
                yield first()
        while under_way:
            yield first()

    def _split(self, images: Any) -> Any:
        """Splits a batch into one part for each replica, in order.

        Where there are fewer images than replicas, each part is one image, and some images occur again.
        """
        replicas = self._strategy.num_replicas_in_sync
        if replicas == 1:
            return images
        size = _batch_size(images)
        bounds = [i * size // replicas for i in range(replicas + 1)] if size >= replicas else range(replicas + 1)

        def split(values: tf.Tensor) -> Any:
            enough = values if size >= replicas else tf.gather(values, [i % size for i in range(replicas)])
            parts = [enough[low:high] for low, high in itertools.pairwise(bounds)]
            return self._strategy.experimental_distribute_values_from_function(
                lambda context: parts[context.replica_id_in_sync_group]
            )

        return tf.nest.map_structure(split, images)

    def _run(self, images: Any, training: bool) -> tf.Tensor:
        """Runs the model on every replica."""
        return self._strategy.run(lambda x: self.model(x, training=training), args=(images,))
