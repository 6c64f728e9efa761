"""The table of the results, and the goal."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.planted_faults.planting import NUM_FAULTS
from sela_tf.reporting.markdown import markdown

GOAL = 0.8
TUNED_ON = 0
"""The draw that the ranking was found on; it counts for no goal."""
METHODS = ("sela_tf", "sela_tf, no classes", "cleanlab", "cleanvision")


def _of_set(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    names = dict.fromkeys(row["set"] for row in rows)
    return {name: [row for row in rows if row["set"] == name] for name in names}


def share(row: dict[str, Any], method: str, among: str = "found") -> float:
    """Returns the share of the planted faults that a method shows."""
    return sum(row[among][method].values()) / sum(NUM_FAULTS.values())


def table(rows: list[dict[str, Any]]) -> str:
    """Returns a table in Markdown: the faults among the first 100 entries, mean over the draws that nothing was tuned on."""
    lines = []
    for name, group in _of_set(rows).items():
        confirmed = [row for row in group if row["draw"] != TUNED_ON] or group
        for method in METHODS:
            having = [row for row in confirmed if method in row["found"]]
            if not having:
                continue
            kinds = [np.mean([row["found"][method][kind] for row in having]) for kind in NUM_FAULTS]
            each = " ".join(f"{share(row, method):.0%}" for row in group if method in row["found"])
            natural = np.mean([row["natural_copies"][method] for row in having])
            lines.append([name, method, f"{np.mean([share(row, method) for row in having]):.0%}", each])
            lines[-1] += [f"{value:.1f}" for value in (*kinds, natural)]
            beyond = [share(row, method, "found_among_others") for row in having if method in row["found_among_others"]]
            lines[-1].append(f"{np.mean(beyond):.0%}" if beyond else "")
    kinds_of = [f"{kind}, of {count}" for kind, count in NUM_FAULTS.items()]
    return markdown(["set", "ranking", "found", "each draw", *kinds_of, "copies of the set's own", "found without these"], lines)


def pairs_table(rows: list[dict[str, Any]]) -> str:
    """Returns a table in Markdown: the share of pairs of a faulty and a faultless image that `look_here_first` orders rightly."""
    lines = []
    for name, group in _of_set(rows).items():
        confirmed = [row["look_here_first"] for row in group if row["draw"] != TUNED_ON] or [
            row["look_here_first"] for row in group
        ]
        lines.append([name, *(f"{np.mean([pairs[kind] for pairs in confirmed]):.0%}" for kind in ("class", "foreign"))])
    return markdown(["set", "of another class", "foreign"], lines)


def goals(rows: list[dict[str, Any]]) -> int:
    """Prints the goal for each set as reached or missed; returns the number of misses."""
    missed = 0
    for name, group in _of_set(rows).items():
        shares = [share(row, "sela_tf") for row in group if row["draw"] != TUNED_ON]
        if shares:
            reached = float(np.mean(shares)) >= GOAL
            missed += not reached
            print(f"{'reached' if reached else 'MISSED'}: {name}: {np.mean(shares):.0%} of the planted faults, {len(shares)} draws")
    return missed
