"""The Keras callback that recomputes labels during training."""

from __future__ import annotations

import functools
import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from sela_tf.models.features import FeatureExtractor, steps_taken
from sela_tf.models.heads import find_multi_head
from sela_tf.self_labelling.label_pass import Assign, HeadLabels, cut_at_heads, relabel
from sela_tf.self_labelling.label_table import LabelTable
from sela_tf.self_labelling.loss import SelfLabelLoss
from sela_tf.transport.assignment import assign_labels


class SelfLabelling(keras.callbacks.Callback):
    """Recomputes the labels of every head before given optimizer steps (arXiv 1911.05371, section 3.1).

    Works in `model.fit` and in any loop that calls callbacks. The step is the optimizer's own count, so a second `fit` and a
    restored optimizer go on where they were.

    Args:
        labels: the table that the model's `SelfLabelLoss` reads.
        inference_dataset: yields (images, example indices), each index once, in any order. Or a function that takes the step and
            returns such a data set, for views that differ from one relabelling to the next. None where `features` needs none.
        relabel_steps: optimizer steps before which labels are recomputed; see `sela_tf.relabel_steps`.
        lam: of the default transport.
        assign: makes the labels of a head: called with its `sela_tf.LinearLogits` (features [N, D], kernel, bias) and the keyword
            `initial_potentials`, returns a `sela_tf.Assignment`. By default `sela_tf.assign_labels` with `lam`, whose clusters are exactly
            equal in size.
        features: makes what the heads see of every image, float32 [N, D] in the order of the indices, where that is not one pass over
            `inference_dataset`: called with the step and a function that makes such a pass over any data set like it.
        label_memory: GiB that the log-probabilities of a head, and what its transport stores besides, may take, of the default `assign`.
        batch_statistics: run the pass in training mode (batch statistics, dropout), as the reference does. Otherwise the network is
            in inference mode, but for a relabelling before the first step, when the moving statistics are still empty.
        heads_in_turn: one head a relabelling, the next one each time, as the reference does on CIFAR; otherwise all.
        log: called with (step, outcome of each head) after the labels were written.

    A head whose transport did not converge keeps its labels, unless they are balanced exactly all the same; a line says so.

    Raises:
        ValueError: when training starts and the model is not functional, has no or several MultiHead layers, or heads or clusters
            other than the table's; during training when the loss becomes NaN or infinite, naming an index outside the table where
            that is the cause.
    """

    def __init__(
        self,
        labels: LabelTable,
        inference_dataset: tf.data.Dataset | Callable[[int], tf.data.Dataset] | None,
        *,
        relabel_steps: Iterable[int],
        lam: float = 25.0,
        assign: Assign | None = None,
        features: Callable[[int, Callable[[tf.data.Dataset], np.ndarray]], np.ndarray] | None = None,
        label_memory: float = 4.0,
        batch_statistics: bool = False,
        heads_in_turn: bool = False,
        log: Callable[[int, list[HeadLabels]], None] | None = None,
    ):
        super().__init__()
        self.labels = labels
        self.inference_dataset = inference_dataset
        self.relabel_steps = sorted(set(relabel_steps))
        if self.relabel_steps and self.relabel_steps[0] < 0:
            raise ValueError(f"`relabel_steps` must not be negative. Received: {self.relabel_steps[0]}")
        if inference_dataset is None and features is None:
            raise ValueError("`inference_dataset` must be given, or `features` that does without. Received: None for both")
        self.assign: Assign = assign or functools.partial(assign_labels, lam=lam, memory_limit=label_memory * 2**30)
        self.features = features
        self.batch_statistics = batch_statistics
        self.heads_in_turn = heads_in_turn
        self.log = log
        self._pending: list[int] = []
        self._extractor: FeatureExtractor | None = None

    def on_train_begin(self, logs: dict | None = None) -> None:
        heads = find_multi_head(self.model)
        if (heads.num_heads, heads.num_clusters) != (self.labels.num_heads, self.labels.num_clusters):
            raise ValueError(
                f"The model has {heads.num_heads} heads of {heads.num_clusters} clusters, the label table "
                f"{self.labels.num_heads} of {self.labels.num_clusters}"
            )
        loss = getattr(self.model, "loss", None)
        losses = loss.values() if isinstance(loss, dict) else loss if isinstance(loss, list | tuple) else [loss]
        if any(isinstance(one, SelfLabelLoss) and one.labels is not self.labels for one in losses):
            raise ValueError(
                "The model's SelfLabelLoss reads another LabelTable than the one that this callback rewrites: give both one"
            )
        self.labels.forget_index_outside()
        self._extractor = FeatureExtractor(cut_at_heads(self.model), self.model.distribute_strategy)
        # a relabelling at a step that was already taken has happened
        self._pending = [step for step in self.relabel_steps if step >= steps_taken(self.model)]

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        step = steps_taken(self.model)
        if self._pending and self._pending[0] <= step:
            # steps_per_execution may have jumped over several; one relabelling serves them
            due = [earlier for earlier in self._pending if earlier <= step]
            self._pending = self._pending[len(due) :]
            turns = {self.relabel_steps.index(earlier) % self.labels.num_heads for earlier in due}
            self.relabel(step, only=sorted(turns) if self.heads_in_turn else None)

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
        """What the heads see of every image now, float32 [N, D]."""
        num_examples, batch_statistics = self.labels.num_examples, self.batch_statistics or step == 0

        def collect(batches: tf.data.Dataset) -> np.ndarray:
            if self._extractor is None:
                self._extractor = FeatureExtractor(cut_at_heads(self.model), self.model.distribute_strategy)
            return self._extractor.collect(batches, num_examples, batch_statistics=batch_statistics)

        if self.features is None:
            return collect(self.inference_dataset(step) if callable(self.inference_dataset) else self.inference_dataset)
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
            # above a progress bar, if there is one
            tqdm.write(describe(step, head))
        sys.stdout.flush()
        if self.log is not None:
            self.log(step, outcome)


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
