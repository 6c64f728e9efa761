"""The history of a training, from the rows of its metrics.jsonl."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def training_history(rows: Iterable[Mapping[str, Any]], *, num_heads: int) -> dict[str, Any]:
    """Returns the history of a training as numbers and lists, for report.json.

    Args:
        rows: rows of metrics.jsonl.
        num_heads: number of heads T.

    Returns:
        "loss": list of [step, mean loss since the row before]; "knn": list of [step, accuracy]; "relabellings": a list for each head, of
        rows with "step" and the metrics of `relabel`. With classes, the first row of a head is that of its initial labels.
    """
    rows = list(rows)
    relabellings: list[list[dict[str, Any]]] = [[] for _ in range(num_heads)]
    for row in rows:
        if row["kind"] in ("first_labels", "relabel"):
            relabellings[row["head"]].append({key: value for key, value in row.items() if key != "head"})
    return {
        "loss": [[row["step"], row["loss"]] for row in rows if row["kind"] == "train"],
        "knn": [[row["step"], row["knn"]] for row in rows if row["kind"] == "epoch" and "knn" in row],
        "relabellings": relabellings,
    }


def objective_curve(relabellings: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
    """Returns the objective E(p, q) of one head (paper, eq. 3) before and after each relabelling: (steps, values).

    Args:
        relabellings: rows of one head, as `training_history` returns them.
    """
    points = [
        (row["step"], row[f"objective_{when}"]) for row in relabellings if row["kind"] == "relabel" for when in ("before", "after")
    ]
    return [step for step, _ in points], [value for _, value in points]
