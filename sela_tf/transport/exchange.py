"""The moves of rows between clusters, for the rounding: shortest paths of moves, and as many of them at once as fit.

Moving row i from its cluster a to b costs r_ib = (log p_ia + u_a) - (log p_ib + u_b) >= 0. Let d_k be the length of the shortest path
of moves from a cluster that is too large to k. Raising u_k by min(d_k, D) keeps every r >= 0, and makes the paths to all clusters that
are too small and within D free. A maximum flow over the free moves then uses as many of them as fit.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import dijkstra, maximum_flow

# So few free moves are followed one after the other. SciPy takes a millisecond to make the matrices of a maximum flow.
_FEW_MOVES = 128
_NO_TOKENS = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.int64))


class Pool:
    """The tokens of clusters that may have a range of sizes, and the places of those that are in their clusters.

    Attributes:
        tokens: int64 [K], the number of tokens that each cluster has.
        inside: int64 [K], the number of these that are in the cluster; the others are in the pool.
    """

    def __init__(self, tokens: np.ndarray) -> None:
        """Takes the numbers of tokens, int64 [K], all of which are in the pool."""
        self.tokens, self.inside = tokens, np.zeros_like(tokens)

    def settle(self, u: np.ndarray, room: np.ndarray) -> None:
        """Puts tokens where they are best, and those for which both are as good where there is room.

        Args:
            u: float64 [K + 1], the potentials, the pool's last.
            room: int64 [K], the places of each cluster that no row has.
        """
        gain, tie = u[:-1] - u[-1], resolution(np.ptp(u))
        self.inside = np.where(gain > tie, self.tokens, np.where(gain < -tie, 0, np.clip(room, 0, self.tokens)))

    def moves(self, u: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Returns the moves of tokens as edges: the node that each leaves, the node that it enters, its cost, and the number of tokens.

        Args:
            u: float64 [K + 1], the potentials, the pool's last.
        """
        pool, outside = len(self.tokens), self.tokens - self.inside
        leaving, entering = np.flatnonzero(self.inside), np.flatnonzero(outside)
        return (
            np.concatenate([leaving, np.full(len(entering), pool)]),
            np.concatenate([np.full(len(leaving), pool), entering]),
            np.concatenate([u[leaving] - u[pool], u[pool] - u[entering]]),
            np.concatenate([self.inside[leaving], outside[entering]]),
        )


class Moves:
    """The moves that rows with several candidates have, their costs, and the rows' labels.

    Attributes:
        label: int64 [R], the labels of the rows with several candidates.
        row: int64 [E], the row of each candidate. Candidates are sorted by cluster.
        column: int64 [E], the cluster of each candidate.
        cost: float64 [E], the cost of moving the row there from its label; infinity for the label itself.
        first: int64 [R], the first candidate of each row where candidates are sorted by row.
        count: int64 [R], the number of candidates of each row.
        place: int64 [E], for candidates sorted by row, the position among those sorted by cluster.
        own: int64 [R], the position of each row's label among the candidates sorted by cluster.
    """

    def __init__(
        self, count: np.ndarray, column: np.ndarray, value: np.ndarray, label: np.ndarray, u: np.ndarray, slack: float
    ) -> None:
        """Takes candidates sorted by row, and labels rows anew that are more than `slack` below their best candidate.

        Args:
            count: int64 [R], the number of candidates of each row.
            column: int64 [E], their clusters.
            value: float64 [E], their log-probabilities.
            label: int64 [R], the labels of the rows, or -1.
            u: float64 [K], the potentials.
            slack: the distance from its best candidate that a row may keep.
        """
        self.count, self.first, self.label = count, np.cumsum(count) - count, label.copy()
        row = np.repeat(np.arange(len(count)), count)
        score = value + u[column]
        best = np.maximum.reduceat(score, self.first) if len(row) else score
        best_value, goals = np.empty(len(best)), np.flatnonzero(score >= best[row])
        best_value[row[goals]] = value[goals]
        # Scores are relative to the best value, because what all values of a row have in common may be large.
        score = value - best_value[row] + u[column]
        best = np.maximum.reduceat(score, self.first) if len(row) else score
        labelled = np.flatnonzero(column == label[row])
        own = np.full(len(count), -np.inf)
        own[row[labelled]] = score[labelled]
        strays = own < best - slack - resolution(np.ptp(u))
        own[strays] = best[strays]
        goals = np.flatnonzero(strays[row] & (score >= best[row]))[::-1]
        self.label[row[goals]] = column[goals]

        order = np.argsort(column.astype(np.min_scalar_type(len(u))), kind="stable")
        self.place = np.empty_like(order)
        self.place[order] = np.arange(len(order))
        self.row, self.column, self.cost = row[order], column[order], (own[row] - score)[order]
        self.own = np.empty_like(self.label)
        labelled = np.flatnonzero(self.column == self.label[self.row])
        self.own[self.row[labelled]] = labelled
        self.cost[labelled] = np.inf

    def balance(
        self,
        u: np.ndarray,
        excess: np.ndarray,
        slack: float,
        max_drift: float,
        first_limit: float,
        complete: bool,
        pool: Pool | None,
    ) -> tuple[np.ndarray, bool]:
        """Moves rows until no cluster has too many, or the potentials have drifted apart by `max_drift`.

        Args:
            u: float64 [K], the potentials; [K + 1] with the pool.
            excess: int64 [K] or [K + 1], the rows and tokens that each cluster, or the pool, has beyond its target; changed in place.
            slack: the distance from its best candidate that a row may keep.
            max_drift: the change of one potential against another up to which the candidates are those that matter.
            first_limit: the length of the paths that are tried first; longer ones are tried if there are none.
            complete: True if no candidates were left out.
            pool: the tokens, if clusters have a range of sizes; changed in place.

        Returns:
            The new potentials, and True if any row or token moved.
        """
        risen, moved, any_moved, start, ulps = np.zeros(len(u)), 0, False, np.ptp(u), 1.0
        while (excess > 0).any():
            # Where candidates were left out, distances are to be trusted only while most of the others have not been used.
            drift_left = max(0.0, max_drift - np.ptp(risen)) if complete or moved < len(self.label) / 8 else 0.0
            limit = min(first_limit, drift_left)
            near = np.flatnonzero(self.cost <= limit + slack)
            row, column = self.row[near], self.column[near]
            source = self.label[row]
            leaves, enters, fees, amounts = pool.moves(u) if pool else _NO_TOKENS
            edges = (np.append(source, leaves), np.append(column, enters), np.maximum(np.append(self.cost[near], fees), 0.0))
            distance = _distances(*edges, np.flatnonzero(excess > 0), len(u), limit)
            arrived = distance[(excess < 0) & (distance <= limit)]
            if not len(arrived) and limit < drift_left:
                first_limit *= 4
                continue
            farthest = arrived.max() if len(arrived) else limit
            if farthest == np.inf:
                break
            rise = np.minimum(distance, farthest)
            risen, u = risen + rise, u + rise
            self.cost += rise[self.label][self.row] - rise[self.column]
            if not len(arrived):
                break
            doubt = ulps * resolution(start + np.ptp(risen))
            allowed = np.maximum(slack - self.shortfalls(), 0.0)[row] + doubt
            free = (self.cost[near] <= allowed) & (np.maximum(distance[source], distance[column]) <= farthest)
            fees = fees + rise[leaves] - rise[enters]
            untied = (fees <= doubt) & (np.maximum(distance[leaves], distance[enters]) <= farthest)
            tokens = (leaves[untied], enters[untied], amounts[untied])
            if np.count_nonzero(free) <= _FEW_MOVES and not len(tokens[0]):
                (rows, goals), left = _paths(row[free], source[free], column[free], excess), np.zeros_like(excess)
            else:
                rows, goals, left = _flow(row[free], source[free], column[free], tokens, excess)
            if not len(rows) and not left.any():
                ulps *= 4
                continue
            excess -= np.bincount(self.label[rows], minlength=len(u)) - np.bincount(goals, minlength=len(u)) + left
            if pool:
                pool.inside -= left[:-1]
            if len(rows):
                self._move(rows, goals)
            moved += len(rows)
            any_moved = True
        return u, any_moved

    def shortfalls(self) -> np.ndarray:
        """Returns the distance of each row from its best candidate, float64 [R], at least 0."""
        shortfalls, gains = np.zeros(len(self.label)), np.flatnonzero(self.cost < 0)
        np.maximum.at(shortfalls, self.row[gains], -self.cost[gains])
        return shortfalls

    def _move(self, rows: np.ndarray, goals: np.ndarray) -> None:
        """Makes the clusters `goals` the labels of `rows`, and updates the costs of their candidates."""
        count = self.count[rows]
        ends = np.cumsum(count)
        candidates = self.place[np.repeat(self.first[rows] - ends + count, count) + np.arange(ends[-1])]
        chosen = candidates[self.column[candidates] == np.repeat(goals, count)]
        cost = self.cost[chosen]
        self.cost[candidates] -= np.repeat(cost, count)
        self.cost[self.own[rows]] = -cost
        self.cost[chosen] = np.inf
        self.own[rows], self.label[rows] = chosen, goals


def resolution(magnitude: float) -> float:
    """Returns the difference below which costs count as equal, for potentials of this magnitude: 64 units in the last place."""
    return float(2.0**-46 * magnitude)


def _distances(
    source: np.ndarray, column: np.ndarray, cost: np.ndarray, starts: np.ndarray, num_nodes: int, limit: float
) -> np.ndarray:
    """Returns the length of the shortest path from any of `starts` to each node, float64 [num_nodes].

    Args:
        source: int64 [E], the node that each edge leaves.
        column: int64 [E], the node that it enters.
        cost: float64 [E], its length, at least 0.
        starts: int64 [S], the nodes at distance 0.
        num_nodes: the number of nodes.
        limit: the length beyond which paths are not followed; the distance is infinite there.
    """
    order = np.argsort(source.astype(np.min_scalar_type(num_nodes)), kind="stable")
    begin = np.append(0, np.cumsum(np.bincount(source, minlength=num_nodes)))
    graph = csr_matrix((cost[order], column[order], begin), shape=(num_nodes, num_nodes))
    return dijkstra(graph, indices=starts, min_only=True, limit=limit)


def _paths(row: np.ndarray, source: np.ndarray, column: np.ndarray, excess: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Chooses among few free moves, path after path from a cluster with too many rows to one with too few, while there is one.

    This may leave more excess than a maximum flow would, but none where that lowers it.

    Args:
        row: int64 [E], the row that a move takes.
        source: int64 [E], the cluster that it leaves, the row's label.
        column: int64 [E], the cluster that it enters.
        excess: int64 [K], the rows that each cluster has beyond its target.

    Returns:
        The rows that move, and the clusters that they go to, int64 each.
    """
    rows, sources, goals, left = row.tolist(), source.tolist(), column.tolist(), excess.tolist()
    edges: dict[int, list[int]] = {}
    for edge, leaves in enumerate(sources):
        edges.setdefault(leaves, []).append(edge)
    used: set[int] = set()
    chosen: list[int] = []
    for giver in np.flatnonzero(excess > 0).tolist():
        while left[giver] > 0:
            # Breadth first: the list grows while it is read.
            came, reached = {giver: -1}, [giver]
            for node in reached:
                if left[node] < 0:
                    break
                for edge in edges.get(node, ()):
                    if goals[edge] not in came and rows[edge] not in used:
                        came[goals[edge]] = edge
                        reached.append(goals[edge])
            else:
                break
            left[giver] -= 1
            left[node] += 1
            while (edge := came[node]) >= 0:
                used.add(rows[edge])
                chosen.append(edge)
                node = sources[edge]
    return row[chosen], column[chosen]


def _flow(
    row: np.ndarray, source: np.ndarray, column: np.ndarray, tokens: tuple[np.ndarray, np.ndarray, np.ndarray], excess: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Chooses among free moves, by a maximum flow, so that the excess shrinks as much as it can.

    Rows with the same label and the same candidates are one node of the graph, so that massive ties make few nodes.

    Args:
        row: int64 [E], the row that a move takes.
        source: int64 [E], the cluster that it leaves, the row's label.
        column: int64 [E], the cluster that it enters.
        tokens: the moves of tokens: the nodes that they leave and enter, and the number of tokens, int64 each.
        excess: int64 [K] or, with the pool, [K + 1]: the rows and tokens that each node has beyond its target.

    Returns:
        The rows that move, and the clusters that they go to, int64 each; and the tokens that leave each node, those that enter it
        subtracted, int64 as `excess`.
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
        (*tokens[:2], np.minimum(tokens[2], np.abs(excess).sum())),
    )
    tails, heads, capacity = (np.concatenate(parts) for parts in zip(*arcs, strict=True))
    graph = csr_matrix((capacity.astype(np.int32), (tails, heads)), shape=(num_clusters + 2 + len(first),) * 2)
    whole = maximum_flow(graph, start, end).flow
    left = np.asarray(whole[:num_clusters, :num_clusters].sum(axis=1)).ravel().astype(np.int64)
    flow = whole[num_clusters + 2 :, :num_clusters].tocoo()
    used = flow.data > 0
    tail, head, amount = flow.row[used], flow.col[used], flow.data[used]
    # The first members of a kind go to its first goal, the next to its second, and so on.
    leaving = np.bincount(tail, weights=amount, minlength=len(first)).astype(np.int64)
    shift = (np.cumsum(count) - count) - (np.cumsum(leaving) - leaving)
    chosen = np.repeat(shift[tail], amount) + np.arange(amount.sum())
    by_kind = np.argsort(kind.astype(np.min_scalar_type(len(first))), kind="stable")
    return members[by_kind[chosen]], np.repeat(head, amount), left
