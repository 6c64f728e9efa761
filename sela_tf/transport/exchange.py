"""Exchanges of rows between clusters, for the rounding: shortest paths of moves, and as many of them at once as fit.

Moving row i from its cluster a to b costs r_ib = (log p_ia + u_a) - (log p_ib + u_b) >= 0. With d_k the length of the shortest path
of moves from an over-full cluster to k, raising u_k by min(d_k, D) keeps every r >= 0 and makes the paths to all under-full clusters
within D free; a maximum flow over the free moves uses as many of them as fit.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import dijkstra, maximum_flow


class Moves:
    """The moves that rows with several choices have: the choices sorted by cluster, what they cost, and the rows' labels.

    `row` and `column` [E] are the choices, `cost` [E] what it takes to move the row there from its label; inf for the label.
    """

    def __init__(
        self, row: np.ndarray, column: np.ndarray, value: np.ndarray, labels: np.ndarray, u: np.ndarray, slack: float
    ) -> None:
        """Takes choices sorted by row. Changes `labels` of the rows that are more than `slack` short of their best choice."""
        self.first = np.flatnonzero(np.diff(row, prepend=-1))
        self.rows, self.count = row[self.first], np.diff(self.first, append=len(row))
        row = np.repeat(np.arange(len(self.rows)), self.count)
        score = value + u[column]
        best = np.maximum.reduceat(score, self.first) if len(row) else score
        best_value, goals = np.empty(len(best)), np.flatnonzero(score >= best[row])
        best_value[row[goals]] = value[goals]
        # relative to the best value: what rows have in common may be large
        score = value - best_value[row] + u[column]
        best = np.maximum.reduceat(score, self.first) if len(row) else score
        labelled = np.flatnonzero(column == labels[self.rows][row])
        own = np.full(len(self.rows), -np.inf)
        own[row[labelled]] = score[labelled]
        strays = own < best - slack - resolution(np.ptp(u))
        own[strays] = best[strays]
        goals = np.flatnonzero(strays[row] & (score >= best[row]))[::-1]
        labels[self.rows[row[goals]]] = column[goals]

        order = np.argsort(column.astype(np.min_scalar_type(len(u))), kind="stable")
        self.place = np.empty_like(order)  # of a choice, sorted by row, among those sorted by cluster
        self.place[order] = np.arange(len(order))
        self.row, self.column, self.cost = row[order], column[order], (own[row] - score)[order]
        self.label, self.own = labels[self.rows], np.empty_like(self.rows)
        labelled = np.flatnonzero(self.column == self.label[self.row])
        self.own[self.row[labelled]] = labelled
        self.cost[labelled] = np.inf

    def balance(
        self, u: np.ndarray, excess: np.ndarray, slack: float, reach: float, step: float, complete: bool
    ) -> tuple[np.ndarray, bool]:
        """Moves rows until no cluster has any `excess`, or the potentials have moved apart by `reach`: (u, whether any moved).

        `excess` changes in place. Paths up to `step` are tried first, and longer ones if there are none.
        """
        risen, moved, start, ulps = np.zeros(len(u)), 0, np.ptp(u), 1.0
        while (excess > 0).any():
            # With some of the choices unseen, distances are to be trusted only while most of those seen are left.
            room = max(0.0, reach - np.ptp(risen)) if complete or moved < len(self.rows) / 8 else 0.0
            limit = min(step, room)
            near = np.flatnonzero(self.cost <= limit + slack)
            row, column = self.row[near], self.column[near]
            source = self.label[row]
            distance = _distances(source, column, np.maximum(self.cost[near], 0.0), np.flatnonzero(excess > 0), len(u), limit)
            arrived = distance[(excess < 0) & (distance <= limit)]
            if not len(arrived) and limit < room:
                step *= 4
                continue
            farthest = arrived.max() if len(arrived) else limit
            if farthest == np.inf:
                break
            rise = np.minimum(distance, farthest)
            risen, u = risen + rise, u + rise
            self.cost += rise[self.label][self.row] - rise[self.column]
            if not len(arrived):
                break
            allowed = np.maximum(slack - self.shortfalls(), 0.0)[row] + ulps * resolution(start + np.ptp(risen))
            free = (self.cost[near] <= allowed) & (np.maximum(distance[source], distance[column]) <= farthest)
            rows, goals = _flow(row[free], source[free], column[free], excess)
            if not len(rows):
                ulps *= 4
                continue
            excess -= np.bincount(self.label[rows], minlength=len(u)) - np.bincount(goals, minlength=len(u))
            self._move(rows, goals)
            moved += len(rows)
        return u, moved > 0

    def shortfalls(self) -> np.ndarray:
        """How far each row is below its best choice."""
        shortfalls, gains = np.zeros(len(self.rows)), np.flatnonzero(self.cost < 0)
        np.maximum.at(shortfalls, self.row[gains], -self.cost[gains])
        return shortfalls

    def _move(self, rows: np.ndarray, goals: np.ndarray) -> None:
        """Makes `goals` the labels of `rows`, and has the costs of their choices count from there."""
        count = self.count[rows]
        ends = np.cumsum(count)
        choices = self.place[np.repeat(self.first[rows] - ends + count, count) + np.arange(ends[-1])]
        chosen = choices[self.column[choices] == np.repeat(goals, count)]
        cost = self.cost[chosen]
        self.cost[choices] -= np.repeat(cost, count)
        self.cost[self.own[rows]] = -cost
        self.cost[chosen] = np.inf
        self.own[rows], self.label[rows] = chosen, goals


def resolution(magnitude: float) -> float:
    """Costs that differ by less are equal."""
    return float(2.0**-46 * magnitude)


def _distances(
    source: np.ndarray, column: np.ndarray, cost: np.ndarray, starts: np.ndarray, num_nodes: int, limit: float
) -> np.ndarray:
    """[num_nodes], the shortest path from any of `starts`, inf beyond `limit`."""
    order = np.argsort(source.astype(np.min_scalar_type(num_nodes)), kind="stable")
    begin = np.append(0, np.cumsum(np.bincount(source, minlength=num_nodes)))
    graph = csr_matrix((cost[order], column[order], begin), shape=(num_nodes, num_nodes))
    return dijkstra(graph, indices=starts, min_only=True, limit=limit)


def _flow(row: np.ndarray, source: np.ndarray, column: np.ndarray, excess: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Given moves of `row` from `source` to `column`: (rows, where they go), so that `excess` shrinks as much as it can.

    Rows with the same label and the same choices are one node of the graph: massive ties are few nodes.
    """
    num_clusters = len(excess)
    salt = np.random.default_rng(0).integers(2**63, size=(2, num_clusters), dtype=np.uint64)
    kinds = np.zeros(row.max(initial=0) + 1, np.uint64)
    kinds[row] = salt[0][source]
    np.add.at(kinds, row, salt[1][column])
    members = np.unique(row)
    _, first, kind, count = np.unique(kinds[members], return_index=True, return_inverse=True, return_counts=True)
    position = np.full(len(kinds), -1)
    position[members[first]] = np.arange(len(first))
    edges = np.flatnonzero(position[row] >= 0)
    tail, head = position[row[edges]], column[edges]
    label = np.empty(len(first), np.int64)
    label[tail] = source[edges]

    givers, takers = np.flatnonzero(excess > 0), np.flatnonzero(excess < 0)
    start, end, nodes = num_clusters, num_clusters + 1, num_clusters + 2 + np.arange(len(first))
    arcs = (
        (np.full(len(givers), start), givers, excess[givers]),
        (takers, np.full(len(takers), end), -excess[takers]),
        (label, nodes, count),
        (nodes[tail], head, count[tail]),
    )
    tails, heads, capacity = (np.concatenate(parts) for parts in zip(*arcs, strict=True))
    graph = csr_matrix((capacity.astype(np.int32), (tails, heads)), shape=(num_clusters + 2 + len(first),) * 2)
    flow = maximum_flow(graph, start, end).flow[num_clusters + 2 :, :num_clusters].tocoo()
    used = flow.data > 0
    tail, head, amount = flow.row[used], flow.col[used], flow.data[used]
    # The first members of a kind go to its first goal, the next to its second, and so on.
    leaving = np.bincount(tail, weights=amount, minlength=len(first)).astype(np.int64)
    shift = (np.cumsum(count) - count) - (np.cumsum(leaving) - leaving)
    chosen = np.repeat(shift[tail], amount) + np.arange(amount.sum())
    by_kind = np.argsort(kind.astype(np.min_scalar_type(len(first))), kind="stable")
    return members[by_kind[chosen]], np.repeat(head, amount)
