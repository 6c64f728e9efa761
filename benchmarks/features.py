"""Clusters of vectors that somebody else computed: `python -m benchmarks.features [FILE.npz …]`, sela_tf beside scikit-learn's KMeans.

Of each file (`features`, `classes`), by default the pixels of scikit-learn's digits, and each K: NMI and AMI with the classes, the sizes of the
clusters, seconds; means over seeds 0, 1, 2. Values are standardised for both. sela_tf runs configs/features.cfg by its door, so that its
seconds include TensorFlow's start, the evaluation and all files.
"""

from __future__ import annotations

import argparse
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score
from sklearn.preprocessing import StandardScaler

from sela_tf.reporting.markdown import markdown

ROOT = pathlib.Path(__file__).parent.parent
SEEDS = (0, 1, 2)


def kmeans(file: pathlib.Path, num_clusters: int, seed: int) -> np.ndarray:
    """Clusters [N]."""
    vectors = StandardScaler().fit_transform(np.load(file)["features"])
    return KMeans(num_clusters, n_init=10, random_state=seed).fit(vectors).labels_


def sela(file: pathlib.Path, num_clusters: int, seed: int) -> np.ndarray:
    """Likewise: all rows are labelled, and balanced, when training is over."""
    import pyarrow.parquet

    with tempfile.TemporaryDirectory() as directory:
        # nearly all rows are trained on: there are no others to be judged by
        options = [
            f"--dataset=features:{file}",
            f"--num_clusters={num_clusters}",
            f"--seed={seed}",
            "--eval_fraction=0.01",
            "--noreport",
        ]
        train = [sys.executable, "-m", "sela_tf.train", f"--flagfile={ROOT}/configs/features.cfg", *options]
        subprocess.run([*train, f"--workdir={directory}/run"], check=True, cwd=ROOT, capture_output=True)
        label = ["--balanced", "--noembeddings", f"--dataset=features:{file}", f"--output={directory}/labels.parquet"]
        command = [sys.executable, "-m", "sela_tf.label", f"--workdir={directory}/run", *label]
        subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
        return pyarrow.parquet.read_table(f"{directory}/labels.parquet")["cluster"].to_numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=pathlib.Path)
    parser.add_argument("--num_clusters", type=lambda text: [*map(int, text.split(","))], default=[10, 32])
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        if not options.files:
            digits = load_digits()
            options.files = [pathlib.Path(directory) / "digits.npz"]
            np.savez(options.files[0], features=digits.data.astype(np.float32), classes=digits.target)
        for file in options.files:
            classes = np.load(file)["classes"]
            for num_clusters in options.num_clusters:
                for name, method in (("KMeans, n_init=10", kmeans), ("sela_tf", sela)):
                    figures, sizes, seconds = [], [], []
                    for seed in SEEDS:
                        start = time.perf_counter()
                        clusters = method(file.absolute(), num_clusters, seed)
                        seconds.append(time.perf_counter() - start)
                        figures.append(
                            [normalized_mutual_info_score(classes, clusters), adjusted_mutual_info_score(classes, clusters)]
                        )
                        sizes.append(np.bincount(clusters, minlength=num_clusters))
                    nmi, ami = np.mean(figures, axis=0)
                    span = f"{np.min(sizes)} to {np.max(sizes)}"
                    shape = "x".join(map(str, np.load(file)["features"].shape))
                    spread = f"{np.ptp(figures, axis=0)[0]:.3f}"
                    rows.append(
                        [
                            f"{file.stem} {shape}",
                            str(num_clusters),
                            name,
                            f"{nmi:.3f}",
                            spread,
                            f"{ami:.3f}",
                            span,
                            f"{np.median(seconds):.1f}",
                        ]
                    )
                    print(rows[-1], flush=True)
    print(markdown(["vectors", "K", "method", "NMI", "its range", "AMI", "sizes", "seconds"], rows))


if __name__ == "__main__":
    main()
