"""Labels from half precision: `python -m benchmarks.label_memory`, the share of labels that are those of float32, in Markdown.

On the problems of benchmarks/problems.py: log p less its row's largest in float16, as `--label_memory` holds it where float32 does not fit;
and as a scale for that, float32 with noise of 1e-6, which another order of a sum makes. Labels of the transport; rounded to exact balance as
training does it, which beyond 2**20 entries may stop .1/lam short of the best; and rounded to the best.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np

from benchmarks.problems import LAM, SIZES, made
from sela_tf.reporting.markdown import markdown
from sela_tf.transport import rounding
from sela_tf.transport.assignment import assign_labels
from sela_tf.transport.sinkhorn import sinkhorn

_NOISE = 1e-6


def exactly(log_probs: np.ndarray) -> np.ndarray:
    """Labels of exact balance, the best whatever the size."""
    usual, rounding._EXACT_SIZE = rounding._EXACT_SIZE, log_probs.size
    try:
        return assign_labels(log_probs, lam=LAM).labels
    finally:
        rounding._EXACT_SIZE = usual


WAYS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "transport": lambda log_probs: sinkhorn(log_probs, lam=LAM).labels,
    "exact balance": lambda log_probs: assign_labels(log_probs, lam=LAM).labels,
    "the best of exact balance": exactly,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", default="", help="a finished run on Fashion-MNIST; one is trained otherwise")
    parser.add_argument("--clusters", type=lambda text: [*map(int, text.split(","))], default=[128, 1000])
    options = parser.parse_args()
    rows = []
    for num_clusters in options.clusters:
        for kind in ("trained", "untrained"):
            problem = made(kind, SIZES[num_clusters], num_clusters, 0, options.workdir, with_optimum=False)
            float32 = problem.log_probs()
            half = (float32 - float32.max(axis=1, keepdims=True)).astype(np.float16)
            noise = np.random.default_rng(0).normal(scale=_NOISE, size=float32.shape).astype(np.float32)
            for name, labels_of in WAYS.items():
                expected = labels_of(float32)
                shares = [(labels_of(other) == expected).mean() for other in (half, float32 + noise)]
                rows.append([kind, f"{problem.num_rows:,} x {num_clusters}", name, *(f"{100 * share:.2f}" for share in shares)])
                print("  ".join(rows[-1]), flush=True)
    print(markdown(["network", "N x K", "labels", "float16, %", "float32 with noise, %"], rows))


if __name__ == "__main__":
    main()
