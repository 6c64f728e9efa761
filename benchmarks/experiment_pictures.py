"""The pictures of docs/results.md, from the rows in docs/results/rows: `python -m benchmarks.experiment_pictures`."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np

from benchmarks.experiment_tables import RESULTS, figures, kept

mpl.use("Agg")
from matplotlib import pyplot as plt

_WAYS = {"resnet8": "optimal transport (sela_tf)", "kmeans": "k-means (DeepCluster)", "argmax": "plain argmax"}

_FRONTIER = {
    "sela_tf": ("best", "best_x2", "best_x4"),
    "SimCLR": ("simclr", "simclr_x2", "simclr_x4"),
    "SimCLR, the recipe's jitter": ("simclr_jitter_80", "simclr_jitter_80_x4"),
    "SimCLR, the recipe's jitter, twice the rate": ("simclr_jitter_80_rate_20",),
}


def objective_course(seed: int = 0) -> None:
    """-log p of the labels, clean view: vertically what a relabelling changes, along the steps what training changes."""
    figure, axes = plt.subplots(figsize=(7, 4.4), layout="constrained")
    for row, name in _WAYS.items():
        relabellings = kept(row)[seed]["relabellings"]
        steps = np.repeat([one["step"] for one in relabellings], 2)
        values = [one[key] for one in relabellings for key in ("objective_before", "objective_after")]
        axes.plot(steps, values, marker=".", label=name)
    axes.axhline(np.log(128), color="0.6", linewidth=0.8, linestyle="--")
    axes.text(axes.get_xlim()[1], np.log(128), "ln K ", ha="right", va="bottom", color="0.4")
    axes.set(xlabel="optimizer steps", ylabel="objective, nats an image", title="The objective through relabelling and training")
    figure.legend(loc="outside lower center", ncols=3)
    figure.savefig(RESULTS / "objective.png", dpi=120)


def frontier() -> None:
    """Quality against seconds of training: means over the seeds, and the single ones as dots."""
    figure, panels = plt.subplots(1, 3, figsize=(11, 3.8), layout="constrained")
    for axes, key in zip(panels, ("kNN, k = 10", "linear, embedding", "NMI, k-means"), strict=True):
        for name, rows in _FRONTIER.items():
            found = [[figures(one, "trained") for one in kept(row).values()] for row in rows if kept(row)]
            means = np.array([[np.mean([one[of] for one in seeds]) for of in ("training, s", key)] for seeds in found])
            (line,) = axes.plot(*means.T, marker="o", label=name)
            singles = np.array([(one["training, s"], one[key]) for seeds in found for one in seeds])
            axes.scatter(*singles.T, s=8, color=line.get_color(), alpha=0.5)
        if key != "NMI, k-means":
            supervised = np.mean([figures(one, "trained")[key] for one in kept("supervised").values()])
            axes.axhline(supervised, color="0.6", linewidth=0.8, linestyle="--", label="learning the classes")
        axes.set(xlabel="seconds of training, one core", title=key, xscale="log")
        axes.set_xticks([200, 400, 800], labels=["200", "400", "800"])
        axes.minorticks_off()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.savefig(RESULTS / "frontier.png", dpi=120)


if __name__ == "__main__":
    objective_course()
    frontier()
