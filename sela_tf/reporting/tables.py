"""The table of a run's results beside those of the untrained network and of chance."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from sela_tf.reporting.metric_labels import METRIC_LABELS


def results_table(results: Mapping[str, Any]) -> str:
    """Returns the table of results.json for a terminal; without metrics, the reason why there are none.

    Args:
        results: the contents of results.json.
    """
    columns = ["trained", "untrained", "chance"]
    if results["trained"]["clusters_used"] is None:
        return f"{results['trained']['reason'].capitalize()}."
    heads = len(results["trained"]["clusters_used"])
    if results["trained"]["knn"] is None:
        used = ", ".join(map(str, results["trained"]["clusters_used"]))
        return (
            f"{results['trained']['reason'].capitalize()}: kNN, linear probe, NMI, AMI, ARI and Hungarian accuracy are left out.\n"
            f"Clusters in use on the held-out images, a head: {used} of {results['config']['num_clusters']}."
        )
    rows = [["held-out images", *columns]]
    for key, (label, _) in METRIC_LABELS.items():
        values = [results[column][key] for column in columns]
        if isinstance(values[0], list):
            for head in range(heads):
                rows.append([f"{label}, head {head}" if heads > 1 else label, *(_number(value, head) for value in values)])
        else:
            rows.append([label, *(_number([value], 0) for value in values)])
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = ["  ".join(cell.ljust(widths[0]) if i == 0 else cell.rjust(widths[i]) for i, cell in enumerate(row)) for row in rows]
    return "\n".join(
        [
            lines[0],
            "-" * len(lines[0]),
            *lines[1:],
            "",
            *textwrap.wrap(
                results["trained"]["protocol"] + " untrained: before the first step, its moving statistics taken from 50 batches.",
                100,
            ),
        ]
    )


def _number(values: Sequence[float], head: int) -> str:
    """Returns the value of a head, or the only value where it is the same for all heads."""
    return f"{values[min(head, len(values) - 1)]:.3f}"
