"""The label pass: the heads' inputs for every image once, then the labels of each head that follow from them."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from sklearn.metrics import normalized_mutual_info_score

from sela_tf.models.build import cut_at_heads
from sela_tf.models.heads import MultiHead, find_multi_head
from sela_tf.models.inference import BatchedInference
from sela_tf.self_labelling.label_table import LabelTable
from sela_tf.transport.assignment import Assignment, assign_labels
from sela_tf.transport.linear_logits import LinearLogits
from sela_tf.transport.placement import placed, present
from sela_tf.transport.shards import ALONE, Shards

Assign = Callable[..., Assignment]
"""A function that makes the labels of a head. It takes the head's `LinearLogits` (features [N, D], the heads' inputs; kernel [D, K]; bias
[K]) and the keyword `initial_potentials` ([K], or None at the head's first relabelling); where labels are known, also the keyword `known`
(integers [N], -1 where the label is not known)."""


class Share(NamedTuple):
    """The images of a label pass that this worker has, of several that share them."""

    shards: Shards
    """The workers."""
    rows: np.ndarray
    """The example indices of this worker's images, int64 [n]."""

    def joined(self, values: np.ndarray) -> np.ndarray:
        """Returns the values of all images in the order of their indices, [N], of which `values` [n] are this worker's."""
        indices, joined = self.shards.joined(self.rows, values)
        whole = np.empty_like(joined)
        whole[indices] = joined
        return whole


class HeadLabels(NamedTuple):
    """The outcome of one head's relabelling, before it is written to the table."""

    head: int
    """The head, from 0."""
    assignment: Assignment
    """The new labels, with the state of their transport."""
    metrics: dict[str, float | int | bool | None]
    """Metrics that repeat with the seed; see `compute_labels`."""
    seconds: float
    """Time that the relabelling took."""

    @property
    def usable(self) -> bool:
        """True where training may use these labels: their transport converged, or they are exactly balanced."""
        return self.assignment.converged or self.assignment.exactly_balanced

    def in_words(self, step: int) -> str:
        """Describes the relabelling before the optimizer step `step`, in one line for the person watching."""
        metrics = self.metrics
        iterations = f"{metrics['num_iterations']} iterations, " if metrics["num_iterations"] is not None else ""
        line = (
            f"relabel step {step} head {self.head}: {iterations}{metrics['changed']:.1%} changed, objective "
            f"{metrics['objective_before']:.4f} -> {metrics['objective_after']:.4f}, {self.seconds:.1f} s"
        )
        if metrics["converged"]:
            return line
        outcome = "the labels are balanced exactly all the same" if self.usable else "the old labels are kept"
        return line + f"; NOT CONVERGED (marginal error {metrics['marginal_error']}): {outcome}"


def head_log_probs(
    model: keras.Model, batches: tf.data.Dataset, *, num_examples: int, batch_statistics: bool = False
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (head, log-probabilities float32 [N, K]) for one head after the other, over every image of `batches`.

    The heads' inputs, float32 [N, D], are collected once. N x K numbers exist for one head at a time if the caller keeps none of them.

    Args:
        model: a functional model with one MultiHead layer.
        batches: batches of (images, example indices); every index from 0 to N - 1 once, in any order and in batches of any size.
        num_examples: the number N of images.
        batch_statistics: normalise with the statistics of each batch, as the reference code does; no variable of the model changes.

    Raises:
        ValueError: an index is missing, repeated or outside 0 … N - 1, or the model has no or several MultiHead layers.
    """
    heads = find_multi_head(model)
    inference = BatchedInference(cut_at_heads(model))
    head_inputs = inference.collect(batches, num_examples, batch_statistics=batch_statistics)
    for head in range(heads.num_heads):
        yield head, LinearLogits(head_inputs, heads.head_kernel(head), heads.head_bias(head)).log_probs()


def compute_labels(
    head_inputs: np.ndarray,
    heads: MultiHead,
    labels: LabelTable,
    *,
    assign: Assign,
    only: Iterable[int] | None = None,
    known: np.ndarray | None = None,
    share: Share | None = None,
) -> list[HeadLabels]:
    """Computes new labels of the heads, without writing them to the table.

    The metrics of each head are `changed` (share of the labels), `objective_before` and `objective_after` (mean -log p of the old and the new
    labels under the present network, E(p, q) of the paper's eq. 3, in nats), `smallest_cluster`, `largest_cluster`, `nmi_with_previous`,
    `information` (I(y; i) = H(y), in nats), `information_share` (H(y) / ln K: 1 for equal clusters, 0 for a single one), and those of the
    transport: `converged`, `num_iterations`, `marginal_error` (None where the assignment has none) and `rounding_gap` (None where labels are
    not exactly balanced).

    Args:
        head_inputs: the heads' inputs for every image, float32 [N, D].
        heads: the MultiHead layer, with kernel and bias.
        labels: the table with the labels and potentials of before, which is only read.
        assign: the function that makes the labels of a head.
        only: the heads that are relabelled, from 0; None for all.
        known: integers [T, N], under each head the cluster of the images whose label is known and -1 elsewhere; handed on to `assign`.
        share: the images that `head_inputs` are of, where several workers have a share each and call this function together; None where
            they are of all images, in their order. `assign` then gets the rows of this worker, and the keyword `shards`.

    Where `assign` is `assign_labels`, and the machine has more graphics cards than a head has use for, heads are relabelled side by side.

    Raises:
        TypeError: `assign` returned something other than an `Assignment`.
        ValueError: `assign` raised it, or its labels are not N integers from 0 to K - 1.
    """
    numbers = list(range(heads.num_heads) if only is None else only)
    one_head = functools.partial(_label_head, head_inputs, heads, labels, labels.labels, assign, known, share)
    # A function of someone else's may not bear being called in several threads; neither may messages.
    is_own = getattr(assign, "func", assign) is assign_labels and share is None
    places = present().side_by_side(len(numbers), labels.num_examples * labels.num_clusters) if is_own else []
    if len(places) <= 1:
        return [one_head(head) for head in numbers]

    def some_heads(part: int) -> list[HeadLabels]:
        with placed(places[part]):
            return [one_head(head) for head in numbers[part :: len(places)]]

    with ThreadPoolExecutor(len(places)) as threads:
        outcome = [each for part in threads.map(some_heads, range(len(places))) for each in part]
    return sorted(outcome, key=lambda each: numbers.index(each.head))


def _label_head(
    head_inputs: np.ndarray,
    heads: MultiHead,
    labels: LabelTable,
    previous: np.ndarray,
    assign: Assign,
    known: np.ndarray | None,
    share: Share | None,
    head: int,
) -> HeadLabels:
    """Computes new labels of one head; see `compute_labels`. `previous` [T, N] are the table's labels."""
    start = time.perf_counter()
    shards, rows = (ALONE, slice(None)) if share is None else share
    logits = LinearLogits(head_inputs, heads.head_kernel(head), heads.head_bias(head))
    # A table that starts from another run's labels has its potentials before the first relabelling.
    are_known = labels.num_relabellings[head] or np.isfinite(labels.lam[head])
    initial = labels.potentials[head] if are_known else None
    held: dict[str, Any] = {} if known is None else {"known": known[head][rows]}
    if share is not None:
        held["shards"] = shards
    assignment = assign(logits, initial_potentials=initial, **held)
    if not isinstance(assignment, Assignment):
        raise TypeError(
            "`assign` must return a sela_tf.Assignment, as sela_tf.assign_labels does (exact_balance=False for the plain argmax of "
            f"sela_tf.sinkhorn). Received: {type(assignment).__name__}"
        )
    new = np.asarray(assignment.labels)
    if share is not None:
        new = share.joined(new)
        assignment = assignment._replace(labels=new)
    if new.shape != (labels.num_examples,) or new.dtype.kind not in "iu" or new.min() < 0 or new.max() >= labels.num_clusters:
        raise ValueError(
            f"`assign` must return {labels.num_examples} integer labels from 0 to {labels.num_clusters - 1}. Received: {new.dtype} "
            f"{new.shape}" + (f", values from {new.min()} to {new.max()}" if new.size else "")
        )
    sizes = np.bincount(new, minlength=labels.num_clusters)
    shares = sizes[sizes > 0] / len(new)
    information = float(-(shares * np.log(shares)).sum())
    sums = shards.total(*logits.sum_log_probs(previous[head][rows], new[rows]))
    before, after = (float(total) / len(new) for total in sums)
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
    return HeadLabels(head, assignment, metrics, time.perf_counter() - start)
