"""Lambda, iterations and distance to the exact transport: `python -m benchmarks.regularisation`, on the networks that the row resnet8 trained.

The log-probabilities of all training images under a finished run of build/experiments, once per lambda: iterations of plain
Sinkhorn-Knopp (the paper's, counted up to --at_most) and of sela_tf until the clusters' marginals are right to 1e-3 in L1; what the plan
costs above the exact transport, in nats an image; the argmax of the plan: its labels that are those of the exact transport, and its sizes.
Writes docs/results/regularisation.json; the table is made by benchmarks.experiments.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np

from benchmarks.experiment_tables import REGULARISATION
from benchmarks.experiments import RUNS

TOLERANCE = 1e-3


def plain_iterations(log_probs: np.ndarray, lam: float, at_most: int) -> int | None:
    """Of Sinkhorn-Knopp in float64, on rows normalised beforehand so that none underflows; None where `at_most` are not enough."""
    scores = lam * log_probs.astype(np.float64)
    scores -= scores.max(axis=1, keepdims=True)
    kernel = np.exp(scores)
    num_rows, num_clusters = kernel.shape
    columns = np.ones(num_clusters)
    for iteration in range(1, at_most + 1):
        masses = columns * (kernel.T @ (1.0 / (kernel @ columns))) / num_rows
        if np.abs(masses - 1.0 / num_clusters).sum() <= TOLERANCE:
            return iteration
        columns /= np.maximum(num_clusters * masses, 1e-250)
        columns /= columns.max()
    return None


def measure(log_probs: np.ndarray, lams: list[float], at_most: int) -> list[dict[str, Any]]:
    """One line a lambda."""
    import sela_tf

    best = sela_tf.assign_labels(log_probs, lam=100.0).labels
    exact = cost(log_probs, best)
    lines = []
    for lam in lams:
        start = time.perf_counter()
        found = sela_tf.sinkhorn(log_probs, lam=lam, tolerance=TOLERANCE)
        seconds = time.perf_counter() - start
        plan = found.plan(log_probs).q * len(log_probs)
        sizes = np.bincount(found.labels, minlength=log_probs.shape[1])
        lines.append(
            {
                "lam": lam,
                "plain_iterations": plain_iterations(log_probs, lam, at_most),
                "at_most": at_most,
                "iterations": found.num_iterations,
                "seconds": seconds,
                "plan_above_exact": float(-(plan * log_probs).sum() / len(log_probs) - exact),
                "same_labels": float((found.labels == best).mean()),
                "smallest_cluster": int(sizes.min()),
                "largest_cluster": int(sizes.max()),
            }
        )
        print(lines[-1], flush=True)
    return lines


def cost(log_probs: np.ndarray, labels: np.ndarray) -> float:
    """Mean -log p of the labels."""
    return float(-np.take_along_axis(log_probs, labels[:, np.newaxis], axis=1).mean(dtype=np.float64))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=lambda text: [*map(int, text.split(","))], default=[0, 1, 2])
    parser.add_argument("--lams", type=lambda text: [*map(float, text.split(","))], default=[5.0, 10.0, 25.0, 50.0, 100.0])
    parser.add_argument("--at_most", type=int, default=5000)
    options = parser.parse_args()
    from sela_tf.data.batch_sizes import LABEL_PASS_BATCH
    from sela_tf.data.pipeline import inference_batches
    from sela_tf.runs.flagfile import read_config
    from sela_tf.runs.network import load_run
    from sela_tf.self_labelling.label_pass import head_log_probs
    from sela_tf.training.images import load_data

    found: dict[str, Any] = {}
    for seed in options.seeds:
        workdir = RUNS / f"resnet8-{seed}"
        data = load_data(read_config(workdir))
        batches = inference_batches(data.train, size=data.size, batch_size=LABEL_PASS_BATCH)
        ((_, log_probs),) = head_log_probs(load_run(workdir), batches, num_examples=len(data.train))
        found[str(seed)] = measure(log_probs, options.lams, options.at_most)
    REGULARISATION.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
