"""Runs with a matching prior, bounds of sizes, or known labels, beside plain ones: `python -m benchmarks.marginals --output=build/marginals.md`.

Fashion-MNIST, by the door of the package, `configs/fashion_mnist.cfg` with ten clusters and five epochs, several seeds a row.

Imbalanced: of class c the first 6000 / (c + 1) images, so that class sizes follow Zipf's law; uniform clusters (what the paper does)
against `--marginals=zipf`, and against `--cluster_sizes` of half to twice and of a quarter to four times the uniform size.
Known: the first 20,000 images; none known, or the class of 1 % of them as their cluster. A finished run is not repeated.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys

import numpy as np

from sela_tf.data.sources import load_source

ROOT = pathlib.Path(__file__).parent.parent
NUM_CLASSES = NUM_CLUSTERS = 10
KNOWN_SHARE = 0.01


def make_sets(data: pathlib.Path, directory: pathlib.Path) -> None:
    splits = load_source(f"idx:{data}")
    images, classes = splits.train.images, splits.train.classes
    chosen = np.sort(np.concatenate([np.flatnonzero(classes == c)[: 6000 // (c + 1)] for c in range(NUM_CLASSES)]))
    np.savez(directory / "imbalanced.npz", images=images[chosen], classes=classes[chosen])
    images, classes = images[:20_000], classes[:20_000]
    np.savez(directory / "first.npz", images=images, classes=classes)
    known = np.sort(np.random.default_rng(0).permutation(len(images))[: int(KNOWN_SHARE * len(images))])
    (directory / "known.csv").write_text("index,cluster\n" + "".join(f"{i},{classes[i]}\n" for i in known))
    np.savez(directory / "test.npz", images=splits.eval.images, classes=splits.eval.classes)


def train(directory: pathlib.Path, name: str, seed: int, flags: list[str]) -> dict:
    workdir = directory / f"{name.replace(' ', '_')}-{seed}"
    if not (workdir / "results.json").exists():
        command = [
            sys.executable, "-m", "sela_tf.train", "--flagfile=configs/fashion_mnist.cfg", f"--eval_dataset=npz:{directory / 'test.npz'}",
            f"--num_clusters={NUM_CLUSTERS}", "--epochs=5", "--monitor_examples=0", f"--seed={seed}", f"--workdir={workdir}", *flags,
        ]  # fmt: skip
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return json.loads((workdir / "results.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--directory", type=pathlib.Path, default=ROOT / "build" / "marginals")
    parser.add_argument("--rows", default="", help="the beginning of the names of those that are wanted")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=pathlib.Path)
    options = parser.parse_args()
    directory = options.directory.absolute()
    directory.mkdir(parents=True, exist_ok=True)
    make_sets(options.data, directory)
    imbalanced, first = f"--dataset=npz:{directory / 'imbalanced.npz'}", f"--dataset=npz:{directory / 'first.npz'}"
    uniform_size = sum(6000 // (c + 1) for c in range(NUM_CLASSES)) / NUM_CLUSTERS
    bounds = {times: f"--cluster_sizes={uniform_size / times:.0f}:{uniform_size * times:.0f}" for times in (2, 4)}
    rows = {
        "imbalanced, uniform": [imbalanced],
        "imbalanced, zipf": [imbalanced, "--marginals=zipf"],
        "imbalanced, half to twice": [imbalanced, bounds[2]],
        "imbalanced, a quarter to four times": [imbalanced, bounds[4]],
        "first 20,000": [first],
        "first 20,000, 1 % known": [first, f"--known_labels={directory / 'known.csv'}"],
    }
    figures = {
        "NMI, test": lambda r: r["trained"]["nmi"][0],
        "NMI, training labels": lambda r: r["training_labels"]["nmi"][0],
        "Hungarian, test": lambda r: r["trained"]["hungarian"][0],
        "linear": lambda r: r["trained"]["linear_probe"],
        "kNN": lambda r: r["trained"]["knn"],
    }
    lines = ["| run | " + " | ".join(figures) + " |", "|---" * (len(figures) + 1) + "|"]
    for name, flags in rows.items():
        if not name.startswith(options.rows):
            continue
        results = [train(directory, name, seed, flags) for seed in range(options.seeds)]
        cells = [" ".join(f"{figure(result):.3f}" for result in results) for figure in figures.values()]
        means = [f"**{np.mean([figure(result) for result in results]):.3f}**" for figure in figures.values()]
        lines.append(f"| {name} | " + " | ".join(f"{mean} ({cell})" for mean, cell in zip(means, cells, strict=True)) + " |")
        print("\n".join(lines), flush=True)
    if options.output:
        options.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
