"""The table of a run's results beside those of the untrained network, of raw pixels and of chance."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sela_tf.reporting.metric_labels import METRIC_LABELS, REPORT_LABELS, STABILITY_LABELS
from sela_tf.reporting.verdict import chance_figures, many_clusters_note, shown_metrics, verdict_line

_WIDTH = 100
_COLUMNS = {"trained": "trained", "untrained": "untrained", "raw_pixels": "raw pixels", "chance": "chance"}
_MARKS = {"better": " +", "worse": " -", "no difference seen": " ="}


def results_table(results: Mapping[str, Any]) -> str:
    """Returns the table of results.json for a terminal; without metrics, the reason why there are none.

    Args:
        results: the contents of results.json, also of runs that were made before there were intervals.
    """
    trained = results["trained"]
    if trained["clusters_used"] is None:
        return f"{trained['reason'].capitalize()}."
    columns = [name for name in _COLUMNS if name in results]
    rows = [*_rows_of_classes(results, columns), *_rows_of_views(results, columns)]
    notes = []
    if trained["knn"] is None:
        notes.append(f"{trained['reason'].capitalize()}: kNN, linear probe, NMI, AMI, ARI and Hungarian accuracy are left out.")
    if not rows:
        used = ", ".join(map(str, trained["clusters_used"]))
        return f"{notes[0]}\nClusters in use on the held-out images, a head: {used} of {results['config']['num_clusters']}."
    if "compared" in results:
        notes = [f"{verdict_line(results)}.", *notes, _legend(results), many_clusters_note(results)]
    notes.append(trained["protocol"] + " untrained: before the first step, its moving statistics taken from 50 batches.")
    if "without_classes" in results:
        raw = results["raw_pixels"]["protocol"].partition(",")[0]
        notes.append(f"raw pixels: on {raw}, k-means for clusters. Views: {results['without_classes']['protocol']}.")
    lines = [line for note in notes for line in textwrap.wrap(note, _WIDTH)]
    return "\n".join([*_aligned([["held-out images", *(_COLUMNS[name] for name in columns)], *rows]), "", *lines])


def report_table(results: Mapping[str, Any]) -> list[list[str]]:
    """Returns the table of report.png: its header, and rows of a few figures, means of the heads where there are several."""
    columns = [name for name in _COLUMNS if name in results]
    rows = []
    for key in (*shown_metrics(results), *STABILITY_LABELS):
        label = (METRIC_LABELS.get(key) or STABILITY_LABELS[key]).short_label
        values = results["trained"].get(key, results.get("without_classes", {}).get("trained", {}).get(key))
        if label is not None and values is not None:
            rows.append([label, *(_mean_cell(results, column, key) for column in columns)])
    return [["", *(_COLUMNS[name] for name in columns)], *rows] if rows else []


def report_figures(results: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """Returns the figures of report.png by column and metric, means of the heads where there are several; None where there is none."""

    def mean(value: Any) -> float | None:
        return None if value is None else float(np.mean(value))

    return {column: {key: mean(results[column][key]) for key in REPORT_LABELS} for column in _COLUMNS if column in results}


def _mean_cell(results: Mapping[str, Any], column: str, key: str) -> str:
    """Returns a figure and half the width of its interval, both as the mean of the heads."""
    if key in STABILITY_LABELS:
        value = 0.0 if column == "chance" else results["without_classes"][column][key]
    else:
        value = chance_figures(results, key) if column == "chance" else results[column][key]
    interval = results.get("intervals", {}).get(column, {}).get(key)
    if value is None:
        return ""
    half = f" ± {np.mean(np.diff(interval)) / 2:.3f}" if interval and column != "chance" else ""
    return f"{np.mean(value):.3f}{half}"


def _rows_of_classes(results: Mapping[str, Any], columns: Sequence[str]) -> list[list[str]]:
    """Returns the rows of the figures that need classes; none without classes."""
    rows: list[list[str]] = []
    heads = len(results["trained"]["clusters_used"])
    for key in shown_metrics(results):
        label, values = METRIC_LABELS[key].label, results["trained"][key]
        if values is None:
            continue
        for head in range(heads if isinstance(values, list) else 1):
            name = f"{label}, head {head}" if isinstance(values, list) and heads > 1 else label
            rows.append([name, *(_cell(results, column, key, head) for column in columns)])
    return rows


def _rows_of_views(results: Mapping[str, Any], columns: Sequence[str]) -> list[list[str]]:
    """Returns the rows of the figures that need no classes; none where there are none."""
    without = results.get("without_classes", {})
    rows = []
    for key, (label, _) in STABILITY_LABELS.items():
        if without.get("trained", {}).get(key) is None:
            continue
        cells = []
        for column in columns:
            value = 0.0 if column == "chance" else without[column][key]
            cells.append("" if value is None else f"{value:.3f}{_half(results, column, key, 0)}{_mark(results, column, key)}")
        rows.append([label, *cells])
    return rows


def _cell(results: Mapping[str, Any], column: str, key: str, head: int) -> str:
    """Returns a figure with half the width of its interval, and the mark of its comparison with the trained network."""
    values = chance_figures(results, key) if column == "chance" else results[column][key]
    if values is None:
        return ""
    values = values if isinstance(values, list) else [values]
    value = values[min(head, len(values) - 1)]
    return f"{value:.3f}{_half(results, column, key, head)}{_mark(results, column, key)}"


def _half(results: Mapping[str, Any], column: str, key: str, head: int) -> str:
    """Returns half the width of an interval as " ± 0.012"; "" where there is none."""
    interval = results.get("intervals", {}).get(column, {}).get(key)
    if not interval:
        return ""
    low, high = interval[min(head, len(interval) - 1)] if isinstance(interval[0], list) else interval
    return f" ± {(high - low) / 2:.3f}"


def _mark(results: Mapping[str, Any], column: str, key: str) -> str:
    """Returns the mark of the comparison of the trained network with a column; "" where they are not compared."""
    found = results.get("compared", {}).get(column, {}).get(key)
    if found:
        return _MARKS[found["outcome"]]
    # All cells of a column that has marks have the same width, so that their points lie below one another.
    return "  " if results.get("compared", {}).get(column) else ""


def _legend(results: Mapping[str, Any]) -> str:
    """Returns the meaning of signs in the table."""
    heads = "; AMI and ARI: mean of the heads" if len(results["trained"]["clusters_used"]) > 1 else ""
    return (
        f"±: half of the 95 % interval. + the trained network is better, - worse, = no difference seen, on the same images{heads}. "
        "NMI grows with the number of clusters in use, also by chance, and is not compared."
    )


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns the lines of a table whose first row is its header."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(widths[0]) if i == 0 else cell.rjust(widths[i]) for i, cell in enumerate(row)) for row in rows]
    return [lines[0], "-" * len(lines[0]), *lines[1:]]
