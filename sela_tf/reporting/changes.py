"""The change from the clusters of an earlier run to those of the run that continues it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

_MOST_CLUSTERS = 12
"""Clusters of each head that are shown."""
_COLUMNS = ("before", "removed", "left", "came", "new", "after")
"""Numbers of images of each cluster, where before - removed - left + came + new = after."""


def changes_of_labels(
    before: np.ndarray,
    after: np.ndarray,
    *,
    removed: np.ndarray,
    moved_at_start: np.ndarray,
    cluster_names: np.ndarray | None = None,
) -> dict[str, Any]:
    """Returns the change of the clusters in plain numbers, as results.json has it.

    Clusters are listed by the number of images that entered or left them, at most twelve of each head.

    Args:
        before: the labels of the earlier run, integers `[T, N]`; -1 for images that are new.
        after: the present labels, integers `[T, N]`.
        removed: the images of each cluster that are not there any more, integers `[T, K]`.
        moved_at_start: the images that the first labels moved to another cluster, integers `[T]`.
        cluster_names: the names of the clusters, strings `[T, K]`.
    """
    is_new = before[0] < 0
    moved = (before != after) & ~is_new
    clusters = []
    for head in range(len(before)):
        names = None if cluster_names is None else cluster_names[head]
        clusters.append(_clusters(before[head], after[head], removed[head], names))
    return {
        "num_added": int(is_new.sum()),
        "num_removed": int(removed[0].sum()),
        "num_kept": int((~is_new).sum()),
        "num_moved": moved.sum(axis=1).tolist(),
        "num_moved_at_start": np.asarray(moved_at_start).tolist(),
        "clusters": clusters,
    }


def _clusters(before: np.ndarray, after: np.ndarray, removed: np.ndarray, names: np.ndarray | None) -> list[dict[str, Any]]:
    """Returns the clusters of one head that changed most."""
    count = len(removed)

    def number(labels: np.ndarray, those: np.ndarray) -> np.ndarray:
        return np.bincount(labels[those], minlength=count)

    is_new = before < 0
    has_moved = (before != after) & ~is_new
    columns = {
        "before": number(before, ~is_new) + removed,
        "removed": removed,
        "left": number(before, has_moved),
        "came": number(after, has_moved),
        "new": number(after, is_new),
        "after": np.bincount(after, minlength=count),
    }
    turnover = columns["removed"] + columns["left"] + columns["came"] + columns["new"]
    found = []
    for cluster in np.argsort(-turnover, kind="stable")[:_MOST_CLUSTERS]:
        if turnover[cluster]:
            row: dict[str, Any] = {"cluster": int(cluster)}
            if names is not None:
                row["name"] = str(names[cluster])
            found.append({**row, **{name: int(values[cluster]) for name, values in columns.items()}})
    return found


def changes_table(changes: Mapping[str, Any]) -> str:
    """Returns the change of the clusters for a terminal: a line of counts, and the clusters of head 0 that changed most.

    Args:
        changes: what `changes_of_labels` returned.
    """
    heads = len(changes["num_moved"])
    moved = ", ".join(f"{number} (head {head})" if heads > 1 else str(number) for head, number in enumerate(changes["num_moved"]))
    line = (
        f"{changes['num_added']} training images are new, {changes['num_removed']} are gone; {moved} of the {changes['num_kept']} others "
        "changed their cluster"
    )
    rows = changes["clusters"][0]
    if not rows:
        return line
    header = ["cluster", *(["name"] if any(row.get("name") for row in rows) else []), *_COLUMNS]
    cells = [[str(row[key]) for key in header] for row in rows]
    widths = [max(len(row[i]) for row in [header, *cells]) for i in range(len(header))]
    table = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in [header, *cells]]
    title = f"clusters that changed most{', head 0' if heads > 1 else ''} (before - removed - left + came + new = after):"
    return "\n".join([line, title, *table])
