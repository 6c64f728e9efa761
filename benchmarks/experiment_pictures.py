"""The pictures of docs/results.md, from the rows in docs/results/rows: `python -m benchmarks.experiment_pictures`."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np

from benchmarks.experiment_tables import RESULTS, figures, kept

mpl.use("Agg")
from matplotlib import pyplot as plt

_WAYS = {"resnet8": "optimal transport (sela-tf)", "kmeans": "k-means (DeepCluster)", "argmax": "plain argmax"}
_FRONTIER = {"sela-tf": ("best", "best_x2", "best_x4"), "SimCLR": ("simclr", "simclr_x2", "simclr_x4")}


def objective_course(seed: int = 0) -> None:
    """-log p of the labels, clean view: vertically what a relabelling changes, along the steps what training changes."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for row, name in _WAYS.items():
        relabellings = kept(row)[seed]["relabellings"]
        steps = np.repeat([one["step"] for one in relabellings], 2)
        values = [one[key] for one in relabellings for key in ("objective_before", "objective_after")]
        axes.plot(steps, values, marker=".", label=name)
    axes.set(xlabel="optimizer steps", ylabel="objective, nats an image", title="Both steps of the method, and of others")
    axes.legend()
    figure.savefig(RESULTS / "objective.png", dpi=120)


def frontier() -> None:
    """Quality against seconds of training, means over the seeds."""
    figure, panels = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
    for axes, key in zip(panels, ("kNN, k = 10", "linear, embedding", "NMI, k-means"), strict=True):
        for name, rows in _FRONTIER.items():
            found = [[figures(one, "trained") for one in kept(row).values()] for row in rows if kept(row)]
            seconds = [np.mean([one["training, s"] for one in seeds]) for seeds in found]
            axes.plot(seconds, [np.mean([one[key] for one in seeds]) for seeds in found], marker="o", label=name)
        axes.set(xlabel="seconds of training, one core", title=key, xscale="log")
    panels[0].legend()
    figure.savefig(RESULTS / "frontier.png", dpi=120)


if __name__ == "__main__":
    objective_course()
    frontier()
