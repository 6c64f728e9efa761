"""The history of a training, from the rows of its metrics.jsonl."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_DRAWN = ("loss", "objective_before", "objective_after", "changed", "knn", "nmi", "entropy")
"""Numbers of rows that are drawn."""
_DRAWN_OF = {"train": ("loss",), "relabel": ("objective_before", "objective_after")}
"""Numbers that every row of a kind has."""
_MOST = 1e18
"""The largest number that is drawn."""


def training_history(rows: Iterable[Mapping[str, Any]], *, num_heads: int) -> dict[str, Any]:
    """Returns the history of a training as numbers and lists, for report.json.

    Args:
        rows: rows of metrics.jsonl.
        num_heads: number of heads T.

    Returns:
        "loss": list of [step, mean loss since the row before]; "knn": list of [step, accuracy]; "relabellings": a list for each head, of
        rows with "step" and the metrics of `relabel`. With classes, the first row of a head is that of its initial labels.

    Raises:
        ValueError: A row is not as training writes it.
    """
    rows = list(rows)
    for row in rows:
        _check_row(row, num_heads)
    if len({len(row["entropy_histogram"]) for row in rows if "entropy_histogram" in row}) > 1:
        raise ValueError("entropy_histogram has several lengths")
    relabellings: list[list[dict[str, Any]]] = [[] for _ in range(num_heads)]
    for row in rows:
        if row["kind"] in ("first_labels", "relabel"):
            relabellings[row["head"]].append({key: value for key, value in row.items() if key != "head"})
    return {
        "loss": [[row["step"], row["loss"]] for row in rows if row["kind"] == "train"],
        "knn": [[row["step"], row["knn"]] for row in rows if row["kind"] == "epoch" and "knn" in row],
        "relabellings": relabellings,
    }


def _check_row(row: Mapping[str, Any], num_heads: int) -> None:
    """Checks what is read of a row of metrics.jsonl.

    Raises:
        ValueError: A value is missing, or has another type.
    """
    kind = row["kind"]
    wanted = _DRAWN_OF.get(kind, ())
    is_right = (
        all(_is_number(row[name]) if name in row else name not in wanted for name in _DRAWN)
        and (kind not in ("first_labels", "relabel") or (type(row.get("head")) is int and row["head"] in range(num_heads)))
        and ("entropy_histogram" not in row or ("entropy" in row and _is_histogram(row["entropy_histogram"])))
        and (kind != "warning" or isinstance(row.get("message"), str))
    )
    if not is_right:
        raise ValueError(f"the row of step {row['step']} of kind {kind!r} lacks a value, or has one of another type")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < _MOST


def _is_histogram(value: Any) -> bool:
    return isinstance(value, list) and all(_is_number(each) and each >= 0 for each in value) and sum(value) > 0


def objective_curve(relabellings: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
    """Returns the objective E(p, q) of one head (paper, eq. 3) before and after each relabelling: (steps, values).

    Args:
        relabellings: rows of one head, as `training_history` returns them.
    """
    points = [
        (row["step"], row[f"objective_{when}"]) for row in relabellings if row["kind"] == "relabel" for when in ("before", "after")
    ]
    return [step for step, _ in points], [value for _, value in points]
