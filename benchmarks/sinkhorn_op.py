"""The speed of `sela_tf.sinkhorn_op` on a batch, beside lightly's `sinkhorn` and the loop of SwAV's code: `python -m benchmarks.sinkhorn_op`.

Float32, lambda 20, one thread, K = 3000. Every method runs in a process of its own, because TensorFlow and PyTorch with CUDA in one process
crashed, and the processes take turns. A time is the median of all calls, in processor time of all threads, which other work on the machine
changes little. The op stands in a `tf.function`. An iteration is one normalisation of the clusters and one of the rows.

The calls for 3 iterations and for an L1 error of the clusters' shares of 1e-3 give the plan. lightly's function does not look at the error:
it is told the smallest number of iterations that suffices, found before the clock starts. SwAV's loop reads its error from sums that
it has anyway.

The problems: `untrained`, cosines of random features and prototypes [K, 128]; `trained`, cosines of features around prototypes, a few of
which are far more popular than others; `log_probs`, log softmax of the latter at temperature 0.1, as SeLa has it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
from scipy.special import log_softmax

from benchmarks.measuring import environment, pin

LAM, TOLERANCE, ITERATIONS = 20.0, 1e-3, 3
NUM_CLUSTERS, BATCHES = 3000, (256, 4096)
KINDS = ("untrained", "trained", "log_probs")
METHODS = ("sela_tf", "lightly", "SwAV loop")
MOST_ITERATIONS = 1000
_WARM_UP = 3

Run = Callable[[int, float], tuple[int, float]]


def problem(kind: str, num_rows: int) -> np.ndarray:
    """float32 [B, K]."""
    rng, width = np.random.default_rng(0), 128
    prototypes = rng.normal(size=(NUM_CLUSTERS, width))
    prototypes /= np.linalg.norm(prototypes, axis=1, keepdims=True)
    features = 0.8 * rng.normal(size=(num_rows, width)) / np.sqrt(width)
    if kind != "untrained":
        features += 0.5 * prototypes[rng.zipf(1.5, num_rows) % NUM_CLUSTERS]
    cosines = features @ prototypes.T / np.linalg.norm(features, axis=1, keepdims=True)
    return (log_softmax(cosines / 0.1, axis=1) if kind == "log_probs" else cosines).astype(np.float32)


def error_of(plan: np.ndarray) -> float:
    shares = plan.sum(axis=0, dtype=np.float64) / plan.sum(dtype=np.float64)
    return float(np.abs(shares - 1 / len(shares)).sum())


def sela_tf_op(values: np.ndarray) -> Run:
    import tensorflow as tf

    import sela_tf

    scores = tf.constant(values)

    @tf.function
    def in_graph(scores: tf.Tensor, iterations: int, tolerance: float) -> sela_tf.SinkhornOpResult:
        return sela_tf.sinkhorn_op(scores, lam=LAM, tolerance=tolerance, max_iterations=iterations)

    def run(iterations: int, tolerance: float) -> tuple[int, float]:
        result = in_graph(scores, iterations, tolerance)
        return int(result.num_iterations), float(result.marginal_error)

    return run


def lightly(values: np.ndarray) -> Run:
    import torch
    from lightly.loss.swav_loss import sinkhorn

    torch.set_num_threads(1)
    scores, enough = torch.from_numpy(values), 0
    for iterations in range(1, MOST_ITERATIONS + 1):
        error = error_of(sinkhorn(scores, iterations=iterations, epsilon=1 / LAM).numpy())
        if not error > TOLERANCE:  # or NaN
            enough = iterations
            break

    def run(iterations: int, tolerance: float) -> tuple[int, float]:
        iterations = enough if tolerance else iterations
        plan = sinkhorn(scores, iterations=iterations, epsilon=1 / LAM)
        return iterations, error if tolerance else float(plan[0, 0])

    return run


def swav(values: np.ndarray) -> Run:
    import torch

    torch.set_num_threads(1)
    scores = torch.from_numpy(values)

    def run(iterations: int, tolerance: float) -> tuple[int, float]:
        q = torch.exp(scores * LAM).t()
        num_clusters, num_rows = q.shape
        q /= q.sum()
        for done in range(iterations + 1):
            mass, error = None, 2.0
            if tolerance or done < iterations:
                mass = q.sum(dim=1, keepdim=True)
                error = float((mass - 1 / num_clusters).abs().sum()) if done else 2.0
            if done == iterations or not error > tolerance:  # or NaN
                break
            q /= mass
            q /= num_clusters
            q /= q.sum(dim=0, keepdim=True)
            q /= num_rows
        q *= num_rows
        return done, error

    return run


def measure(method: str, kind: str, num_rows: int, repeats: int) -> dict:
    run = {"sela_tf": sela_tf_op, "lightly": lightly, "SwAV loop": swav}[method](problem(kind, num_rows))
    found: dict = {}
    for name, iterations, tolerance in (("fixed", ITERATIONS, 0.0), ("reached", MOST_ITERATIONS, TOLERANCE)):
        seconds = []
        for _ in range(_WARM_UP + repeats * (max(BATCHES) // num_rows)):
            start = time.process_time()
            taken, error = run(iterations, tolerance)
            seconds.append(time.process_time() - start)
        found[name] = {"iterations": taken, "error": error, "seconds": seconds[_WARM_UP:]}
    return found


def in_process(method: str, repeats: int) -> list[dict]:
    command = [sys.executable, "-m", "benchmarks.sinkhorn_op", "--one", method, "--repeats", str(repeats)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment(1))
    return json.loads(done.stdout.splitlines()[-1])


def milliseconds(rounds: list[dict], name: str) -> float:
    return 1000 * statistics.median(second for found in rounds for second in found[name]["seconds"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="how often the methods take turns")
    parser.add_argument(
        "--repeats", type=int, default=15, help="calls in a round, for the largest batch; in proportion more for smaller ones"
    )
    parser.add_argument("--goals", action="store_true", help="print what was aimed at and reached, and fail where it was missed")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    cells = [(kind, num_rows) for num_rows in BATCHES for kind in KINDS]
    if options.one:
        pin(1)
        print(json.dumps([measure(options.one, *cell, options.repeats) for cell in cells]))
        return
    rounds: dict[str, list[list[dict]]] = {method: [] for method in METHODS}
    for _ in range(options.rounds):
        for method in METHODS:
            rounds[method].append(in_process(method, options.repeats))
    print("| problem | B x K | method | ms, 3 iterations | x sela_tf | iterations to 1e-3 | ms to 1e-3 | x sela_tf |")
    print("|---|---|---|---|---|---|---|---|")
    ratios: dict[str, list[float]] = {"3 iterations": [], "an L1 error of 1e-3": []}
    for number, (kind, num_rows) in enumerate(cells):
        found = {method: [cell[number] for cell in rounds[method]] for method in METHODS}
        own = [milliseconds(found["sela_tf"], name) for name in ("fixed", "reached")]
        for method in METHODS:
            reached, times = found[method][0]["reached"], [milliseconds(found[method], name) for name in ("fixed", "reached")]
            row = [kind, f"{num_rows} x {NUM_CLUSTERS}", method, f"{times[0]:.1f}", f"{times[0] / own[0]:.2f}x"]
            if reached["error"] <= TOLERANCE:
                row += [str(reached["iterations"]), f"{times[1]:.1f}", f"{times[1] / own[1]:.2f}x"]
            else:
                row += ["never", "underflows: NaN" if np.isnan(reached["error"]) else "-", "-"]
            if method != "sela_tf":
                ratios["3 iterations"].append(times[0] / own[0])
                ratios["an L1 error of 1e-3"] += [times[1] / own[1]] if reached["error"] <= TOLERANCE else []
            print("|", " | ".join(row), "|")
    if options.goals:
        for name, values in ratios.items():
            print(f"{name}: goal faster than each peer, reached {min(values):.2f} to {max(values):.2f} times as fast")
        sys.exit(any(value <= 1 for values in ratios.values() for value in values))


if __name__ == "__main__":
    main()
