"""Clusters of vectors that somebody else computed: `python -m benchmarks.features [FILE.npz …] [--goals]`, sela_tf beside scikit-learn's KMeans.

Of each file (`features`, `classes`), by default the pixels of scikit-learn's digits and 64 principal components of the embeddings of 10,000
images of Fashion-MNIST, and each K: NMI and AMI with the classes, the sizes of the clusters, seconds; over seeds 0, 1, 2. Values are standardised
for all. Every clustering is a process of its own. "Seconds" are those from the array in memory to the labels, what is compiled on the way
included; "process" those of the whole process. The row `train` runs configs/features.cfg and labels, by commands: these have no figure of the
first kind.
`--goals` prints each goal as reached or missed, and ends with 1 if one was missed.
"""

from __future__ import annotations

import argparse
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from sklearn.datasets import load_digits
from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score

from benchmarks.measuring import Checked, print_goals
from sela_tf.reporting.markdown import markdown

ROOT = pathlib.Path(__file__).parent.parent
SEEDS = (0, 1, 2)
HEADER = ["vectors", "K", "method", "NMI", "its range", "AMI", "sizes", "seconds", "process, s"]
_MOST_SECONDS, _DIMENSIONS = 5.0, 64

_ESTIMATORS = {
    "KMeans, n_init=10": "from sklearn.cluster import KMeans as Estimator; settings = {'n_init': 10}",
    "BalancedKMeans": "from sela_tf import BalancedKMeans as Estimator; settings = {}",
    "BalancedKMeans, n_init=3": "from sela_tf import BalancedKMeans as Estimator; settings = {'n_init': 3}",
    "BalancedKMeans, N/2K to 2N/K": "from sela_tf import BalancedKMeans as Estimator\n"
    "settings = {'size_min': len(vectors) // (2 * k), 'size_max': 2 * len(vectors) // k}",
}
_FIT = """
import sys, time
import numpy as np
from sklearn.preprocessing import StandardScaler
file, k, seed, output = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
vectors = StandardScaler().fit_transform(np.load(file)["features"])
ESTIMATOR
clock = time.perf_counter()
labels = Estimator(k, random_state=seed, **settings).fit(vectors).labels_
seconds = time.perf_counter() - clock
np.savez(output, labels=labels, seconds=seconds)
"""


class Clustering(NamedTuple):
    labels: np.ndarray
    seconds: float
    """From the array to the labels; NaN where only the process has a time."""


def fitted(file: pathlib.Path, num_clusters: int, seed: int, output: pathlib.Path, estimator: str) -> Clustering:
    program = _FIT.replace("ESTIMATOR", _ESTIMATORS[estimator])
    command = [sys.executable, "-c", program, str(file), str(num_clusters), str(seed), str(output / "labels.npz")]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    with np.load(output / "labels.npz") as found:
        return Clustering(found["labels"], float(found["seconds"]))


def trained(file: pathlib.Path, num_clusters: int, seed: int, output: pathlib.Path) -> Clustering:
    """All rows are labelled, and balanced, when training is over."""
    import pyarrow.parquet

    # nearly all rows are trained on: there are no others to be judged by
    options = [
        f"--dataset=features:{file}",
        f"--num_clusters={num_clusters}",
        f"--seed={seed}",
        "--eval_fraction=0.01",
        "--noreport",
    ]
    train = [sys.executable, "-m", "sela_tf.train", f"--flagfile={ROOT}/configs/features.cfg", *options]
    subprocess.run([*train, f"--workdir={output}/run"], check=True, cwd=ROOT, capture_output=True)
    label = ["--balanced", "--noembeddings", f"--dataset=features:{file}", f"--output={output}/labels.parquet"]
    command = [sys.executable, "-m", "sela_tf.label", f"--workdir={output}/run", *label]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    return Clustering(pyarrow.parquet.read_table(output / "labels.parquet")["cluster"].to_numpy(), np.nan)


class Figures(NamedTuple):
    """Over the seeds."""

    nmi: list[float]
    ami: list[float]
    sizes: tuple[int, int]
    seconds: float
    process_seconds: float


def measured(method: str, file: pathlib.Path, num_clusters: int) -> Figures:
    classes = np.load(file)["classes"]
    nmi, ami, sizes, seconds, process = [], [], [], [], []
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as directory:
            clock, arguments = time.perf_counter(), (file.absolute(), num_clusters, seed, pathlib.Path(directory))
            labels, of_fit = trained(*arguments) if method == "train" else fitted(*arguments, method)
        process.append(time.perf_counter() - clock)
        seconds.append(of_fit)
        nmi.append(float(normalized_mutual_info_score(classes, labels)))
        ami.append(float(adjusted_mutual_info_score(classes, labels)))
        sizes.append(np.bincount(labels, minlength=num_clusters))
    return Figures(nmi, ami, (int(np.min(sizes)), int(np.max(sizes))), float(np.median(seconds)), float(np.median(process)))


def files(directory: pathlib.Path) -> Iterable[tuple[pathlib.Path, tuple[int, ...]]]:
    """The files and K of the table in docs/results.md."""
    from benchmarks.problems import features, run_of
    from sela_tf.data.sources import load_source

    digits = load_digits()
    np.savez(directory / "digits.npz", features=digits.data.astype(np.float32), classes=digits.target)
    yield directory / "digits.npz", (10, 32)
    number, train = 10_000, load_source("idx:/usr/share/datasets/fashion-mnist").train
    name = "Fashion-MNIST's embedding.npz"
    values = features(run_of(""))[:number]
    values = values @ np.linalg.svd(values, full_matrices=False)[2][:_DIMENSIONS].T
    np.savez(directory / name, features=values, classes=np.asarray(train.classes)[:number])
    yield directory / name, (32, 128)


def goals(found: dict[tuple[str, int, str], Figures]) -> list[Checked]:
    """Each goal, whether it is reached, and the figure."""
    checked = []
    for name, num_clusters in dict.fromkeys(key[:2] for key in found):
        rival = found.get((name, num_clusters, "KMeans, n_init=10"))
        for method in _ESTIMATORS:
            own = found.get((name, num_clusters, method))
            if not method.startswith("BalancedKMeans") or own is None or rival is None:
                continue
            what = f"{name}, K = {num_clusters}, {method}"
            checked.append((f"{what}: at most {_MOST_SECONDS:g} s", own.seconds <= _MOST_SECONDS, f"{own.seconds:.2f} s"))
            figures = f"{np.mean(own.nmi):.3f}, KMeans {np.mean(rival.nmi):.3f}"
            checked.append((f"{what}: NMI not below that of KMeans", np.mean(own.nmi) >= np.mean(rival.nmi), figures))
    return checked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=pathlib.Path)
    parser.add_argument("--num_clusters", type=lambda text: tuple(map(int, text.split(","))), default=(10, 32))
    parser.add_argument("--methods", type=lambda text: text.split(";"), default=[*_ESTIMATORS, "train"], help="with ; between them")
    parser.add_argument("--goals", action="store_true")
    options = parser.parse_args()
    rows, found = [], {}
    with tempfile.TemporaryDirectory() as directory:
        given = [(file, options.num_clusters) for file in options.files]
        for file, sizes in given or files(pathlib.Path(directory)):
            for num_clusters in sizes:
                for method in options.methods:
                    each = found[file.stem, num_clusters, method] = measured(method, file, num_clusters)
                    shape = "x".join(map(str, np.load(file)["features"].shape))
                    figures = [f"{np.mean(each.nmi):.3f}", f"{np.ptp(each.nmi):.3f}", f"{np.mean(each.ami):.3f}"]
                    seconds = ["" if np.isnan(each.seconds) else f"{each.seconds:.2f}", f"{each.process_seconds:.1f}"]
                    spans = f"{each.sizes[0]} to {each.sizes[1]}"
                    rows.append([f"{file.stem} {shape}", str(num_clusters), method, *figures, spans, *seconds])
                    print(rows[-1], file=sys.stderr, flush=True)
    print(markdown(HEADER, rows))
    if options.goals:
        sys.exit(print_goals(goals(found)))


if __name__ == "__main__":
    main()
