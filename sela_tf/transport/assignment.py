"""The labels of a training run: `assign_labels`, a transport whose labels are rounded to clusters of exactly the right sizes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from sela_tf.transport.candidates import BYTES_PER_CANDIDATE
from sela_tf.transport.linear_logits import LinearLogits
from sela_tf.transport.marginals import Marginals, rounded_sizes
from sela_tf.transport.placement import present
from sela_tf.transport.rounding import balanced_labels
from sela_tf.transport.shards import ALONE, Shards
from sela_tf.transport.sinkhorn import SinkhornResult, sinkhorn, usual_storage
from sela_tf.transport.size_bounds import SizeBound, check_size_bounds
from sela_tf.transport.solve import BYTES_STORED
from sela_tf.transport.table import Table

# Where more than the first share of the rows would have to leave their cluster, transports at larger lam (colder ones) come first, until it
# is less than the second share. This happens with networks that see hardly any difference between images: an AlexNet after 200 steps has a
# share of .35, and its rounding takes five seconds in this way, five minutes without. Networks that learn have .1 at the start and .01 soon.
_MANY_TO_MOVE, _FEW_TO_MOVE = 0.2, 0.1
_COLDER, _MAX_COLDER, _COLD_TOLERANCE, _COLD_ITERATIONS = 4.0, 4, 1e-2, 200
_BYTES_OF_FORM = {"float32": 4, "float16": 2, "computed": 0}
# Newton's lists need room for this many candidates a row; with fewer, a sharp problem would be left to hundreds of passes.
_CANDIDATES_PER_ROW = 8


class Assignment(NamedTuple):
    """Labels of N rows, with a report of the transport and the rounding that made them, where there was one."""

    labels: np.ndarray
    """The cluster of each row, int64 [N]."""
    potentials: np.ndarray
    """The potentials of the transport, float32 [K]; zeros where there was none."""
    lam: float = 1.0
    """The factor of log p to which the potentials are added: the inverse strength of the entropic regularisation."""
    converged: bool = True
    """True if the transport reached its tolerance."""
    num_iterations: int | None = None
    """The number of passes over the log-probabilities; None where there was no transport."""
    marginal_error: float | None = None
    """The L1 error of the clusters' shares in the transport, in [0, 2]; None where there was no transport."""
    rounding_gap: float | None = None
    """An upper bound on what `labels` lose against the best labels of their sizes, in mean log p an image; None where labels were not
    rounded to exact sizes."""

    @property
    def sizes(self) -> np.ndarray:
        """The number of images of each cluster, int64 [K]; of those that this worker has, where several share them."""
        return np.bincount(self.labels, minlength=len(self.potentials))

    @property
    def exactly_balanced(self) -> bool:
        """True if labels were rounded to the sizes asked for; they are the best of these whether the transport converged or not."""
        return self.rounding_gap is not None


class MemoryPlan(NamedTuple):
    """The form in which the log-probabilities of one head are kept in memory during its transport."""

    form: str
    """The form: `float32`, `float16` (less the row's largest), or `computed` from the features at every reading."""
    rest: float
    """The bytes that are left for stored rows and candidate lists."""

    def log_probs_bytes(self, num_rows: int, num_clusters: int) -> int:
        """Returns the bytes that the log-probabilities themselves take."""
        return _BYTES_OF_FORM[self.form] * num_rows * num_clusters


def plan_memory(num_rows: int, num_clusters: int, memory_limit: float, *, tolerance: float = 1e-3) -> MemoryPlan:
    """Chooses the most precise form of N x K log-probabilities for which `memory_limit` bytes suffice.

    It is float32 if the rows that the transport stores fit too; else float16 if these rows, or candidate lists of a few entries a row,
    fit too; else computed. The choice depends on nothing else, so that it is the same on every machine.

    Args:
        num_rows: N.
        num_clusters: K.
        memory_limit: the bytes for log-probabilities, stored rows and candidate lists together.
        tolerance: the tolerance of the transport, which decides the number format of stored rows.
    """
    entries = num_rows * num_clusters
    stored = BYTES_STORED[usual_storage(tolerance)] * entries
    for form, needed in (
        ("float32", stored),
        ("float16", min(stored, _CANDIDATES_PER_ROW * BYTES_PER_CANDIDATE * num_rows)),
        ("computed", 0),
    ):
        taken = _BYTES_OF_FORM[form] * entries
        if taken + needed <= memory_limit:
            break
    return MemoryPlan(form, memory_limit - taken)


def assign_labels(
    log_probs: np.ndarray | tf.Tensor | LinearLogits,
    *,
    lam: float = 25.0,
    tolerance: float = 1e-3,
    max_iterations: int = 10_000,
    initial_potentials: np.ndarray | None = None,
    marginals: Marginals = "uniform",
    known: np.ndarray | None = None,
    size_min: SizeBound = None,
    size_max: SizeBound = None,
    exact_balance: bool = True,
    memory_limit: float | None = None,
    verbose: bool = False,
    shards: Shards = ALONE,
) -> Assignment:
    """Labels N images with clusters of exactly the right sizes, or of sizes within bounds: `sinkhorn`, then `balanced_labels`.

    Uniform marginals give sizes floor(N/K) and ceil(N/K), whichever is best for each cluster. Other shares are rounded to whole images
    by largest remainder.

    Args:
        log_probs: [N, K], log p(y|x) or logits; or `LinearLogits`.
        lam: the inverse strength of the entropic regularisation.
        tolerance: the L1 error of the clusters' shares at which the transport ends.
        max_iterations: the number of passes over the log-probabilities after which the transport ends without having converged.
        initial_potentials: [K], the potentials of an earlier transport as a warm start; zeros if None.
        marginals: the clusters' shares: "uniform", K positive numbers, or a named prior, "zipf" or "gaussian".
        known: integers [N], the cluster of the rows whose label is known and -1 elsewhere. Those rows keep it.
        size_min: the smallest number of rows of a cluster, or K such numbers. With it or `size_max` sizes are the best within these bounds.
        size_max: the largest number of rows of a cluster, or K such numbers.
        exact_balance: True to round to exact sizes; False for the transport's plain argmax, as in the reference.
        memory_limit: the bytes that stored rows and candidate lists may take, together with the log-probabilities of `LinearLogits`, which
            are kept in memory if they fit, as `plan_memory` decides. None sets no limit, and computes `LinearLogits` at every reading. On
            graphics cards it is the memory of each card.
        verbose: True to print to stderr the memory and time that a large solve will take.
        shards: the workers that have a share of the rows each and call this function together. N and `known` are then those of this
            worker's rows, and so are the labels returned; `memory_limit` is that of a worker; the rest is about all rows.

    Raises:
        ValueError: an argument is refused by `sinkhorn` or `balanced_labels`.
    """
    rest, form, placement = memory_limit, "computed", present()
    if isinstance(log_probs, LinearLogits):
        log_probs = log_probs.checked()
        if memory_limit is not None:
            # The worker with the most rows decides for all.
            num_most = int(shards.of_each(np.array(len(log_probs.features))).max())
            limit = memory_limit * placement.num_memories
            form, rest = plan_memory(num_most, int(log_probs.kernel.shape[1]), limit, tolerance=tolerance)
    if placement.on_cards:
        keep_bytes = None if memory_limit is None else memory_limit * placement.num_memories
        log_probs = Table(log_probs, placement=placement, form=form, keep_bytes=keep_bytes)
    elif isinstance(log_probs, LinearLogits) and form != "computed":
        log_probs = log_probs.log_probs() if form == "float32" else log_probs.half_precision()
    solved = sinkhorn(
        log_probs,
        lam=lam,
        tolerance=tolerance,
        max_iterations=max_iterations,
        initial_potentials=initial_potentials,
        marginals=marginals,
        known=known,
        size_min=size_min,
        size_max=size_max,
        memory_limit=rest,
        verbose=verbose,
        shards=shards,
    )
    found = Assignment(solved.labels, solved.potentials, solved.lam, solved.converged, solved.num_iterations, solved.marginal_error)
    if not exact_balance:
        return found
    known = None if known is None else np.asarray(known)
    is_uniform = isinstance(marginals, str) and marginals == "uniform"
    sizes = None if is_uniform else _whole_sizes(solved.marginals, known, len(solved.labels), shards)
    potentials = _rounding_potentials(log_probs, solved, size_min, size_max, known, rest, shards)
    rounded = balanced_labels(
        log_probs, potentials, lam=lam, sizes=sizes, known=known, size_min=size_min, size_max=size_max, shards=shards
    )
    return found._replace(labels=rounded.labels, rounding_gap=rounded.rounding_gap)


def _whole_sizes(shares: np.ndarray, known: np.ndarray | None, num_rows: int, shards: Shards) -> np.ndarray:
    """Returns whole sizes int64 [K] of all rows: `shares` [K] of them by largest remainder, but none below its number of known labels."""
    num_all = int(shards.total(num_rows)[0])
    sizes = rounded_sizes(shares, num_all)
    if known is not None:
        num_known = shards.total(np.bincount(known[known >= 0], minlength=len(sizes)))[0].astype(np.int64)
        # A share that the known labels fill to the last image may have been rounded down.
        sizes = np.maximum(sizes, num_known)
        while sizes.sum() > num_all:
            sizes[np.argmax(sizes - num_known)] -= 1
    return sizes


def _rounding_potentials(
    log_probs: np.ndarray | tf.Tensor | LinearLogits | Table,
    solved: SinkhornResult,
    size_min: SizeBound,
    size_max: SizeBound,
    known: np.ndarray | None,
    memory_limit: float | None,
    shards: Shards,
) -> np.ndarray:
    """Returns potentials float32 [K] for the rounding, in units of `solved.lam`.

    They are those of `solved`, or, where its argmax is far from the sizes, those of transports at larger lam.
    """
    potentials, labels, lam = solved.potentials, solved.labels, solved.lam
    has_bounds, num_all = size_min is not None or size_max is not None, int(shards.total(len(labels))[0])
    if has_bounds:
        lower, upper = check_size_bounds(size_min, size_max, num_all, len(potentials))
    else:
        upper = np.ceil(num_all * solved.marginals)
        lower = np.zeros_like(upper)
    for round_number in range(_MAX_COLDER):
        (sizes,) = shards.total(np.bincount(labels, minlength=len(potentials)))
        to_move = max(np.maximum(sizes - upper, 0).sum(), np.maximum(lower - sizes, 0).sum()) / num_all
        if to_move <= (_FEW_TO_MOVE if round_number else _MANY_TO_MOVE):
            break
        lam *= _COLDER
        colder = sinkhorn(
            log_probs,
            lam=lam,
            tolerance=_COLD_TOLERANCE,
            max_iterations=_COLD_ITERATIONS,
            initial_potentials=potentials * (lam / solved.lam),
            marginals="uniform" if has_bounds else solved.marginals,
            known=known,
            size_min=size_min,
            size_max=size_max,
            memory_limit=memory_limit,
            shards=shards,
        )
        potentials, labels = colder.potentials * np.float32(solved.lam / lam), colder.labels
    return potentials
