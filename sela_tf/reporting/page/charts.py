"""Line charts of a page, as the numbers that its template draws in SVG."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from sela_tf.reporting.history import objective_curve

WIDTH, HEIGHT = 360, 170
"""Size of a chart's area in units of its picture."""
_TICKS = 4


class Line(NamedTuple):
    """A line of a chart."""

    name: str
    """The name in the legend; "" for a line that needs none."""
    points: str
    """The points as SVG has them: "x,y x,y …"."""
    colour: int
    """Number of its colour in the page's style."""


class Chart(NamedTuple):
    """A chart with its lines and the ticks of its axes."""

    title: str
    x_label: str
    lines: list[Line]
    x_ticks: list[tuple[float, str]]
    """(place, text) of each tick."""
    y_ticks: list[tuple[float, str]]
    marks: list[float]
    """Places of vertical lines, such as relabellings."""


def charts_of(report: Mapping[str, Any]) -> list[Chart]:
    """Returns the charts of a run's course and of its cluster sizes, from the contents of report.json; those without data are left out."""
    heads = report["relabellings"]
    marks = sorted({row["step"] for head in heads for row in head if row["kind"] == "relabel"})
    chance = math.log(report["num_clusters"])

    def of_heads(key: str) -> list[tuple[str, list[tuple[float, float]]]]:
        return [(f"head {i}", [(row["step"], row[key]) for row in head if key in row]) for i, head in enumerate(heads)]

    knn = [("kNN of the monitor", [(step, value) for step, value in report["knn"]])]
    objectives = [(f"E(p, q), head {i}", list(zip(*objective_curve(head), strict=True))) for i, head in enumerate(heads)]
    sizes = [(f"labels, head {i}", list(enumerate(head["labels"]))) for i, head in enumerate(report["cluster_sizes"][:1])]
    network = [
        (
            f"network, head {i}",
            [(rank, size * sum(head["labels"]) / sum(head["network"])) for rank, size in enumerate(head["network"])],
        )
        for i, head in enumerate(report["cluster_sizes"])
        if head["network"]
    ]
    found = [
        _chart("training loss, nats", "step", [("loss", [tuple(pair) for pair in report["loss"]])], marks, limit=1.6 * chance),
        _chart("objective E(p, q), nats", "step", objectives, marks, limit=1.6 * chance),
        _chart("share of labels that a relabelling changed", "step", of_heads("changed"), marks, limit=1.0),
        _chart("kNN accuracy during training", "step", knn, marks, limit=1.0),
        _chart("NMI of labels and classes", "step", of_heads("nmi"), marks, limit=1.0),
        _chart("mean entropy of the classes in a cluster, nats", "step", of_heads("entropy"), marks),
        _chart("training images a cluster, the largest first", "rank of the cluster", [*sizes, *network], []),
    ]
    return [chart for chart in found if chart.lines]


def _chart(
    title: str,
    x_label: str,
    series: Iterable[tuple[str, Sequence[tuple[float, float]]]],
    marks: Sequence[float],
    *,
    limit: float = math.inf,
) -> Chart:
    """Returns a chart of named series of points; values above `limit` are drawn at it."""
    drawn = [(name, [(x, min(y, limit)) for x, y in points]) for name, points in series if len(points) > 1]
    if not drawn:
        return Chart(title, x_label, [], [], [], [])
    right = max(x for _, points in drawn for x, _ in points) or 1
    top = _rounded_up(max(y for _, points in drawn for _, y in points))

    def place(x: float, y: float) -> str:
        return f"{x / right * WIDTH:.1f},{HEIGHT - max(y, 0.0) / top * HEIGHT:.1f}"

    names = len(drawn) > 1
    lines = [
        Line(name if names else "", " ".join(place(x, y) for x, y in points), number) for number, (name, points) in enumerate(drawn)
    ]
    return Chart(
        title,
        x_label,
        lines,
        [(share / _TICKS * WIDTH, f"{right * share / _TICKS:.0f}") for share in range(_TICKS + 1)],
        [(HEIGHT - share / _TICKS * HEIGHT, f"{top * share / _TICKS:.3g}") for share in range(_TICKS + 1)],
        [step / right * WIDTH for step in marks if step <= right],
    )


def _rounded_up(value: float) -> float:
    """Returns the next of 1, 2, 4, 5, 8, 10 times a power of ten, so that four ticks have short numbers."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 4, 5, 8, 10) if step * power >= value * (1 - 1e-9))
