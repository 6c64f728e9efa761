"""The Keras callback that recomputes labels during training."""

from __future__ import annotations

import functools
import inspect
import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from sela_tf.compat.progress import say
from sela_tf.models.build import cut_at_heads
from sela_tf.models.heads import find_multi_head
from sela_tf.models.inference import BatchedInference, has_empty_statistics, steps_taken
from sela_tf.self_labelling.label_pass import Assign, HeadLabels, relabel
from sela_tf.self_labelling.label_table import LabelTable
from sela_tf.self_labelling.loss import SelfLabelLoss
from sela_tf.transport.assignment import assign_labels

_LAM, _LABEL_MEMORY = 25.0, 4.0
"""The paper's lam on ImageNet; GiB."""


class SelfLabelling(keras.callbacks.Callback):
    """Recomputes the labels of every head before given optimizer steps (arXiv 1911.05371, section 3.1).

    Works in `model.fit` and in any loop that calls callbacks. The step is the optimizer's own count, so a second `fit` and a
    restored optimizer go on where they were; the labels come back with Keras' `BackupAndRestore`, with any weights file of the compiled
    model and with `tf.train.Checkpoint(labels=labels)`. A table that was never relabelled although relabel steps lie behind is
    relabelled at once. A `SelfLabelLoss` without a table is bound to this one.

    Args:
        labels: the table that the model's `SelfLabelLoss` reads.
        inference_dataset: yields (images, example indices), each index once, in any order; images as the model takes them, of several
            inputs a tuple or dict. Or a function that takes the step and returns such a data set, for views that differ from one
            relabelling to the next. None where `features` needs none.
        relabel_steps: optimizer steps before which labels are recomputed; see `sela_tf.relabel_steps`.
        lam: of the default transport, 25 if None; not beside `assign`, which has its own.
        assign: makes the labels of a head: called with its `sela_tf.LinearLogits` (features [N, D], kernel, bias) and the keyword
            `initial_potentials`, returns a `sela_tf.Assignment`. By default `sela_tf.assign_labels` with `lam`, whose clusters are exactly
            equal in size.
        features: makes what the heads see of every image, float32 [N, D] in the order of the indices, where that is not one pass over
            `inference_dataset`: called with the step and a function that makes such a pass over any data set like it.
        label_memory: GiB that the log-probabilities of a head, and what its transport stores besides, may take; 4 if None; not beside
            `assign`.
        batch_statistics: run the pass in training mode (batch statistics, dropout), as the reference does. Otherwise the network is
            in inference mode, but for a relabelling while the moving statistics of its batch normalisation are still empty.
        heads_in_turn: one head a relabelling, the next one each time, as the reference does on CIFAR; otherwise all.
        log: called with (step, outcome of each head) after the labels were written.
        validation_shows_training_images: the `validation_data` of `fit` are images of the table under their own indices. Others have no
            labels, so that validation on them is refused.
        verbose: 0 for no line a relabelling; None for what `fit` was told.

    A head whose transport did not converge keeps its labels, unless they are balanced exactly all the same; a line says so.

    Raises:
        ValueError: when training starts and the model is not functional, has no or several MultiHead layers, or heads or clusters
            other than the table's; during training when the loss becomes NaN or infinite, naming an index outside the table where
            that is the cause; after the first epoch when its indices are so few that they must be class labels; at a validation whose
            images are not the table's.
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
        label_memory: float | None = None,
        batch_statistics: bool = False,
        heads_in_turn: bool = False,
        log: Callable[[int, list[HeadLabels]], None] | None = None,
        validation_shows_training_images: bool = False,
        verbose: int | None = None,
    ):
        super().__init__()
        self.labels = labels
        self.inference_dataset = inference_dataset
        self.relabel_steps = sorted(set(relabel_steps))
        if self.relabel_steps and self.relabel_steps[0] < 0:
            raise ValueError(f"`relabel_steps` must not be negative. Received: {self.relabel_steps[0]}")
        if inference_dataset is None and features is None:
            raise ValueError("`inference_dataset` must be given, or `features` that does without. Received: None for both")
        if not (inference_dataset is None or callable(inference_dataset)):
            _check_dataset(inference_dataset)
        for name, value in (("lam", lam), ("label_memory", label_memory)):
            if value is not None and assign is not None:
                raise ValueError(
                    f"`{name}` is of the default transport, and `assign` replaces it: give one of them. Received: {name}={value}"
                )
            if value is not None and not (isinstance(value, int | float | np.number) and 0 < value < math.inf):
                raise ValueError(f"`{name}` must be a positive number. Received: {name}={value!r}")
        memory = _LABEL_MEMORY if label_memory is None else label_memory
        self.assign: Assign = assign or functools.partial(
            assign_labels, lam=_LAM if lam is None else lam, memory_limit=memory * 2**30
        )
        self.features = features
        self.batch_statistics = batch_statistics
        self.heads_in_turn = heads_in_turn
        self.log = log
        self.validation_shows_training_images = validation_shows_training_images
        self.verbose = verbose
        self._pending: list[int] | None = None
        self._is_training, self._is_first_epoch = False, False
        self._inference: BatchedInference | None = None

    def on_train_begin(self, logs: dict | None = None) -> None:
        heads = find_multi_head(self.model)
        if (heads.num_heads, heads.num_clusters) != (self.labels.num_heads, self.labels.num_clusters):
            raise ValueError(
                f"The model has {heads.num_heads} heads of {heads.num_clusters} clusters, the label table "
                f"{self.labels.num_heads} of {self.labels.num_clusters}"
            )
        loss = getattr(self.model, "loss", None)
        losses = loss.values() if isinstance(loss, dict) else loss if isinstance(loss, list | tuple) else [loss]
        for one in losses:
            if isinstance(one, SelfLabelLoss):
                if one.labels is None:
                    one.labels = self.labels
                if one.labels is not self.labels:
                    raise ValueError(
                        "The model's SelfLabelLoss reads another LabelTable than the one that this callback rewrites: give both one"
                    )
        self._inference = BatchedInference(cut_at_heads(self.model), self.model.distribute_strategy)
        self._look_at_fit()
        self.labels.forget_lookups()
        # another callback may restore the optimizer before the first batch
        self._pending = None
        self._is_training, self._is_first_epoch = True, True

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        step = steps_taken(self.model)
        if self._pending is None:
            self._pending = self._to_come(step)
        if self._pending and self._pending[0] <= step:
            # steps_per_execution may have jumped over several; one relabelling serves them
            due = [earlier for earlier in self._pending if earlier <= step]
            self._pending = self._pending[len(due) :]
            turns = {self.relabel_steps.index(earlier) % self.labels.num_heads for earlier in due}
            self.relabel(step, only=sorted(turns) if self.heads_in_turn else None)

    def _to_come(self, step: int) -> list[int]:
        """The relabel steps that are due at `step` or later."""
        if self.labels.num_relabellings.any():
            # a relabelling at a step that was already taken has happened
            return [each for each in self.relabel_steps if each >= step]
        # those that were missed are made up for by one
        return self.relabel_steps

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
        # a table made in a strategy's scope notes what its first replica met
        replicas = self.model.distribute_strategy.num_replicas_in_sync
        or_stray = (
            f", or one of {replicas} replicas met an example index outside 0 … {self.labels.num_examples - 1}"
            if replicas > 1
            else ""
        )
        raise ValueError(
            f"The loss became {float(loss)} by step {steps_taken(self.model)}: training diverged. Lower the learning rate{or_stray}"
        )

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        if not self._is_first_epoch:
            # of images that somebody evaluated in between
            self.labels.forget_lookups()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self._check_indices()

    def on_train_end(self, logs: dict | None = None) -> None:
        self._is_training = False

    def on_test_begin(self, logs: dict | None = None) -> None:
        if not self._is_training:
            return
        self._refuse_validation()
        self._check_indices()
        self.labels.forget_lookups()

    def on_test_end(self, logs: dict | None = None) -> None:
        if self._is_training and self.labels.index_outside is not None:
            raise ValueError(
                f"`validation_data` yielded the example index {self.labels.index_outside}, outside the label table of "
                f"{self.labels.num_examples} images: they must show images of the table, under their own indices"
            )

    def _look_at_fit(self) -> None:
        """Refuses, or warns of, what was given to `compile` and `fit` and takes example indices for classes."""
        given = _arguments_of_fit(self.model)
        if given.get("validation_data") is not None:
            self._refuse_validation()
        if given.get("class_weight") is not None:
            warnings.warn(
                "`class_weight` of `fit` weighs an image by its example index, as if that were a class: leave it out. Weights of images are "
                "the third of each element of the data set",
                stacklevel=2,
            )
        # of several outputs, metrics may be those of another one
        if len(self.model.outputs) == 1 and any(metric.name == "compile_metrics" for metric in self.model.metrics):
            warnings.warn(
                "`metrics` of `compile` compare the heads' logits with example indices, which means nothing: leave them out. "
                "sela_tf.KNNMonitor and ClusterMonitor have figures of the training",
                stacklevel=2,
            )

    def _refuse_validation(self) -> None:
        """Raises:
        ValueError: unless validation is said to show images of the table.
        """
        if not self.validation_shows_training_images:
            raise ValueError(
                "`validation_data` of `fit` have no labels unless they are images of the label table: look at other images with "
                "sela_tf.KNNMonitor, or after training. If they are the table's, under their own indices, say so: "
                "SelfLabelling(..., validation_shows_training_images=True)"
            )

    def _check_indices(self) -> None:
        """Raises:
        ValueError: the first epoch's indices cannot be example indices.
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
        """Recomputes the labels of all heads, or of `only` some, now, and writes them when all are known."""
        start = time.perf_counter()
        features = self._features(step)
        seconds = time.perf_counter() - start
        outcome = relabel(features, find_multi_head(self.model), self.labels, assign=self.assign, only=only)
        # the pass over the images counts for the first head, as it waits for it
        outcome[:1] = [head._replace(seconds=head.seconds + seconds) for head in outcome[:1]]
        self.write(step, outcome)
        return outcome

    def _features(self, step: int) -> np.ndarray:
        """The features of every image under the present network, float32 [N, D]."""
        num_examples = self.labels.num_examples
        batch_statistics = self.batch_statistics or has_empty_statistics(self.model)

        def collect(batches: tf.data.Dataset) -> np.ndarray:
            if self._inference is None:
                self._inference = BatchedInference(cut_at_heads(self.model), self.model.distribute_strategy)
            return self._inference.collect(batches, num_examples, batch_statistics=batch_statistics)

        if self.features is None:
            return collect(
                _check_dataset(self.inference_dataset(step) if callable(self.inference_dataset) else self.inference_dataset)
            )
        features = np.asarray(self.features(step, collect))
        width = find_multi_head(self.model).input.shape[-1]
        if features.shape != (num_examples, width):
            raise ValueError(f"`features` must return {(num_examples, width)} numbers. Received: shape {features.shape}")
        return features

    def write(self, step: int, outcome: list[HeadLabels]) -> None:
        """Puts new labels into the table, and says so."""
        for head in outcome:
            if head.usable:
                made = head.assignment
                self.labels.assign(head.head, made.labels, made.potentials, made.lam)
            say(describe(step, head), verbose=self.verbose, params=self.params)
        if self.log is not None:
            self.log(step, outcome)


def _check_dataset(given: Any) -> tf.data.Dataset:
    """Raises:
    ValueError: it is no data set.
    """
    if not isinstance(given, tf.data.Dataset):
        raise ValueError(
            "`inference_dataset` must be a tf.data.Dataset of (images, example indices), or a function from the step to one. "
            f"Received: {type(given).__name__}"
        )
    return given


def _arguments_of_fit(model: keras.Model) -> Mapping[str, Any]:
    """The arguments of the call of `model.fit` that this runs in, which callbacks are not told; none in another loop."""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name == "fit" and frame.f_locals.get("self") is model:
            return frame.f_locals
        frame = frame.f_back
    return {}


def describe(step: int, head: HeadLabels) -> str:
    """One line for the person watching."""
    metrics = head.metrics
    iterations = f"{metrics['num_iterations']} iterations, " if metrics["num_iterations"] is not None else ""
    line = (
        f"relabel step {step} head {head.head}: {iterations}{metrics['changed']:.1%} changed, objective "
        f"{metrics['objective_before']:.4f} -> {metrics['objective_after']:.4f}, {head.seconds:.1f} s"
    )
    if metrics["converged"]:
        return line
    outcome = "the labels are balanced exactly all the same" if head.usable else "the labels of before are kept"
    return line + f"; NOT CONVERGED (marginal error {metrics['marginal_error']}): {outcome}"
