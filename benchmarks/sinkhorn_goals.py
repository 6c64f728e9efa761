"""The goals of the transport's speed, and what counts as solved, for benchmarks/sinkhorn.py."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from benchmarks.cells import Cell
from benchmarks.measuring import Checked
from benchmarks.sinkhorn_peers import PEERS, REFERENCE, TOLERANCE

Found = dict[tuple[str, int], dict[str, Cell]]
"""The median cell of each method, for each kind of problem and K."""
OURS, TWO_THREADS = "sela_tf", "sela_tf, 2 threads"


def is_solved(cell: Cell, tolerance: float = TOLERANCE) -> bool:
    # an error that was measured in float32 may be a little more in float64
    return cell.get("error", np.inf) <= 1.05 * tolerance


def has_stopped_well(cell: Cell) -> bool:
    """Says whether the reference has, which has no tolerance: it is stopped by underflow, too."""
    return is_solved(cell, 10 * TOLERANCE)


class Times(NamedTuple):
    """How many times as long as our own the fastest of some others took."""

    number: float
    is_at_least: bool
    """The others were cut."""

    def __str__(self) -> str:
        return f"{'> ' if self.is_at_least else ''}{self.number:.3g}"


def times(others: Iterable[Cell], own: Cell, is_valid: Callable[[Cell], bool]) -> Times | None:
    """None where there is nothing to compare."""
    if not is_solved(own):
        return None
    finished = [other["seconds"] for other in others if "seconds" in other and is_valid(other)]
    if finished:
        return Times(min(finished) / own["seconds"], False)
    cut = [other["cut"] for other in others if "cut" in other]
    return Times(min(cut) / own["seconds"], True) if cut else None


def times_reference(cells: dict[str, Cell], method: str = OURS) -> Times | None:
    return times([cells.get(REFERENCE, {})], cells.get(method, {}), has_stopped_well)


def times_best_peer(cells: dict[str, Cell], method: str = OURS) -> Times | None:
    return times([cells[name] for name in PEERS if name in cells], cells.get(method, {}), is_solved)


def _threads(cells: dict[str, Cell]) -> Times | None:
    return times([cells.get(OURS, {})], cells.get(TWO_THREADS, {}), is_solved)


class Goal(NamedTuple):
    name: str
    kinds: tuple[str, ...]
    num_clusters: tuple[int, ...]
    least: float
    measure: Callable[[dict[str, Cell]], Times | None]


_SHARP, _ALL = ("trained", "hard"), ("trained", "untrained", "hard", "warm")
GOALS = (
    Goal("the reference", _SHARP, (1000,), 100, times_reference),
    Goal("the best peer", _SHARP, (1000,), 30, times_best_peer),
    Goal("the best peer", _SHARP, (3000,), 20, times_best_peer),
    Goal("the best peer", _SHARP, (128,), 20, times_best_peer),
    Goal("the best peer", ("untrained",), (128,), 2.5, times_best_peer),
    Goal("the best peer", ("untrained",), (1000, 3000), 5, times_best_peer),
    Goal("one thread, by two", _ALL, (1000, 3000), 1.6, _threads),
)
_WARM_ITERATIONS = {3000: 3}


def goals(found: Found) -> list[Checked]:
    """Each goal of the problems that were measured, whether it is reached, and the figure; a goal without its figure is missed."""
    checked = []
    for goal in GOALS:
        for kind in goal.kinds:
            for num_clusters in goal.num_clusters:
                if (kind, num_clusters) not in found:
                    continue
                reached = goal.measure(found[kind, num_clusters])
                name = f"{kind}, K = {num_clusters}: {goal.least:g} times as fast as {goal.name}"
                is_reached = reached is not None and reached.number >= goal.least
                checked.append((name, is_reached, "not measured" if reached is None else str(reached)))
    for num_clusters, most in _WARM_ITERATIONS.items():
        if ("warm", num_clusters) in found:
            cell = found["warm", num_clusters].get(OURS, {})
            name = f"warm, K = {num_clusters}: at most {most} iterations"
            checked.append((name, is_solved(cell) and cell["iterations"] <= most, f"{cell.get('iterations', np.nan):g}"))
    return checked
