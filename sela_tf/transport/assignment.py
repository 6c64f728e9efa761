"""What a training run calls: the transport, then the rounding to clusters of exactly the right sizes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from sela_tf.transport.linear_logits import LinearLogits
from sela_tf.transport.marginals import Marginals, rounded_sizes
from sela_tf.transport.newton import BYTES_LISTED
from sela_tf.transport.rounding import balanced_labels
from sela_tf.transport.sinkhorn import SinkhornResult, sinkhorn, usual_storage
from sela_tf.transport.solve import BYTES_STORED

# Of the rows, that would have to leave their cluster: where they are more than the first, as with networks that see hardly any difference
# between images (.35 with an AlexNet after 200 steps, whose rounding took five minutes and takes five seconds so), colder transports
# lead nearer to the unregularised one, until they are less than the second. Networks that learn leave .1 at the start and .01 soon.
_MANY_TO_MOVE, _FEW_TO_MOVE = 0.2, 0.1
_COLDER, _MOST_COLDER, _COLD_TOLERANCE, _COLD_ITERATIONS = 4.0, 4, 1e-2, 200
_SOURCE_BYTES = {"float32": 4, "float16": 2, "computed": 0}
# Entries of each row that Newton's lists need room for, lest a sharp problem be left to hundreds of passes.
_LISTED_OF_A_ROW = 8


class Assignment(NamedTuple):
    """Labels of N rows and how they came about: of a transport, rounded to exact sizes or not, or of any other way to label."""

    labels: np.ndarray
    """int64 [N]."""
    potentials: np.ndarray
    """float32 [K], of the transport; zeros where there was none."""
    lam: float = 1.0
    """The factor of log p where the potentials are added."""
    converged: bool = True
    """The transport reached its tolerance."""
    num_iterations: int | None = None
    marginal_error: float | None = None
    rounding_gap: float | None = None
    """The most that `labels` may lose against the best ones of their sizes, in mean log p an image; None where labels were not rounded."""

    @property
    def sizes(self) -> np.ndarray:
        """int64 [K], images of each cluster."""
        return np.bincount(self.labels, minlength=len(self.potentials))

    @property
    def exactly_balanced(self) -> bool:
        """Labels were rounded to the sizes asked for, and are the best of these whether the transport converged or not."""
        return self.rounding_gap is not None


class MemoryPlan(NamedTuple):
    """The way in which the log-probabilities of one head are held during its transport."""

    source: str
    """float32, float16 (less the row's largest), or computed: from features, at every reading."""
    rest: float
    """Bytes that are left for stored rows and lists."""

    def source_bytes(self, num_rows: int, num_clusters: int) -> int:
        """Bytes that the log-probabilities themselves take."""
        return _SOURCE_BYTES[self.source] * num_rows * num_clusters


def plan_memory(num_rows: int, num_clusters: int, memory_limit: float, *, tolerance: float = 1e-3) -> MemoryPlan:
    """The most precise way to hold N x K log-probabilities within `memory_limit` bytes, lists and stored rows included.

    float32 is taken if rows stored as the tolerance asks for fit besides; float16 if these do, or a few list entries for each row. A fixed
    limit picks the same way on every machine.
    """
    entries = num_rows * num_clusters
    stored = BYTES_STORED[usual_storage(tolerance)] * entries
    for source, besides in (
        ("float32", stored),
        ("float16", min(stored, _LISTED_OF_A_ROW * BYTES_LISTED * num_rows)),
        ("computed", 0),
    ):
        taken = _SOURCE_BYTES[source] * entries
        if taken + besides <= memory_limit:
            break
    return MemoryPlan(source, memory_limit - taken)


def assign_labels(
    log_probs: np.ndarray | tf.Tensor | LinearLogits,
    *,
    lam: float = 25.0,
    tolerance: float = 1e-3,
    max_iterations: int = 10_000,
    initial_potentials: np.ndarray | None = None,
    marginals: Marginals = "uniform",
    known: np.ndarray | None = None,
    exact_balance: bool = True,
    memory_limit: float | None = None,
    verbose: bool = False,
) -> Assignment:
    """`sinkhorn`, then `balanced_labels` from its potentials; the arguments are theirs but for the following.

    Uniform marginals give sizes floor(N/K) and ceil(N/K), also over which clusters get the larger one; others are rounded to whole
    images by largest remainder.

    Args:
        log_probs: [N, K], or `LinearLogits`.
        lam: inverse of the entropic regularisation.
        tolerance: L1 error of the marginals.
        max_iterations: passes after which the transport is given up.
        initial_potentials: [K], a warm start.
        marginals: the clusters' shares.
        known: integers [N], -1 where the label is not known.
        exact_balance: round to exact sizes; otherwise labels are the transport's plain argmax, as the reference's are.
        memory_limit: bytes that stored rows and lists may take, together with the log-probabilities of `LinearLogits`, which are then
            stored while they fit, see `plan_memory`. None sets no limit, and computes `LinearLogits` at every reading.
        verbose: say on stderr what a large solve will take.

    Raises:
        ValueError: as these two.
    """
    rest = memory_limit
    if isinstance(log_probs, LinearLogits) and memory_limit is not None:
        plan = plan_memory(len(log_probs.features), int(log_probs.kernel.shape[1]), memory_limit, tolerance=tolerance)
        rest = plan.rest
        if plan.source != "computed":
            log_probs = log_probs.checked()
            log_probs = log_probs.log_probs() if plan.source == "float32" else log_probs.half_precision()
    solved = sinkhorn(
        log_probs,
        lam=lam,
        tolerance=tolerance,
        max_iterations=max_iterations,
        initial_potentials=initial_potentials,
        marginals=marginals,
        known=known,
        memory_limit=rest,
        verbose=verbose,
    )
    found = Assignment(solved.labels, solved.potentials, solved.lam, solved.converged, solved.num_iterations, solved.marginal_error)
    if not exact_balance:
        return found
    sizes = None
    if not (isinstance(marginals, str) and marginals == "uniform"):
        sizes = rounded_sizes(solved.marginals, len(solved.labels))
        if known is not None:
            known = np.asarray(known)
            held = np.bincount(known[known >= 0], minlength=len(sizes))
            # a share that the known labels fill to the last image may have been rounded down
            sizes = np.maximum(sizes, held)
            while sizes.sum() > len(solved.labels):
                sizes[np.argmax(sizes - held)] -= 1
    potentials = _rounding_potentials(log_probs, solved, known, rest)
    rounded = balanced_labels(log_probs, potentials, lam=lam, sizes=sizes, held=known)
    return found._replace(labels=rounded.labels, rounding_gap=rounded.gap)


def _rounding_potentials(
    log_probs: np.ndarray | tf.Tensor | LinearLogits, solved: SinkhornResult, known: np.ndarray | None, memory_limit: float | None
) -> np.ndarray:
    """[K], those of `solved`, or where its argmax is far from balance those of colder transports, brought to its lam."""
    potentials, labels, lam = solved.potentials, solved.labels, solved.lam
    for round_number in range(_MOST_COLDER):
        sizes = np.bincount(labels, minlength=len(potentials))
        to_move = np.maximum(sizes - np.ceil(len(labels) * solved.marginals), 0).sum() / len(labels)
        if to_move <= (_FEW_TO_MOVE if round_number else _MANY_TO_MOVE):
            break
        lam *= _COLDER
        colder = sinkhorn(
            log_probs,
            lam=lam,
            tolerance=_COLD_TOLERANCE,
            max_iterations=_COLD_ITERATIONS,
            initial_potentials=potentials * (lam / solved.lam),
            marginals=solved.marginals,
            known=known,
            memory_limit=memory_limit,
        )
        potentials, labels = colder.potentials * np.float32(solved.lam / lam), colder.labels
    return potentials
