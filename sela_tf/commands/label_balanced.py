"""Labels that are exactly balanced among the images to label."""

from __future__ import annotations

import numpy as np

from sela_tf.commands.label_blocks import StoredOutputs
from sela_tf.models.heads import MultiHead
from sela_tf.settings.commands import LabelConfig
from sela_tf.settings.training import SelaConfig
from sela_tf.transport.assignment import assign_labels
from sela_tf.transport.linear_logits import LinearLogits
from sela_tf.transport.size_bounds import scaled_size_bounds


def balanced_clusters(
    stored: StoredOutputs,
    heads: MultiHead,
    config: SelaConfig,
    initial_potentials: np.ndarray,
    settings: LabelConfig,
    *,
    num_trained: int,
    lam: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Solves the transport of each head on the stored inputs of the heads.

    Clusters are equally large, or of the shares that the run asked for. Bounds of their sizes are scaled from its `num_trained` images to these.

    Returns:
        (clusters [N, T], exactly balanced; potentials [T, K]).
    """
    solved = []
    size_min, size_max = scaled_size_bounds(config.cluster_sizes, num_trained, len(stored.head_inputs))
    for head in range(heads.num_heads):
        assignment = assign_labels(
            LinearLogits(stored.head_inputs, heads.head_kernel(head), heads.head_bias(head)),
            lam=lam,
            tolerance=config.transport_tolerance,
            max_iterations=config.transport_max_iterations,
            initial_potentials=initial_potentials[head],
            marginals=config.marginals,
            size_min=size_min,
            size_max=size_max,
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
