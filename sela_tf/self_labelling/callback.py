"""The Keras callback that recomputes labels during training."""

from __future__ import annotations

import functools
import math
import os
import pathlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from sela_tf.compat.progress import say
from sela_tf.compat.releases import keep_in_checkpoints
from sela_tf.files.scratch import scratch_array
from sela_tf.models.build import cut_at_heads
from sela_tf.models.finite import DivergedError
from sela_tf.models.heads import check_heads, find_multi_head
from sela_tf.models.inference import BatchedInference, check_each_once, has_empty_statistics, in_memory, steps_taken
from sela_tf.self_labelling.fit_checks import check_fit, check_validation
from sela_tf.self_labelling.label_pass import Assign, HeadLabels, Share, compute_labels
from sela_tf.self_labelling.label_table import LabelTable
from sela_tf.self_labelling.loss import bind_losses
from sela_tf.transport.assignment import assign_labels
from sela_tf.transport.shards import ALONE, Shards

_LAM, _LABEL_MEMORY = 25.0, 4.0
"""The defaults of SelfLabelling: the paper's lam on ImageNet, and GiB."""


class SelfLabelling(keras.callbacks.Callback):
    """A Keras callback that recomputes the labels of every head before given optimizer steps (arXiv 1911.05371, section 3.1).

    It works in `model.fit` and in any loop that calls callbacks. A step is the optimizer's own count, so that a second `fit` and a restored
    optimizer continue where they stopped. Keras' `BackupAndRestore`, a weights file of the compiled model and
    `tf.train.Checkpoint(labels=labels)` restore the labels. A table that was never relabelled although relabel steps have passed is
    relabelled at once. A `SelfLabelLoss` without a table is bound to this one.

    A head whose transport does not converge keeps its labels, unless the new ones are exactly balanced; the line that is printed says so.

    Args:
        labels: the table that the model's `SelfLabelLoss` reads.
        inference_dataset: a data set of (images, example indices) with each index once, in any order; images are what the model takes, for
            several inputs a tuple or dict. Or a function from the optimizer step to such a data set, for views that differ from one
            relabelling to the next. None where `features` needs none.
        relabel_steps: the optimizer steps before which labels are recomputed; see `sela_tf.relabel_steps`.
        lam: the lam of the default transport, 25 if None; excludes `assign`, which has its own.
        assign: a function that makes the labels of a head: it takes the head's `sela_tf.LinearLogits` and the keyword
            `initial_potentials`, and returns a `sela_tf.Assignment`. By default `sela_tf.assign_labels` with `lam`, whose clusters are
            exactly equal in size.
        features: a function that returns the heads' inputs for every image, float32 [N, D] in the order of the indices, for cases where one
            pass over `inference_dataset` does not give them. It takes the optimizer step and a function that returns the heads' inputs of
            one pass over any such data set.
        known: integers [T, N], under each head the cluster of the images whose label is known, which they keep, and -1 elsewhere; handed on
            to `assign` by the keyword of this name.
        label_memory: the GiB that the log-probabilities of a head and its transport may take, 4 if None; excludes `assign`, unless there is
            a `scratch_dir`.
        scratch_dir: a directory for the heads' inputs where they alone take more than `label_memory`. They then lie in a file without a
            name, which is gone after the relabelling. None keeps them in memory.
        batch_statistics: run the pass in training mode (batch statistics, dropout), as the reference code does. Otherwise it is in inference
            mode, except while the moving statistics of the batch normalisation are still empty.
        heads_in_turn: relabel one head at a time, the next one each time, as the reference code does on CIFAR; otherwise all.
        log: a function that is called with (step, outcome of each head) after the labels are written.
        validation_shows_training_images: the `validation_data` of `fit` are images of the table under their own indices. Other images have
            no labels, so that validation on them is refused.
        verbose: 0 for no line at a relabelling; None for the `verbose` of `fit`.
        shards: the workers that label together, each of which passes over the images that its own `inference_dataset` yields.
        network: a function that returns the network of the label pass, for a training that has the present weights in another model, too;
            None for the model that is trained.

    Raises:
        ValueError: at once, if an argument is out of range or excludes another one; when training starts, if the model is not functional,
            has no or several MultiHead layers, or heads or clusters other than the table's; during training, if the loss becomes NaN or
            infinite, with the index outside the table where that is the cause; after the first epoch, if its indices are so few that they
            must be class labels; at a validation whose images are not the table's.
    """

    def __init__(
        self,
        labels: LabelTable,
        inference_dataset: tf.data.Dataset | Callable[[int], tf.data.Dataset] | None,
        *,
        relabel_steps: Iterable[int],
        lam: float | None = None,
        assign: Assign | None = None,
        features: Callable[[int, Callable[[tf.data.Dataset], np.ndarray]], np.ndarray] | None = None,
        known: np.ndarray | None = None,
        label_memory: float | None = None,
        scratch_dir: str | os.PathLike[str] | None = None,
        batch_statistics: bool = False,
        heads_in_turn: bool = False,
        log: Callable[[int, list[HeadLabels]], None] | None = None,
        validation_shows_training_images: bool = False,
        verbose: int | None = None,
        shards: Shards = ALONE,
        network: Callable[[], keras.Model] | None = None,
    ):
        super().__init__()
        # Keras 2 has them from `fit` alone.
        self.params: dict[str, Any] | None = None
        self.labels = labels
        self.inference_dataset = inference_dataset
        self.relabel_steps = sorted(set(relabel_steps))
        if self.relabel_steps and self.relabel_steps[0] < 0:
            raise ValueError(f"`relabel_steps` must not be negative. Received: {self.relabel_steps[0]}")
        if features is not None and shards.count > 1:
            raise ValueError(f"`features` are for one worker. Received: {shards.count} workers")
        if inference_dataset is None and features is None:
            raise ValueError("`inference_dataset` must be given, or `features` that does without. Received: None for both")
        if not (inference_dataset is None or callable(inference_dataset)):
            _check_dataset(inference_dataset)
        for name, value in (("lam", lam), ("label_memory", label_memory)):
            if value is not None and assign is not None and not (name == "label_memory" and scratch_dir is not None):
                raise ValueError(
                    f"`{name}` is of the default transport, and `assign` replaces it: give one of them. Received: {name}={value}"
                )
            if value is not None and not (isinstance(value, int | float | np.number) and 0 < value < math.inf):
                raise ValueError(f"`{name}` must be a positive number. Received: {name}={value!r}")
        memory = _LABEL_MEMORY if label_memory is None else label_memory
        self.assign: Assign = assign or functools.partial(
            assign_labels, lam=_LAM if lam is None else lam, memory_limit=memory * 2**30
        )
        self.label_memory, self.scratch_dir = memory, scratch_dir
        self.features = features
        self.known = known
        self.batch_statistics = batch_statistics
        self.heads_in_turn = heads_in_turn
        self.log = log
        self.validation_shows_training_images = validation_shows_training_images
        self.verbose = verbose
        self.shards, self.network = shards, network
        self._pending: list[int] | None = None
        self._overdue: set[int] | None = None
        self._is_training, self._is_first_epoch = False, False
        self._inference: BatchedInference | None = None

    def on_train_begin(self, logs: dict | None = None) -> None:
        check_heads(find_multi_head(self.model), self.labels.num_heads, self.labels.num_clusters)
        bind_losses(self.model, self.labels)
        keep_in_checkpoints(self.model, self.labels)
        # A model that cannot be cut is refused now.
        cut = cut_at_heads(self.model)
        self._inference = BatchedInference(cut, self.model.distribute_strategy) if self.network is None else None
        check_fit(self.model, validation_shows_training_images=self.validation_shows_training_images)
        self.labels.forget_lookups()
        # Another callback may restore the optimizer before the first batch.
        self._pending = self._overdue = None
        self._is_training, self._is_first_epoch = True, True

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        step = steps_taken(self.model)
        if self._pending is None:
            self._pending = self._to_come(step)
        if self._pending and self._pending[0] <= step:
            # With `steps_per_execution`, several relabel steps may have passed; one relabelling serves them all.
            due = [earlier for earlier in self._pending if earlier <= step]
            self._pending = self._pending[len(due) :]
            turns = {self.relabel_steps.index(earlier) % self.labels.num_heads for earlier in due}
            self.relabel(step, only=sorted(turns) if self.heads_in_turn else None)

    def _to_come(self, step: int) -> list[int]:
        """Returns the relabel steps that are still due at the optimizer step `step`."""
        if self._overdue is not None:
            return [each for each in self.relabel_steps if each >= step or each in self._overdue]
        if self.labels.num_relabellings.any():
            # The relabellings of the steps that were taken have happened.
            return [each for each in self.relabel_steps if each >= step]
        # One relabelling makes up for all that were missed.
        return self.relabel_steps

    def state(self) -> dict[str, np.ndarray]:
        """Returns the arrays that a continued training needs: the state of the table, and the relabel steps that were passed over, which the
        next step makes up for, as with `steps_per_execution`."""
        step = steps_taken(self.model)
        pending = self._to_come(step) if self._pending is None else self._pending
        return {**self.labels.compact_state(), "overdue": np.array([each for each in pending if each < step], np.int64)}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Restores the arrays of `state`, between `on_train_begin` and the first step.

        Raises:
            ValueError: they belong to a table of another shape.
        """
        self.labels.restore(state)
        self._pending, self._overdue = None, set(map(int, state["overdue"]))

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        loss = (logs or {}).get("loss")
        if loss is None or math.isfinite(loss):
            return
        stray = self.labels.index_outside
        if stray is not None:
            raise ValueError(
                f"The training data set yielded the example index {stray}, outside the label table of {self.labels.num_examples} "
                "images (0 is the first)"
            )
        # A table that was made in a strategy's scope notes the indices of its first replica only.
        replicas = self.model.distribute_strategy.num_replicas_in_sync
        or_stray = (
            f", or one of {replicas} replicas met an example index outside 0 … {self.labels.num_examples - 1}"
            if replicas > 1
            else ""
        )
        raise DivergedError(
            f"The loss became {float(loss)} by step {steps_taken(self.model)}: training diverged. Lower the learning rate{or_stray}"
        )

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        if not self._is_first_epoch:
            # The lookups may include those of an evaluation between two epochs.
            self.labels.forget_lookups()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self._check_indices()

    def on_train_end(self, logs: dict | None = None) -> None:
        self._is_training = False
        keep_in_checkpoints(self.model, None)

    def on_test_begin(self, logs: dict | None = None) -> None:
        if not self._is_training:
            return
        check_validation(self.validation_shows_training_images)
        self._check_indices()
        self.labels.forget_lookups()

    def on_test_end(self, logs: dict | None = None) -> None:
        if self._is_training and self.labels.index_outside is not None:
            raise ValueError(
                f"`validation_data` yielded the example index {self.labels.index_outside}, outside the label table of "
                f"{self.labels.num_examples} images: they must show images of the table, under their own indices"
            )

    def _check_indices(self) -> None:
        """Checks the indices of the first epoch.

        Raises:
            ValueError: they are so few that they cannot be example indices.
        """
        few, drawn = self.labels.few_indices, self.labels.num_drawn
        if self._is_first_epoch and few is not None:
            raise ValueError(
                f"The training data set yielded about {few} different indices for {drawn} images of its first epoch, and the label table is "
                f"of {self.labels.num_examples} images: the second of each pair must be the image's index, not its class label. If "
                "so few images are meant, give the LabelTable their number"
            )
        self._is_first_epoch = False

    def relabel(self, step: int, *, only: Sequence[int] | None = None) -> list[HeadLabels]:
        """Recomputes labels now, and writes them to the table when those of all heads are known.

        Args:
            step: the optimizer step, for the data set, the printed lines and the log.
            only: the heads that are relabelled, from 0; None for all.

        Returns:
            The outcome of each head.
        """
        outcome = self.compute(step, only=only)
        self.write(step, outcome)
        return outcome

    def compute(self, step: int, *, only: Sequence[int] | None = None) -> list[HeadLabels]:
        """Computes labels as `relabel` does, without writing them."""
        start = time.perf_counter()
        network = self.model if self.network is None else self.network()
        head_inputs, share = self._head_inputs(network, step)
        seconds = time.perf_counter() - start
        heads = find_multi_head(network)
        outcome = compute_labels(head_inputs, heads, self.labels, assign=self.assign, only=only, known=self.known, share=share)
        # The pass over the images counts for the first head, which waits for it.
        outcome[:1] = [head._replace(seconds=head.seconds + seconds) for head in outcome[:1]]
        return outcome

    def _head_inputs(self, network: keras.Model, step: int) -> tuple[np.ndarray, Share | None]:
        """Returns the heads' inputs for every image under a network, float32 [N, D]; or for this worker's images, and which these are."""
        num_examples = self.labels.num_examples
        batch_statistics = self.batch_statistics or has_empty_statistics(network)
        if self._inference is None:
            self._inference = BatchedInference(cut_at_heads(network), network.distribute_strategy)
        inference = self._inference

        def collect(batches: tf.data.Dataset) -> np.ndarray:
            return inference.collect(batches, num_examples, batch_statistics=batch_statistics, new_array=self._new_array)

        if self.features is None:
            batches = _check_dataset(self.inference_dataset(step) if callable(self.inference_dataset) else self.inference_dataset)
            if self.shards.count == 1:
                return collect(batches), None
            head_inputs, rows = inference.collect_some(
                batches, num_examples, batch_statistics=batch_statistics, new_array=self._new_array
            )
            check_each_once(self.shards.joined(rows)[0], num_examples)
            return head_inputs, Share(self.shards, rows)
        head_inputs = np.asarray(self.features(step, collect))
        width = find_multi_head(network).input.shape[-1]
        if head_inputs.shape != (num_examples, width):
            raise ValueError(f"`features` must return {(num_examples, width)} numbers. Received: shape {head_inputs.shape}")
        return head_inputs, None

    def _new_array(self, shape: tuple[int, int]) -> np.ndarray:
        """Returns an array for the heads' inputs, in memory or in a file.

        Raises:
            StorageError: the directory has no room for the file.
        """
        if self.scratch_dir is None or 4 * math.prod(shape) <= self.label_memory * 2**30:
            return in_memory(shape)
        return scratch_array(pathlib.Path(self.scratch_dir), shape)

    def write(self, step: int, outcome: list[HeadLabels]) -> None:
        """Writes the usable labels of `outcome` to the table, prints a line for each head, and calls `log`."""
        for head in outcome:
            if head.usable:
                made = head.assignment
                self.labels.assign(head.head, made.labels, made.potentials, made.lam)
            say(head.in_words(step), verbose=self.verbose, params=self.params)
        if self.log is not None:
            self.log(step, outcome)


def _check_dataset(given: Any) -> tf.data.Dataset:
    """Returns `given`, which stands for `inference_dataset`.

    Raises:
        ValueError: `given` is no data set.
    """
    if not isinstance(given, tf.data.Dataset):
        raise ValueError(
            "`inference_dataset` must be a tf.data.Dataset of (images, example indices), or a function from the step to one. "
            f"Received: {type(given).__name__}"
        )
    return given
