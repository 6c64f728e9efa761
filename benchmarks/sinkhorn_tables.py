"""Further tables of benchmarks/sinkhorn.py, each computed in the process that this module is when it is run."""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable

import numpy as np

from benchmarks.cells import measure
from benchmarks.measuring import PeakMemory, bandwidth, pin
from benchmarks.problems import LAM, SIZES, Head, features, log_softmax, made, run_of
from benchmarks.sinkhorn_peers import REFERENCE
from sela_tf.reporting.markdown import markdown

_REPEATS = 7
_NOISE = 0.05


def growth(options: argparse.Namespace) -> str:
    """time of a solve against N and K, one thread"""
    import sela_tf

    rows = []

    def add(log_probs: np.ndarray) -> None:
        for _ in range(2):  # the first compiles
            memory, clock = PeakMemory(), time.perf_counter()
            result = sela_tf.sinkhorn(log_probs, lam=LAM, num_threads=1)
            seconds, peak = time.perf_counter() - clock, memory.megabytes()
        print(log_probs.shape, f"{seconds:.2f} s", file=sys.stderr)
        each = f"{1e9 * seconds / log_probs.size:.2f}"
        sizes = [f"{size:,}" for size in log_probs.shape]
        rows.append([*sizes, str(result.num_iterations), f"{seconds:.3g}", each, f"{peak:.0f}", f"{result.marginal_error:.1e}"])

    few = 8 if options.quick else 1
    sizes = (128, 256, 512, 1000, 2000, 3000)
    problems = [made("trained", SIZES[1000] // few, size, 0, options.workdir, with_optimum=False) for size in sizes]
    values = features(options.workdir)
    head = Head(values[:: 2 * few], 128, seed=0)
    head.rounds(8)
    most = 2**22 // few
    pin(1)
    table = _more_rows(values, *head.weights(), most)
    for doublings in range(5, -1, -1):
        add(table[: most >> doublings])
    del table
    for problem in problems:
        add(problem.log_probs())
    return markdown(["N", "K", "iterations", "seconds", "ns per N K", "peak MB", "L1 error"], rows)


def _more_rows(values: np.ndarray, kernel: np.ndarray, bias: np.ndarray, num_rows: int) -> np.ndarray:
    """Log-probabilities [num_rows, K] of the features over and over, each time with a little noise of its own."""
    out = np.empty((num_rows, len(bias)), np.float32)
    rng = np.random.default_rng(0)
    for start in range(0, num_rows, 8192):
        block = values[np.arange(start, min(start + 8192, num_rows)) % len(values)]
        block = block + np.float32(_NOISE) * rng.standard_normal(block.shape, np.float32)
        out[start : start + len(block)] = log_softmax(block, kernel, bias)
    return out


def features_table(options: argparse.Namespace) -> str:
    """one solve of N = 1,000,000 and K = 3000 from features of D = 64, N x K never stored"""
    import sela_tf
    from sela_tf.transport.linear_logits import LinearLogits

    num_rows, num_clusters, dimensions = 1_000_000 // (8 if options.quick else 1), 3000, 64
    values = features(options.workdir)
    directions = np.linalg.svd(values[::16], full_matrices=False)[2][:dimensions]
    values = values @ directions.T
    values /= values.std()
    head = Head(values[:: 16 if options.quick else 4], num_clusters, seed=0)
    head.rounds(4)
    rng = np.random.default_rng(0)
    table = values[np.arange(num_rows) % len(values)]
    table += np.float32(_NOISE) * rng.standard_normal(table.shape, np.float32)
    source = LinearLogits(table, *head.weights())
    del head, values
    sela_tf.sinkhorn(LinearLogits(table[: 2**14], *source[1:]), lam=LAM, tolerance=0.1)  # compiles some of it
    memory, clock = PeakMemory(), time.perf_counter()
    result = sela_tf.sinkhorn(source, lam=LAM)
    seconds = time.perf_counter() - clock
    row = [f"{num_rows:,}", f"{num_clusters:,}", str(dimensions), str(result.num_iterations), f"{seconds:.1f}"]
    row += [
        f"{memory.megabytes():.0f}",
        f"{table.nbytes / 1e6:.0f}",
        f"{4e-6 * num_rows * num_clusters:,.0f}",
        f"{result.marginal_error:.1e}",
    ]
    return markdown(["N", "K", "D", "iterations", "seconds", "peak MB", "features MB", "N x K would be MB", "L1 error"], [row])


def threads(options: argparse.Namespace) -> str:
    """an exact and a stored pass on one and two threads, beside what one and two processes read"""
    import tensorflow as tf

    from sela_tf.transport.rows import Rows

    rows = []
    for num_clusters, num_rows in SIZES.items():
        log_probs = made(
            "trained", num_rows // (8 if options.quick else 1), num_clusters, 0, options.workdir, with_optimum=False
        ).log_probs()
        rates = [bandwidth(log_probs.nbytes, count) for count in (1, 2)]
        seconds: dict[str, list[float]] = {}
        for count in (1, 2):
            source = Rows(log_probs, lam=LAM, num_threads=count)
            v = np.zeros(num_clusters)
            log_rows = source.measure(v).log_rows
            passes: dict[str, Callable] = {"exact, float32": source.measure}
            for storage in (tf.float32, tf.float16):
                passes[f"stored, {storage.name}"] = source.absorb(v, log_rows, storage).measure
            for name, function in passes.items():
                seconds.setdefault(name, []).append(_median_seconds(lambda function=function, v=v: function(v)))
        for name, (one, two) in seconds.items():
            num_bytes = log_probs.nbytes // (2 if "16" in name else 1)
            shares = [f"{100 * num_bytes / each / rate:.0f} %" for each, rate in zip((one, two), rates, strict=True)]
            milliseconds = [f"{1000 * each:.1f}" for each in (one, two)]
            speeds = [f"{rate / 1e9:.1f}" for rate in rates]
            rows.append([f"{len(log_probs)} x {num_clusters}", name, *milliseconds, f"{one / two:.2f}", *shares, *speeds])
    header = [
        "N x K",
        "pass",
        "ms, 1 thread",
        "ms, 2",
        "speed-up",
        "bandwidth, 1",
        "bandwidth, 2",
        "GB/s of 1 process",
        "GB/s of 2",
    ]
    return markdown(header, rows)


def rounding(options: argparse.Namespace) -> str:
    """exactly balanced labels against the reference's solve"""
    import sela_tf
    from sela_tf.transport.rounding import balanced_labels

    sizes = [(SIZES[num_clusters] // (8 if options.quick else 1), num_clusters) for num_clusters in (128, 1000)]
    seeds = range(options.seeds)
    problems = {size: [made("trained", *size, seed, options.workdir, with_optimum=False) for seed in seeds] for size in sizes}
    pin(1)
    rows = []
    for size in sizes:
        solve = measure(REFERENCE, problems[size][0], options.reference_limit)
        seconds, gaps = [], []
        for problem in problems[size]:
            log_probs = problem.log_probs()
            potentials = sela_tf.sinkhorn(log_probs, lam=LAM, num_threads=1).potentials
            run = functools.partial(balanced_labels, log_probs, potentials, lam=LAM)
            gaps.append(run().rounding_gap)
            seconds.append(_median_seconds(run, repeats=3))
        own, more, yardstick = float(np.median(seconds)), "> " * ("cut" in solve), solve.get("cut", solve.get("seconds"))
        row = [f"{own:.3g}", f"{np.median(gaps):.1e}", f"{more}{yardstick:.3g}", f"{more}{yardstick / own:.0f}"]
        rows.append([*map(str, size), *row])
    return markdown(["N", "K", "seconds", "gap", "reference's solve, s", "times"], rows)


def _median_seconds(function: Callable[[], object], repeats: int = _REPEATS) -> float:
    function()
    seconds = []
    for _ in range(repeats):
        clock = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - clock)
    return float(np.median(seconds))


TABLES = {"growth": growth, "features": features_table, "threads": threads, "rounding": rounding}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--workdir", default="")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--reference_limit", type=float, default=60.0)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    arguments.workdir = run_of(arguments.workdir)
    print(TABLES[arguments.table](arguments))
