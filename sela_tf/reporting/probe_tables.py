"""The tables of `python -m sela_tf.probe`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from sela_tf.reporting.markdown import markdown
from sela_tf.reporting.metric_labels import CLUSTER_LABELS, METRIC_LABELS


def interval(values: Sequence[float], *, confidence: float = 0.95) -> float:
    """Returns half the width of Student's confidence interval of the mean of `values`; NaN for a single value."""
    if len(values) < 2:
        return float("nan")
    return float(stats.t.ppf(0.5 + confidence / 2, len(values) - 1) * stats.sem(values))


def probes_table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Returns Markdown tables: the mean over runs, with its confidence interval where there are several; the agreement with another run.

    Args:
        runs: contents of their probes.json.
    """
    tables = [agreement_table(run["other_run"]) for run in runs if "other_run" in run]
    return "\n\n".join(([_means_table(runs)] if "trained" in runs[0] else []) + tables)


def _means_table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Returns a Markdown table of the mean over runs, with its confidence interval where there are several."""
    columns = [name for name in ("trained", "untrained") if name in runs[0]]
    rows = [["held-out images", *columns]]
    for kind, label in (
        ("knn", f"{METRIC_LABELS['knn'].short_label}, k = {{}}"),
        ("linear_probe", f"{METRIC_LABELS['linear_probe'].label}, {{}}"),
    ):
        for key in runs[0]["trained"][kind]:
            rows.append([label.format(key), *(mean_and_interval([run[column][kind][key] for run in runs]) for column in columns)])
    for key, label in CLUSTER_LABELS.items():
        means = [[float(np.mean(run[column]["clustering"][key])) for run in runs] for column in columns]
        rows.append([f"{label}, mean of heads" if key == "nmi" else label, *map(mean_and_interval, means)])
    for k in runs[0]["trained"]["kmeans"]:
        numbers = [[run[column]["kmeans"][k]["nmi"][0] for run in runs] for column in columns]
        rows.append([f"{CLUSTER_LABELS['nmi']}, k-means on the embedding, {k} clusters", *map(mean_and_interval, numbers)])
    return markdown(rows[0], rows[1:])


def mean_and_interval(values: Sequence[float]) -> str:
    """Returns the mean over seeds, "0.123 ± 0.004" with half its 95 % confidence interval, or "0.123" for a single value."""
    mean = f"{np.mean(values):.3f}"
    return mean if len(values) < 2 else f"{mean} ± {interval(values):.3f}"


def agreement_table(compared: Mapping[str, Any]) -> str:
    """Returns a Markdown table of the agreement of two runs, as `compare_runs` returns it."""
    names = {"trained": "trained", "untrained": "untrained", "raw_pixels": "raw pixels, k-means"}
    cells = []
    for name in names:
        low, high = compared["intervals"][name]
        cells.append(f"{compared['agreement'][name]:.3f} ± {(high - low) / 2:.3f}")
    return markdown(["clusters of two runs", *names.values()], [["AMI, mean of heads; chance: 0", *cells]])
