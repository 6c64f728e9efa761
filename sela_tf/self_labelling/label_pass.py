"""The label pass: a network's opinion on every image, and the labels that follow from it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Protocol

import keras
import numpy as np
import tensorflow as tf
from sklearn.metrics import normalized_mutual_info_score

from sela_tf.models.features import FeatureExtractor
from sela_tf.models.heads import find_multi_head
from sela_tf.self_labelling.label_table import LabelTable

_BLOCK_ROWS = 8192


class Assignment(Protocol):
    """What assigns labels returns at least this; `sela_tf.SinkhornResult` and `sela_tf.BalancedAssignment` do."""

    @property
    def labels(self) -> np.ndarray:
        """Integers [N]."""

    @property
    def potentials(self) -> np.ndarray:
        """[K]."""

    @property
    def converged(self) -> bool:
        """False keeps the labels of before, unless there is an `exactly_balanced` that is True."""


Assign = Callable[..., Assignment]
"""Called with log_probs [N, K] and the keyword initial_potentials ([K], or None at a head's first relabelling)."""


class HeadLabels(NamedTuple):
    """The outcome of one head's relabelling, before it is written to the table."""

    head: int
    assignment: Assignment
    metrics: dict[str, float | int | bool | None]
    """Repeatable numbers: see `relabel`."""
    seconds: float

    @property
    def usable(self) -> bool:
        """Whether these labels are to be trained on."""
        return self.assignment.converged or getattr(self.assignment, "exactly_balanced", False)


def cut_at_heads(model: keras.Model) -> keras.Model:
    """The part of a functional `model` that ends in the input of its one MultiHead layer: features [B, D].

    Raises:
        ValueError: the model has no MultiHead layer or several, or is not functional.
    """
    heads = find_multi_head(model)
    try:
        return keras.Model(model.inputs, heads.input, name=f"{model.name}_features")
    except (AttributeError, ValueError) as error:
        raise ValueError(f"The model must be functional, to be cut at its heads. Received: {type(model).__name__}") from error


def head_log_probs(
    model: keras.Model,
    batches: tf.data.Dataset,
    *,
    num_examples: int,
    batch_statistics: bool = False,
    extractor: FeatureExtractor | None = None,
    only: Iterable[int] | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (head, log-probabilities float32 [N, K]), head by head: the features are computed once, and no N x T x K logits kept.

    Args:
        model: functional, with one MultiHead layer.
        batches: of (images, indices), each index from 0 to N - 1 once, in any order.
        num_examples: N.
        batch_statistics: normalise by the statistics of each batch, as in training; no variable of the model is changed.
        extractor: of `cut_at_heads(model)`, where one is kept from pass to pass.
        only: the heads that are wanted; None for all.
    """
    heads = find_multi_head(model)
    extractor = extractor or FeatureExtractor(cut_at_heads(model))
    features = extractor.collect(batches, num_examples, batch_statistics=batch_statistics)
    for head in range(heads.num_heads) if only is None else only:
        log_probs = np.empty((num_examples, heads.num_clusters), np.float32)
        for start in range(0, num_examples, _BLOCK_ROWS):
            rows = slice(start, start + _BLOCK_ROWS)
            log_probs[rows] = tf.nn.log_softmax(heads.head_logits(features[rows], head))
        yield head, log_probs


def relabel(
    model: keras.Model,
    batches: tf.data.Dataset,
    labels: LabelTable,
    *,
    assign: Assign,
    batch_statistics: bool = False,
    extractor: FeatureExtractor | None = None,
    only: Iterable[int] | None = None,
) -> list[HeadLabels]:
    """New labels for every head, or for `only` some; `labels` itself is only read.

    The metrics of each head: `changed` (share of labels), `objective_before` and `objective_after` (mean -log p of the old and
    the new labels under the present network: E(p, q) of the paper's eq. 3), `smallest_cluster`, `largest_cluster`,
    `nmi_with_previous`, `information` (I(y; i) = H(y) in nats), `information_share` (of ln K: 1 when equipartitioned, falling to
    0 in a collapse), and of the transport `converged`, `num_iterations`, `marginal_error` (null where it has none), `rounding_gap` (null
    where labels are not balanced exactly).
    """
    outcome = []
    previous = labels.labels
    start = time.perf_counter()
    passes = head_log_probs(
        model, batches, num_examples=labels.num_examples, batch_statistics=batch_statistics, extractor=extractor, only=only
    )
    for head, log_probs in passes:
        initial = labels.potentials[head] if labels.num_relabellings[head] else None
        assignment = assign(log_probs, initial_potentials=initial)
        new = np.asarray(assignment.labels)
        sizes = np.bincount(new, minlength=labels.num_clusters)
        shares = sizes[sizes > 0] / len(new)
        information = float(-(shares * np.log(shares)).sum())
        metrics: dict[str, float | int | bool | None] = {
            "converged": bool(assignment.converged),
            "num_iterations": getattr(assignment, "num_iterations", None),
            "marginal_error": getattr(assignment, "marginal_error", None),
            "rounding_gap": getattr(assignment, "rounding_gap", None),
            "changed": float((new != previous[head]).mean()),
            "objective_before": _objective(log_probs, previous[head]),
            "objective_after": _objective(log_probs, new),
            "smallest_cluster": int(sizes.min()),
            "largest_cluster": int(sizes.max()),
            "nmi_with_previous": float(normalized_mutual_info_score(previous[head], new)),
            "information": information,
            "information_share": information / float(np.log(labels.num_clusters)),
        }
        # the pass over the images counts for the first head, as it waits for it
        outcome.append(HeadLabels(head, assignment, metrics, time.perf_counter() - start))
        start = time.perf_counter()
    return outcome


def _objective(log_probs: np.ndarray, labels: np.ndarray) -> float:
    return float(-np.take_along_axis(log_probs, labels[:, np.newaxis], axis=1).mean(dtype=np.float64))
