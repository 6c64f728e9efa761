"""What a training run calls: the transport, then the rounding to clusters of exactly the right sizes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from sela_tf.transport.linear_logits import LinearLogits
from sela_tf.transport.marginals import Marginals, cluster_sizes
from sela_tf.transport.rounding import balanced_labels
from sela_tf.transport.sinkhorn import SinkhornResult, sinkhorn

# Of the rows, that would have to leave their cluster: where they are more than the first, as with networks that see hardly any difference
# between images (.35 with an AlexNet after 200 steps, whose rounding took five minutes and takes five seconds so), colder transports
# lead nearer to the unregularised one, until they are less than the second. Networks that learn leave .1 at the start and .01 soon.
_MANY_TO_MOVE, _FEW_TO_MOVE = 0.2, 0.1
_COLDER, _MOST_COLDER, _COLD_TOLERANCE, _COLD_ITERATIONS = 4.0, 4, 1e-2, 200


class BalancedAssignment(NamedTuple):
    """Labels of clusters of exactly the sizes asked for, and how they came about."""

    labels: np.ndarray
    """int64 [N]."""
    potentials: np.ndarray
    """float32 [K], of the transport."""
    sizes: np.ndarray
    """int64 [K]."""
    rounding_gap: float
    """What `labels` may lose at most against the best ones of these sizes, in mean log p an image."""
    marginal_error: float
    num_iterations: int
    converged: bool
    """Of the transport. The labels are the best of their sizes even if it is False: they do not rest on the potentials."""

    @property
    def exactly_balanced(self) -> bool:
        """True: for those who would not use labels of a transport that did not converge."""
        return True


def assign_labels(
    log_probs: np.ndarray | tf.Tensor | LinearLogits,
    *,
    lam: float = 25.0,
    tolerance: float = 1e-3,
    max_iterations: int = 10_000,
    initial_potentials: np.ndarray | None = None,
    marginals: Marginals = "uniform",
    known: np.ndarray | None = None,
) -> BalancedAssignment:
    """`sinkhorn`, then `balanced_labels` from its potentials; the arguments are theirs.

    Uniform marginals give sizes floor(N/K) and ceil(N/K), also over which clusters get the larger one; others are rounded to whole
    images by largest remainder.

    Raises:
        ValueError: as these two.
    """
    solved = sinkhorn(
        log_probs,
        lam=lam,
        tolerance=tolerance,
        max_iterations=max_iterations,
        initial_potentials=initial_potentials,
        marginals=marginals,
        known=known,
    )
    sizes = None
    if not (isinstance(marginals, str) and marginals == "uniform"):
        sizes = cluster_sizes(solved.marginals, len(solved.labels))
        if known is not None:
            known = np.asarray(known)
            held = np.bincount(known[known >= 0], minlength=len(sizes))
            # a share that the known labels fill to the last image may have been rounded down
            sizes = np.maximum(sizes, held)
            while sizes.sum() > len(solved.labels):
                sizes[np.argmax(sizes - held)] -= 1
    rounded = balanced_labels(log_probs, _rounding_potentials(log_probs, solved, known), lam=lam, sizes=sizes, held=known)
    return BalancedAssignment(
        labels=rounded.labels,
        potentials=solved.potentials,
        sizes=rounded.sizes,
        rounding_gap=rounded.gap,
        marginal_error=solved.marginal_error,
        num_iterations=solved.num_iterations,
        converged=solved.converged,
    )


def _rounding_potentials(
    log_probs: np.ndarray | tf.Tensor | LinearLogits, solved: SinkhornResult, known: np.ndarray | None
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
        )
        potentials, labels = colder.potentials * np.float32(solved.lam / lam), colder.labels
    return potentials
