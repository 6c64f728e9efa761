"""Labels that are exactly balanced among the images to label."""

from __future__ import annotations

import numpy as np

from sela_tf.commands.label_blocks import StoredOutputs
from sela_tf.models.heads import MultiHead
from sela_tf.settings.commands import LabelConfig
from sela_tf.settings.training import SelaConfig
from sela_tf.transport.assignment import assign_labels
from sela_tf.transport.linear_logits import LinearLogits


def balanced_clusters(
    stored: StoredOutputs,
    heads: MultiHead,
    config: SelaConfig,
    initial_potentials: np.ndarray,
    settings: LabelConfig,
    *,
    lam: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Solves the transport of each head on the stored inputs of the heads.

    Returns:
        (clusters [N, T], exactly balanced; potentials [T, K]).
    """
    solved = []
    for head in range(heads.num_heads):
        assignment = assign_labels(
            LinearLogits(stored.head_inputs, heads.head_kernel(head), heads.head_bias(head)),
            lam=lam,
            tolerance=config.transport_tolerance,
            max_iterations=config.transport_max_iterations,
            initial_potentials=initial_potentials[head],
            marginals=config.marginals,
            memory_limit=settings.label_memory * 2**30,
        )
        not_converged = f"; NOT CONVERGED (marginal error {assignment.marginal_error:.1e}), yet balanced exactly"
        print(
            f"head {head}: {assignment.num_iterations} iterations, clusters of {assignment.sizes.min()} to {assignment.sizes.max()} images"
            + ("" if assignment.converged else not_converged),
            flush=True,
        )
        solved.append(assignment)
    return np.stack([one.labels for one in solved], axis=1), np.stack([one.potentials for one in solved])
