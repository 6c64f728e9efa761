"""A transport larger than memory would like: `python -m benchmarks.large_solve --goals`, features in a file, labels exactly balanced.

N = 4,000,000 rows of K = 1000 clusters from features of 64 values, cold, on all processors. Their logits would take 16 GB. The features lie in
a file as those of a training do that exceed `--label_memory`; the memory reported is the most that was resident, libraries and pages of the
file included. `--goals` prints each goal and what was reached, and ends with 1 on a miss.
"""

from __future__ import annotations

import argparse
import pathlib
import resource
import sys
import tempfile
import time

import numpy as np

from benchmarks.measuring import Checked, print_goals

_DIMENSIONS = 64
_MOST_GIB = 4.0
_BLOCK = 100_000


def features_in_file(directory: pathlib.Path, num_rows: int, centres: np.ndarray) -> np.ndarray:
    """Rows around centres of unequal popularity (the largest has 20 times the median), in a file without a name."""
    from sela_tf.files.scratch import scratch_array

    rng = np.random.default_rng(0)
    popularity = rng.lognormal(size=len(centres))
    features = scratch_array(directory, (num_rows, _DIMENSIONS))
    for start in range(0, num_rows, _BLOCK):
        block = features[start : start + _BLOCK]
        block[:] = centres[rng.choice(len(centres), len(block), p=popularity / popularity.sum())]
        block += rng.standard_normal(block.shape, np.float32)
    return features


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4_000_000)
    parser.add_argument("--clusters", type=int, default=1000)
    parser.add_argument("--spread", type=float, default=1.0, help="of the logits: trained heads are sharp, untrained ones flat")
    parser.add_argument("--label_memory", type=float, default=1.0, help="GiB for what the transport stores")
    parser.add_argument("--goals", action="store_true")
    options = parser.parse_args()
    from sela_tf.transport.assignment import assign_labels
    from sela_tf.transport.linear_logits import LinearLogits

    centres = np.random.default_rng(1).normal(size=(options.clusters, _DIMENSIONS)).astype(np.float32)
    kernel = options.spread * centres.T / _DIMENSIONS**0.5
    with tempfile.TemporaryDirectory() as directory:
        features = features_in_file(pathlib.Path(directory), options.rows, centres)
        start, before = time.perf_counter(), time.process_time()
        found = assign_labels(
            LinearLogits(features, kernel.astype(np.float32), np.zeros(options.clusters, np.float32)),
            memory_limit=options.label_memory * 2**30,
            verbose=True,
        )
        seconds, of_cores = time.perf_counter() - start, time.process_time() - before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{options.rows:,} x {options.clusters}, D = {_DIMENSIONS}: {seconds:.0f} s ({of_cores:.0f} s of cores), {found.num_iterations} passes, "
        f"marginal error {found.marginal_error:.1e}, rounding gap {found.rounding_gap:.1e}, clusters of {found.sizes.min()} to "
        f"{found.sizes.max()}; {peak:.2f} GiB resident at the worst moment"
    )
    goals: list[Checked] = [
        ("the transport converges", bool(found.converged), f"{found.marginal_error:.1e}"),
        (f"at most {_MOST_GIB:g} GiB resident", peak <= _MOST_GIB, f"{peak:.2f}"),
    ]
    return print_goals(goals) if options.goals else 0


if __name__ == "__main__":
    sys.exit(main())
