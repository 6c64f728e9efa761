"""The pictures of a run, drawn by matplotlib, which is imported only when something is drawn."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sela_tf.reporting.gallery import NUM_MEMBERS_SHOWN
from sela_tf.reporting.history import objective_curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BLUE, _ORANGE, _GREEN, _GRAY = "#1f5fa8", "#d9730d", "#2f7d4f", "#8a8a8a"
_HEAD_COLOURS = (_BLUE, _ORANGE, _GREEN, "#8e4b9e", "#b8342f", "#6b5b2e", "#2a8c9a", "#c04f8a", "#5b6abf", "#7a7a7a")

_TITLE, _CAPTION, _GAP = 0.3, 0.32, 0.06
"""Heights in inches within a gallery: its title, and the line above the images of a cluster; and the gap between images."""


def draw_report(report: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Draws six panels that show whether training went well.

    Args:
        report: the contents of report.json.
        path: path of the png file.
    """
    figure = _figure(15, 8.6)
    axes = figure.subplots(2, 3)
    count = len(report["warnings"])
    warned = f"; {count} warning{'s' * (count > 1)} on the way, see metrics.jsonl" if count else ""
    lines = [line for part in (report["title"], f"{report['verdict']}{warned}") for line in textwrap.wrap(part, 150)]
    figure.suptitle("\n".join(lines), fontsize=12, x=0.02, ha="left")
    _draw_loss(axes[0, 0], report)
    _draw_agreement(axes[0, 1], report)
    _draw_changes(axes[0, 2], report)
    _draw_sizes(axes[1, 0], report)
    _draw_entropies(axes[1, 1], report)
    _draw_metrics(axes[1, 2], report)
    figure.savefig(path, dpi=110)


def draw_gallery(title: str, rows: Sequence[tuple[str, np.ndarray]], path: str | os.PathLike[str]) -> None:
    """Draws a row of images for each cluster.

    Args:
        title: title of the picture.
        rows: for each cluster a line about it, and images [n, H, W, C] in [0, 255] with n from 0 to NUM_MEMBERS_SHOWN.
        path: path of the png file.
    """
    sides = next((images.shape[1:3] for _, images in rows if len(images)), (1, 1))
    image_height, image_width = ((1 - _GAP) * side / max(sides) for side in sides)
    height = _TITLE + (_CAPTION + image_height) * len(rows)
    figure = _figure(NUM_MEMBERS_SHOWN, height, layout=None)
    figure.suptitle(title, fontsize=12, x=0.006, y=1 - _GAP / height, ha="left", va="top")
    # One panel, in inches, for all images: a panel for each would take most of the time of a report.
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set_axis_off()
    for row, (words, images) in enumerate(rows):
        top = _TITLE + _CAPTION + (_CAPTION + image_height) * row
        axis.text(_GAP, top - _GAP, words if len(images) else f"{words}: none here", fontsize=9, va="bottom")
        for column, image in enumerate(images):
            pixels = np.clip(image / 255.0, 0.0, 1.0).squeeze()
            extent = (column + _GAP, column + _GAP + image_width, top + image_height, top)
            axis.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest", extent=extent)
    axis.set(xlim=(0, NUM_MEMBERS_SHOWN), ylim=(height, 0))
    figure.savefig(path, dpi=80)


def _figure(width: float, height: float, layout: Literal["constrained"] | None = "constrained") -> Figure:
    """Returns a new figure of a size in inches."""
    # Pyplot is avoided, because its windows and its state belong to the program that calls this library.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def _plain(axis: Axes, title: str, x: str, y: str) -> None:
    """Sets the title and the labels of a panel, in the style that all panels share."""
    axis.set_title(title, fontsize=10, loc="left")
    axis.set_xlabel(x, fontsize=9)
    axis.set_ylabel(y, fontsize=9)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def _mark_relabellings(axis: Axes, report: Mapping[str, Any]) -> None:
    """Draws a vertical line at each step with a relabelling."""
    steps = sorted({row["step"] for head in report["relabellings"] for row in head if row["kind"] == "relabel"})
    for step in steps:
        axis.axvline(step, color=_GRAY, linewidth=0.6, alpha=0.5, zorder=0)


def _draw_loss(axis: Axes, report: Mapping[str, Any]) -> None:
    """Draws the training loss and each head's objective over steps."""
    _plain(axis, "training loss, and E(p, q) through both steps", "optimizer step (lines: relabellings)", "nats")
    _mark_relabellings(axis, report)
    if report["loss"]:
        axis.plot(*zip(*report["loss"], strict=True), color=_GRAY, linewidth=1, label="training loss, augmented views")
    for head, relabellings in enumerate(report["relabellings"]):
        steps, values = objective_curve(relabellings)
        label = "E(p, q): SGD, then down at a relabelling" if head == 0 else None
        axis.plot(steps, values, color=_HEAD_COLOURS[head % len(_HEAD_COLOURS)], marker=".", linewidth=1.2, label=label)
    chance = math.log(report["num_clusters"])
    axis.axhline(chance, color="black", linestyle=":", linewidth=1, label=f"ln K = {chance:.2f}: nothing learned")
    # Of a network whose batch statistics are not settled yet, one early relabelling may lie thousands of nats up.
    axis.set_ylim(0, 1.6 * chance)
    _legend(axis)


def _draw_agreement(axis: Axes, report: Mapping[str, Any]) -> None:
    """Draws the accuracy of the kNN monitor and each head's NMI over steps."""
    _plain(axis, "agreement with the classes (not used in training)", "optimizer step (lines: relabellings)", "")
    _mark_relabellings(axis, report)
    drawn = False
    if report["knn"]:
        axis.plot(*zip(*report["knn"], strict=True), color="black", marker="o", markersize=4, label="kNN of the monitor")
        untrained = report["figures"]["untrained"]["knn"]
        if untrained is not None:
            axis.axhline(untrained, color="black", linestyle=":", linewidth=1, label="kNN, untrained")
        drawn = True
    for head, relabellings in enumerate(report["relabellings"]):
        points = [(row["step"], row["nmi"]) for row in relabellings if "nmi" in row]
        if points:
            label = "NMI of the labels" if head == 0 else None
            axis.plot(*zip(*points, strict=True), color=_HEAD_COLOURS[head % len(_HEAD_COLOURS)], marker=".", label=label)
            drawn = True
    if drawn:
        axis.set_ylim(0, 1.04)
        _legend(axis, loc="lower right")
    else:
        _say(axis, report["no_figures"] or "no class labels")


def _draw_changes(axis: Axes, report: Mapping[str, Any]) -> None:
    """Draws the share of labels that each relabelling changed, by head."""
    _plain(axis, "labels that a relabelling changed", "optimizer step", "share of the images")
    for head, relabellings in enumerate(report["relabellings"]):
        points = [(row["step"], row["changed"]) for row in relabellings if "changed" in row]
        if points:
            axis.plot(*zip(*points, strict=True), color=_HEAD_COLOURS[head % len(_HEAD_COLOURS)], marker=".", label=f"head {head}")
    axis.set_ylim(0, 1.04)
    if 1 < len(report["relabellings"]) <= 10:
        _legend(axis, ncols=2)


def _draw_sizes(axis: Axes, report: Mapping[str, Any]) -> None:
    """Draws the sizes of the clusters, the largest first: those of the labels, and those of the network's argmax."""
    _plain(axis, "images a cluster, the largest first", "rank of the cluster", "training images")
    for head, sizes in enumerate(report["cluster_sizes"]):
        colour = _HEAD_COLOURS[head % len(_HEAD_COLOURS)]
        # All heads have the same curve where their labels are balanced, so it has one colour.
        axis.step(range(len(sizes["labels"])), sizes["labels"], where="mid", color="black", label="labels" if head == 0 else None)
        if not sizes["network"]:
            continue
        # The sizes in a sample are scaled to all images, to be comparable with those of the labels.
        plain = np.array(sizes["network"]) * sum(sizes["labels"]) / sum(sizes["network"])
        words = f"the network's plain argmax{', of a sample' * (sum(sizes['network']) < sum(sizes['labels']))}"
        style = {"color": colour, "linestyle": "--", "linewidth": 0.9, "alpha": 0.8}
        axis.step(range(len(plain)), plain, where="mid", label=words if head == 0 else None, **style)
    axis.set_ylim(bottom=0)
    _legend(axis)


def _draw_entropies(axis: Axes, report: Mapping[str, Any]) -> None:
    """Draws, for each relabelling of head 0, the histogram of the clusters' class entropies and their mean."""
    rows = [row for row in report["relabellings"][0] if "entropy_histogram" in row]
    _plain(axis, "entropy of the classes in a cluster, head 0", "relabelling (first: random labels)", "nats")
    if not rows:
        _say(axis, report["no_figures"] or "no class labels")
        return
    from matplotlib.colors import PowerNorm

    highest = math.log(report["num_classes"])
    counts = np.array([row["entropy_histogram"] for row in rows], np.float64).T
    shares = counts / counts.sum(axis=0)
    # The random labels of the start fall into one cell. A square root keeps the other cells visible.
    image = axis.imshow(
        shares, origin="lower", aspect="auto", cmap="Blues", extent=(-0.5, len(rows) - 0.5, 0, highest), norm=PowerNorm(0.5, 0, 1)
    )
    axis.plot(range(len(rows)), [row["entropy"] for row in rows], color=_ORANGE, marker=".", label="mean")
    axis.set_xticks(range(0, len(rows), max(1, len(rows) // 8)))
    bar = axis.figure.colorbar(image, ax=axis)
    bar.set_label("share of the clusters", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    _legend(axis, loc="lower left")


def _draw_metrics(axis: Axes, report: Mapping[str, Any]) -> None:
    """Draws the table of metrics, with half the width of their 95 % intervals."""
    axis.set_axis_off()
    axis.set_title("held-out images", fontsize=10, loc="left")
    if not report["table"]:
        _say(axis, report["no_figures"] or "no class labels, so no accuracies")
        return
    header, *cells = report["table"]
    table = axis.table(cellText=cells, colLabels=header, loc="upper left", cellLoc="right", edges="horizontal")
    table.auto_set_font_size(False)
    table.set_fontsize(8)
    table.auto_set_column_width(list(range(len(header))))
    table.scale(1, 1.6)
    notes = textwrap.wrap(report["table_note"], 75)
    if len(report["relabellings"]) > 1:
        notes.append("figures of clusters: mean of the heads")
    axis.text(0, 0, "\n".join(notes), fontsize=8, color=_GRAY, transform=axis.transAxes)


def _legend(axis: Axes, **options: Any) -> None:
    """Adds a legend in the style that all panels share."""
    axis.legend(fontsize=8, facecolor="white", framealpha=0.9, edgecolor="none", **options)


def _say(axis: Axes, words: str) -> None:
    """Writes `words` into the middle of a panel that has nothing else to show."""
    axis.set_axis_off()
    axis.text(0.5, 0.5, words, ha="center", va="center", color=_GRAY, transform=axis.transAxes)
