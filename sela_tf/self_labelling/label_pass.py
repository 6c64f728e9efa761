"""The label pass: features of every image once, then for each head the labels that follow from them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
from sklearn.metrics import normalized_mutual_info_score

from sela_tf.models.build import cut_at_heads
from sela_tf.models.heads import MultiHead, find_multi_head
from sela_tf.models.inference import BatchedInference
from sela_tf.self_labelling.label_table import LabelTable
from sela_tf.transport.assignment import Assignment
from sela_tf.transport.linear_logits import LinearLogits

Assign = Callable[..., Assignment]
"""Called with the `LinearLogits` of a head (features [N, D], kernel [D, K], bias [K]) and the keyword initial_potentials ([K], or None at
the head's first relabelling)."""


class HeadLabels(NamedTuple):
    """The outcome of one head's relabelling, before it is written to the table."""

    head: int
    assignment: Assignment
    metrics: dict[str, float | int | bool | None]
    """Repeatable numbers: see `relabel`."""
    seconds: float

    @property
    def usable(self) -> bool:
        """True where these labels are to be trained on."""
        return self.assignment.converged or self.assignment.exactly_balanced


def head_log_probs(
    model: keras.Model, batches: tf.data.Dataset, *, num_examples: int, batch_statistics: bool = False
) -> Iterator[tuple[int, np.ndarray]]:
    """Log-probabilities float32 [N, K] of one head after the other, of every image of `batches`: (head, log_probs).

    The features are collected once, [N, D] float32; N x K numbers exist for one head at a time if the caller lets go of them.

    Args:
        model: a functional model with one MultiHead layer.
        batches: of (images, example indices); every index from 0 to N - 1 once, in any order and in batches of any size.
        num_examples: N.
        batch_statistics: normalise with the statistics of each batch, as the reference does; no variable of the model changes.

    Raises:
        ValueError: an index is missing, repeated or outside 0 … N - 1, or the model has no or several MultiHead layers.
    """
    heads = find_multi_head(model)
    inference = BatchedInference(cut_at_heads(model))
    features = inference.collect(batches, num_examples, batch_statistics=batch_statistics)
    for head in range(heads.num_heads):
        yield head, LinearLogits(features, heads.head_kernel(head), heads.head_bias(head)).log_probs()


def relabel(
    features: np.ndarray, heads: MultiHead, labels: LabelTable, *, assign: Assign, only: Iterable[int] | None = None
) -> list[HeadLabels]:
    """New labels for every head, or for `only` some; `labels` itself is only read.

    The metrics of each head: `changed` (share of labels), `objective_before` and `objective_after` (mean -log p of the old and
    the new labels under the present network: E(p, q) of the paper's eq. 3), `smallest_cluster`, `largest_cluster`,
    `nmi_with_previous`, `information` (I(y; i) = H(y) in nats), `information_share` (of ln K: 1 when equipartitioned, falling to
    0 in a collapse), and of the transport `converged`, `num_iterations`, `marginal_error` (null where it has none), `rounding_gap` (null
    where labels are not balanced exactly).

    Args:
        features: float32 [N, D], what the heads see of every image.
        heads: the layer with kernel and bias.
        labels: of before.
        assign: see `Assign`.
        only: the heads that are relabelled, from 0; None for all.

    Raises:
        TypeError: `assign` returned something other than an `Assignment`.
        ValueError: as `assign`, or its labels are not those of N images and K clusters.
    """
    outcome = []
    previous = labels.labels
    for head in range(heads.num_heads) if only is None else only:
        start = time.perf_counter()
        logits = LinearLogits(features, heads.head_kernel(head), heads.head_bias(head))
        initial = labels.potentials[head] if labels.num_relabellings[head] else None
        assignment = assign(logits, initial_potentials=initial)
        if not isinstance(assignment, Assignment):
            raise TypeError(
                "`assign` must return a sela_tf.Assignment, as sela_tf.assign_labels does (exact_balance=False for the plain argmax of "
                f"sela_tf.sinkhorn). Received: {type(assignment).__name__}"
            )
        new = np.asarray(assignment.labels)
        if new.shape != (labels.num_examples,) or new.dtype.kind not in "iu" or new.min() < 0 or new.max() >= labels.num_clusters:
            raise ValueError(
                f"`assign` must return {labels.num_examples} integer labels from 0 to {labels.num_clusters - 1}. Received: {new.dtype} "
                f"{new.shape}" + (f", values from {new.min()} to {new.max()}" if new.size else "")
            )
        sizes = np.bincount(new, minlength=labels.num_clusters)
        shares = sizes[sizes > 0] / len(new)
        information = float(-(shares * np.log(shares)).sum())
        before, after = logits.mean_log_probs(previous[head], new)
        metrics: dict[str, float | int | bool | None] = {
            "converged": bool(assignment.converged),
            "num_iterations": assignment.num_iterations,
            "marginal_error": assignment.marginal_error,
            "rounding_gap": assignment.rounding_gap,
            "changed": float((new != previous[head]).mean()),
            "objective_before": -before,
            "objective_after": -after,
            "smallest_cluster": int(sizes.min()),
            "largest_cluster": int(sizes.max()),
            "nmi_with_previous": float(normalized_mutual_info_score(previous[head], new)),
            "information": information,
            "information_share": information / float(np.log(labels.num_clusters)),
        }
        outcome.append(HeadLabels(head, assignment, metrics, time.perf_counter() - start))
    return outcome
