"""A run of ImageNet's shape ends: `python -m benchmarks.large_run --goals`.

Heads are trained on vectors of Gaussian classes by the door, as a user would: N = 400,000, D = 256, 1000 classes, K = 3000, T = 4, one epoch
with two relabellings, the last transport, evaluation and report. The dry run estimates the same before it. Its N x K x T logits would take
18 GiB. `--goals` prints each goal and what was reached, and ends with 1 on a miss; `--rows` makes a smaller run, to try the program with.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).parent.parent
_DIMENSIONS, _CLASSES, _HELD_OUT = 256, 1000, 10_000
_MOST_GIB, _WITHIN = 6.0, 0.3


def write_vectors(path: pathlib.Path, num_rows: int) -> None:
    """Classes around random centres, wide enough that a linear head does not tell all of them apart."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(_CLASSES, _DIMENSIONS)).astype(np.float32)

    def draw(count: int) -> tuple[np.ndarray, np.ndarray]:
        classes = np.arange(count) % _CLASSES
        return centres[classes] + 2.5 * rng.standard_normal((count, _DIMENSIONS), np.float32), classes

    (features, classes), (eval_features, eval_classes) = draw(num_rows), draw(min(_HELD_OUT, num_rows))
    np.savez(path, features=features, classes=classes, eval_features=eval_features, eval_classes=eval_classes)


def call(*flags: str) -> tuple[str, float, float]:
    """(what sela_tf.train printed, its peak of memory in GiB, TensorFlow included, its seconds)."""
    program = "import resource, sys; from sela_tf.train import main; code = main(sys.argv); "
    program += "print('peak KiB', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, flush=True); sys.exit(code)"
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", program, *flags], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"sela_tf.train ended with {done.returncode}:\n{done.stdout}")
    return done.stdout, int(re.findall(r"peak KiB (\d+)", done.stdout)[-1]) / 2**20, time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--clusters", type=int, default=3000)
    parser.add_argument("--goals", action="store_true")
    options = parser.parse_args()
    # the kernel's own limit would end the process without a word
    (available,) = re.findall(r"MemAvailable: +(\d+)", pathlib.Path("/proc/meminfo").read_text())
    free = int(available) / 2**20
    print(f"{options.rows} x {_DIMENSIONS}, {options.clusters} clusters, 4 heads; {free:.1f} GiB of memory are free", flush=True)
    with tempfile.TemporaryDirectory() as directory:
        file, workdir = pathlib.Path(directory) / "vectors.npz", pathlib.Path(directory) / "run"
        write_vectors(file, options.rows)
        flags = [
            f"--dataset=features:{file}", "--backbone=identity", "--num_heads=4", f"--num_clusters={options.clusters}", "--batch_size=512",
            "--epochs=1", "--num_relabellings=3", "--learning_rate=0.1", "--lr_schedule=cosine",
        ]  # fmt: skip
        planned, _, _ = call(*flags, "--dry_run")
        print(planned, flush=True)
        estimate = float(re.search(r"peak of memory about ([\d.]+) GiB", planned)[1])
        said, peak, seconds = call(*flags, f"--workdir={workdir}")
        print(said, flush=True)
        results = json.loads((workdir / "results.json").read_text())
        whole = all((workdir / name).exists() for name in ("network.json", "labels.npz", "report.json", "report.png"))
    rows = [
        ("it ends, with network, labels, results and report", "yes", "yes" if whole else "no", whole),
        ("peak of memory, GiB", f"below {_MOST_GIB:g}", f"{peak:.2f}", peak < _MOST_GIB),
        ("dry run's estimate of it, GiB", f"within {_WITHIN:.0%}", f"{estimate:.2f}", abs(estimate - peak) <= _WITHIN * peak),
    ]
    print(f"{'goal':52} {'wanted':>12} {'reached':>12}")
    for name, wanted, reached, _ in rows:
        print(f"{name:52} {wanted:>12} {reached:>12}")
    print(f"{seconds:.0f} s; kNN {results['trained']['knn']:.3f} (untrained {results['untrained']['knn']:.3f})")
    return 1 if options.goals and not all(reached for *_, reached in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
