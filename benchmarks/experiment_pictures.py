"""The pictures of docs/results.md, from the rows in docs/results/rows: `python -m benchmarks.experiment_pictures`."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np

from benchmarks.experiment_tables import RESULTS, kept

mpl.use("Agg")
from matplotlib import pyplot as plt

_WAYS = {"resnet8": "optimal transport (sela_tf)", "kmeans": "k-means (DeepCluster)", "argmax": "plain argmax"}


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


if __name__ == "__main__":
    objective_course()
