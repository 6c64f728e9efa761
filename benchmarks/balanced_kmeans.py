"""Balanced k-means beside its peers: `python -m benchmarks.balanced_kmeans [--goals] [--problems=…] [--output=FILE.md]`.

sela_tf.BalancedKMeans, k-means-constrained (whose assignments are exact minimum-cost flows; extra `bench`) and scikit-learn's KMeans, which has
no sizes, start from the same centres, drawn by k-means++, and end by the same tolerance. Each cell is a process of its own, with as many
threads as there are processors; loading is not on the clock. Medians over seeds. A cell of more than --limit seconds is cut, and its other
seeds are left out. Memory is all that the process takes, the vectors included. `--goals` prints each goal as reached or missed, and ends with 1
on a miss.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks.measuring import Checked, median, print_goals
from sela_tf.reporting.markdown import markdown

FASHION = pathlib.Path("/usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz")
METHODS = ("BalancedKMeans", "k-means-constrained", "KMeans")
_LARGE_ROWS, _LARGE_CENTERS, _LARGE_ITERATIONS = 1_300_000, 2000, 5

Cell = dict[str, Any]


def _digits() -> np.ndarray:
    from sklearn.datasets import load_digits

    return load_digits().data


def _blobs() -> np.ndarray:
    """Vectors in ten groups of 300, [3000, 8]."""
    from sklearn.datasets import make_blobs

    return make_blobs(3000, 8, centers=10, cluster_std=2.0, random_state=0)[0]


def _fashion(num_rows: int, dimensions: int) -> np.ndarray:
    """The first principal components of Fashion-MNIST's first training images, float32 [num_rows, dimensions]."""
    from sklearn.decomposition import PCA

    from sela_tf.data.sources import load_source

    pixels = load_source(f"idx:{FASHION.parent}").train.images.reshape(60_000, -1)[:num_rows] / np.float32(255)
    return PCA(dimensions, random_state=0).fit_transform(pixels).astype(np.float32)


def _mixture(path: pathlib.Path) -> np.ndarray:
    """Vectors around 2000 centres of unequal popularity, float32 [1300000, 256] in a file."""
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((_LARGE_CENTERS, 256), np.float32)
    shares = rng.dirichlet(np.ones(_LARGE_CENTERS))
    values = np.lib.format.open_memmap(path, "w+", np.float32, (_LARGE_ROWS, 256))
    for start in range(0, _LARGE_ROWS, 50_000):
        chosen = rng.choice(_LARGE_CENTERS, 50_000, p=shares)
        values[start : start + 50_000] = centers[chosen] + rng.standard_normal((50_000, 256), np.float32)
    values.flush()
    return values


class Problem(NamedTuple):
    make: Callable[[], np.ndarray] | None
    num_clusters: int
    seconds: float | None = None
    """The goal of BalancedKMeans."""
    is_balanced: bool = False
    """True if groups have the sizes that are asked for, so that KMeans is no better off."""


PROBLEMS = {
    "digits": Problem(_digits, 10),
    "blobs, equal": Problem(_blobs, 10, is_balanced=True),
    "fashion 23k": Problem(lambda: _fashion(23_000, 50), 10, seconds=2.0),
    "fashion 50k": Problem(lambda: _fashion(50_000, 5), 50, seconds=5.0),
    "mixture 1.3M": Problem(None, 1000, seconds=600.0),
}


def run_cell(method: str, problem: Problem, file: pathlib.Path, seed: int) -> Cell:
    """The figures of one estimator on one problem, measured in this process."""
    from sklearn.cluster import KMeans, kmeans_plusplus

    large = problem.make is None
    X = np.load(file, mmap_mode="r" if large else None)
    some = np.asarray(X[np.sort(np.random.default_rng(seed).choice(len(X), min(len(X), 2**14), replace=False))])
    centers, _ = kmeans_plusplus(some, problem.num_clusters, random_state=seed)
    options: dict[str, Any] = {"max_iter": _LARGE_ITERATIONS if large else 300, "tol": 0.0 if large else 1e-4}
    lower, upper = len(X) // problem.num_clusters, -(-len(X) // problem.num_clusters)
    if method == "BalancedKMeans":
        import sela_tf

        estimator = sela_tf.BalancedKMeans(problem.num_clusters, init=centers, **options)
    elif method == "KMeans":
        estimator = KMeans(problem.num_clusters, init=centers, n_init=1, **options)
    else:
        from k_means_constrained import KMeansConstrained

        estimator = KMeansConstrained(
            problem.num_clusters, size_min=lower, size_max=upper, init=centers, n_init=1, n_jobs=1, **options
        )
    start, processor = time.perf_counter(), time.process_time()
    estimator.fit(X)
    seconds, busy = time.perf_counter() - start, time.process_time() - processor
    sizes = np.bincount(estimator.labels_, minlength=problem.num_clusters)
    return {
        "seconds": seconds, "processor": busy, "iterations": int(estimator.n_iter_), "smallest": int(sizes.min()),
        "largest": int(sizes.max()), "inertia": float(estimator.inertia_), "gap": float(getattr(estimator, "assignment_gap_", 0.0)),
        "gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }  # fmt: skip


def measure(method: str, name: str, file: pathlib.Path, seed: int, limit: float) -> Cell:
    """Starts the process of a cell, and ends it at the limit."""
    command = [sys.executable, "-m", "benchmarks.balanced_kmeans", "--cell", json.dumps([method, name, str(file), seed])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return {"cut": limit}
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["?"])[-1][:80]}
    return json.loads(done.stdout.splitlines()[-1])


def described(cell: Cell) -> list[str]:
    if "seconds" not in cell:
        return [f"> {cell['cut']:.0f}" if "cut" in cell else f"failed: {cell['failed']}", *["-"] * 5]
    return [
        f"{cell['seconds']:.3g}", f"{cell['processor']:.3g}", f"{cell['iterations']:.0f}", f"{cell['smallest']:.0f} to {cell['largest']:.0f}",
        f"{cell['inertia']:.6g}", f"{cell['gigabytes']:.2f}",
    ]  # fmt: skip


def goals(found: dict[str, dict[str, Cell]]) -> list[Checked]:
    """Each goal, whether it is reached, and the figure."""
    lines = []
    for name, cells in found.items():
        own, flow, free = (cells.get(method, {}) for method in METHODS)
        if "seconds" not in own:
            lines.append((f"{name}: ends", False, str(own)))
            continue
        if limit := PROBLEMS[name].seconds:
            lines.append((f"{name}: at most {limit:g} s", own["seconds"] <= limit, f"{own['seconds']:.3g} s"))
        if "inertia" in flow:
            ratio = own["inertia"] / flow["inertia"]
            lines.append((f"{name}: inertia not above that of k-means-constrained", ratio <= 1 + 1e-6, f"{ratio:.5f} of it"))
        if PROBLEMS[name].is_balanced and "inertia" in free:
            ratio = own["inertia"] / free["inertia"]
            lines.append((f"{name}: inertia within 2 % of that of KMeans", ratio <= 1.02, f"{ratio:.5f} of it"))
        if PROBLEMS[name].make is None:
            lines.append((f"{name}: at most 4 GiB", own["gigabytes"] <= 4, f"{own['gigabytes']:.2f} GiB"))
            lines.append((f"{name}: at least 5 iterations", own["iterations"] >= 5, f"{own['iterations']:.0f}"))
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=lambda text: text.split(","), default=[name.replace(", ", " ") for name in PROBLEMS])
    parser.add_argument("--methods", type=lambda text: text.split(","), default=list(METHODS))
    parser.add_argument("--seeds", type=lambda text: [*map(int, text.split(","))], default=[0, 1, 2])
    parser.add_argument("--limit", type=float, default=900.0, help="seconds")
    parser.add_argument("--output", type=pathlib.Path)
    parser.add_argument("--goals", action="store_true")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell:
        method, name, file, seed = json.loads(options.cell)
        print(json.dumps(run_cell(method, PROBLEMS[name], pathlib.Path(file), seed)))
        return 0
    found: dict[str, dict[str, Cell]] = {}
    rows = []
    header = ["vectors", "K", "method", "seconds", "processor s", "iterations", "sizes", "inertia", "GiB"]
    with tempfile.TemporaryDirectory() as directory:
        for name, problem in PROBLEMS.items():
            if name.replace(", ", " ") not in options.problems:
                continue
            file = pathlib.Path(directory) / "vectors.npy"
            if problem.make is None:
                shape = _mixture(file).shape
            else:
                values = problem.make()
                np.save(file, values)
                shape = values.shape
            # Others would take hours for the largest.
            methods = [method for method in options.methods if problem.make is not None or method != METHODS[1]]
            seeds = options.seeds if problem.make is not None else options.seeds[:1]
            for method in methods:
                cells: list[Cell] = []
                for seed in seeds:
                    cells.append(measure(method, name, file, seed, options.limit))
                    print(name, method, seed, cells[-1], file=sys.stderr, flush=True)
                    if "seconds" not in cells[-1]:
                        break
                found.setdefault(name, {})[method] = median(cells)
                vectors = f"{name}, {' x '.join(f'{size:,}' for size in shape)}"
                rows.append([vectors, str(problem.num_clusters), method, *described(found[name][method])])
    table = markdown(header, rows)
    print(table)
    if options.output:
        options.output.write_text(table + "\n")
    return print_goals(goals(found)) if options.goals else 0


if __name__ == "__main__":
    sys.exit(main())
