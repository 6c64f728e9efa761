"""The table of the results, and the goals."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
from sklearn.metrics import adjusted_mutual_info_score

from benchmarks.own_images.jobs import METHODS, Row
from benchmarks.own_images.packing import unpack
from sela_tf.reporting.markdown import markdown

PAIRED = ("knn", "linear")
"""Figures that are a mean over the held-out images."""
FIGURES = ("knn", "linear", "ami", "ami_heads", "fine_knn", "fine_linear")
_HALVES = 40
_BEYOND_CHANCE = 1.96


class Comparison(NamedTuple):
    """A figure of SeLa less that of another method."""

    difference: float
    standard_error: float

    @property
    def z(self) -> float:
        """The difference in standard errors."""
        return self.difference / self.standard_error if self.standard_error else 0.0


def compare(rows: list[Row], others: list[Row], figure: str) -> Comparison:
    """Returns the difference of a figure, means over seeds, with the standard error over the held-out images.

    Accuracies: by McNemar's test, of the mean over seeds of right and wrong for each image. "ami": by halves of the images, drawn at
    random, whose differences vary as much as those of whole sets (the jackknife that leaves half out).

    Args:
        rows: The rows of SeLa on a set, one a seed.
        others: Those of another method on the same set.
        figure: One of PAIRED, or "ami".
    """
    if figure in PAIRED:
        own, other = (np.mean([unpack(row["answers"][figure]) for row in each], axis=0) for each in (rows, others))
        difference = own - other
        return Comparison(float(difference.mean()), float(np.sqrt(np.square(difference).sum()) / len(difference)))
    means = [np.mean([row["figures"][figure] for row in each]) for each in (rows, others)]
    return Comparison(float(means[0] - means[1]), _error_of_ami(rows, others))


def _error_of_ami(rows: list[Row], others: list[Row]) -> float:
    """Returns the standard error of the difference of two methods' AMI."""
    classes = unpack(rows[0]["answers"]["classes"])
    clusters = [[unpack(row["answers"]["clusters"])[0] for row in each] for each in (rows, others)]
    rng, differences = np.random.default_rng(0), []
    for _ in range(_HALVES):
        half = rng.permutation(len(classes))[: len(classes) // 2]
        amis = [np.mean([adjusted_mutual_info_score(classes[half], found[half]) for found in each]) for each in clusters]
        differences.append(amis[0] - amis[1])
    return float(np.std(differences, ddof=1))


def grouped(rows: list[Row]) -> dict[tuple[str, str, str], list[Row]]:
    """Returns the rows of each (set, name, method), in the order of sets and names as they came, and of METHODS."""
    firsts = list(dict.fromkeys((row["set"], row["name"]) for row in rows))
    keys = [(*first, method) for first in firsts for method in METHODS]
    groups = {key: [row for row in rows if (row["set"], row["name"], row["method"]) == key] for key in keys}
    return {key: group for key, group in groups.items() if group}


def table(rows: list[Row]) -> str:
    """Returns a table in Markdown: means over seeds, standard errors of accuracies, and SeLa's differences in standard errors."""
    groups, lines = grouped(rows), []
    for (of_set, name, method), group in groups.items():
        cells = []
        for figure in FIGURES:
            values = [row["figures"][figure] for row in group if figure in row["figures"]]
            mean = float(np.mean(values)) if values else 0.0
            error = f" ± {np.sqrt(mean * (1 - mean) / group[0]['num_held_out']):.3f}" if "ami" not in figure else ""
            cells.append(f"{mean:.3f}{error}" if values else "")
        runs = groups.get((of_set, name, "sela"))
        if runs and method != "sela":
            cells.append(", ".join(f"{compare(runs, group, figure).z:+.1f}" for figure in (*PAIRED, "ami")))
        else:
            cells.append("")
        cost = f"{np.mean([row['cpu_seconds'] for row in group]):.0f}" if "cpu_seconds" in group[0] else ""
        lines.append([of_set, name, method, str(len(group)), *cells, cost])
    return markdown(
        ["set", "settings", "method", "seeds", *FIGURES, "SeLa's lead in kNN, linear, AMI, in standard errors", "training, CPU s"],
        lines,
    )


def goals(rows: list[Row]) -> int:
    """Prints each goal as reached or missed; returns the number of misses."""
    groups, missed = grouped(rows), 0
    for (of_set, name, method), figure in itertools.product(groups, (*PAIRED, "ami")):
        runs, others = groups.get((of_set, name, "sela")), groups[of_set, name, method]
        is_small = method in ("raw", "histogram") and others[0]["num_training"] < 2000
        if method == "sela" or not runs or is_small:
            continue
        found = compare(runs, others, figure)
        above = method == "untrained"
        reached = found.z > _BEYOND_CHANCE if above else found.z > -_BEYOND_CHANCE
        missed += not reached
        words = "above" if above else "not below"
        print(
            f"{'reached' if reached else 'MISSED'}: {of_set}: {figure} {words} {method}: "
            f"{found.difference:+.3f} ± {found.standard_error:.3f}"
        )
    return missed
