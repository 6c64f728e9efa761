"""Tests of exactly balanced labels: against scipy's assignment, and against their own bound where that would take too long."""

from __future__ import annotations

import tracemalloc

import numpy as np
import oracle
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from sklearn.datasets import make_blobs

from sela_tf.transport import exchange, scan, shortest_paths
from sela_tf.transport import rounding as module
from sela_tf.transport.linear_logits import ComputedLogits, LinearLogits
from sela_tf.transport.rounding import balanced_labels
from sela_tf.transport.sinkhorn import sinkhorn


def _optimum(log_probs: np.ndarray, sizes: np.ndarray | None = None, known: np.ndarray | None = None) -> float | None:
    """Returns the largest sum of log p, by scipy's assignment to repeated columns; None if no labels are allowed."""
    num_rows, num_clusters = log_probs.shape
    scores = log_probs.astype(np.float64)
    if known is not None:
        scores[(known >= 0)[:, np.newaxis] & (known[:, np.newaxis] != np.arange(num_clusters))] = -np.inf
    if sizes is not None:
        places = scores[:, np.repeat(np.arange(num_clusters), sizes)]
    else:  # Each cluster has floor(N/K) places, and one more, which a dummy row takes in all but N mod K clusters.
        floor, extras = divmod(num_rows, num_clusters)
        places = np.concatenate([np.repeat(scores, floor, axis=1), scores], axis=1)
        dummies = np.full((num_clusters - extras, places.shape[1]), -np.inf)
        dummies[:, num_clusters * floor :] = 0.0
        places = np.concatenate([places, dummies])
    try:
        rows, columns = linear_sum_assignment(places, maximize=True)
    except ValueError:
        return None
    return float(places[rows, columns].sum())


def _objective(log_probs: np.ndarray, labels: np.ndarray) -> float:
    return float(log_probs[np.arange(len(labels)), labels].astype(np.float64).sum())


def _check_feasible(result, num_rows: int, num_clusters: int, sizes: np.ndarray | None = None) -> None:
    assert result.labels.dtype == np.int64
    assert result.labels.shape == (num_rows,)
    np.testing.assert_array_equal(result.sizes, np.bincount(result.labels, minlength=num_clusters))
    if sizes is None:
        assert set(result.sizes) <= {num_rows // num_clusters, -(-num_rows // num_clusters)}
    else:
        np.testing.assert_array_equal(result.sizes, sizes)


def _check_optimal(log_probs: np.ndarray, potentials: np.ndarray, lam: float, sizes=None, known=None) -> None:
    """Checks that labels are feasible and optimal, or refused because nothing is feasible."""
    best = _optimum(log_probs, sizes, known)
    if best is None:
        with pytest.raises(ValueError, match="cannot be placed"):
            balanced_labels(log_probs, potentials, lam=lam, sizes=sizes, known=known)
        return
    result = balanced_labels(log_probs, potentials, lam=lam, sizes=sizes, known=known)
    _check_feasible(result, *log_probs.shape, sizes)
    if known is not None:
        np.testing.assert_array_equal(result.labels[known >= 0], known[known >= 0])
    scale = max(1.0, abs(best))
    loss = best - _objective(log_probs, result.labels)
    assert loss <= 1e-9 * scale
    assert result.rounding_gap >= -1e-9
    assert loss - 1e-9 * scale <= result.rounding_gap * len(log_probs) <= 1e-8 * scale


_KINDS = {
    "smooth": lambda rng, n, k: oracle.log_probs(rng, n, k),
    "float64": lambda rng, n, k: rng.normal(size=(n, k)),
    "all equal": lambda rng, n, k: np.zeros((n, k), np.float32),
    "one row": lambda rng, n, k: np.repeat(oracle.log_probs(rng, 1, k), n, axis=0),
    "duplicated rows": lambda rng, n, k: np.repeat(oracle.log_probs(rng, -(-n // 5), k), 5, axis=0)[:n],
    "duplicated columns": lambda rng, n, k: np.repeat(oracle.log_probs(rng, n, -(-k // 3)), 3, axis=1)[:, :k],
    "quantised": lambda rng, n, k: np.round(4 * oracle.log_probs(rng, n, k)) / 4,
    "binary": lambda rng, n, k: -rng.integers(0, 2, (n, k)).astype(np.float32),
    "one-hot": lambda rng, n, k: np.where(rng.integers(0, -(-k // 4), (n, 1)) == np.arange(k), 0.0, -69.0).astype(np.float32),
    "starved": lambda rng, n, k: oracle.log_probs(rng, n, k) - np.float32(200.0) * (np.arange(k) < k // 2),
    "tiny differences": lambda rng, n, k: 1e3 * rng.normal(size=(n, 1)) + 1e-5 * rng.normal(size=(n, k)),
    "masked": lambda rng, n, k: np.where(rng.random((n, k)) < 0.3, np.float32(-1e30), oracle.log_probs(rng, n, k)),
    "forbidden": lambda rng, n, k: np.where(rng.random((n, k)) < 0.3, np.float32(-np.inf), oracle.log_probs(rng, n, k)),
}


@st.composite
def _problems(draw):
    """Draws (log_probs, potentials, lam, sizes, known), from easy to infeasible."""
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    num_rows, num_clusters = draw(st.integers(1, 80)), draw(st.integers(1, 12))
    log_probs = _KINDS[draw(st.sampled_from(sorted(_KINDS)))](rng, num_rows, num_clusters)
    potentials = draw(st.sampled_from([0.0, 1e-3, 1.0, 1e3, 1e12])) * rng.normal(size=num_clusters)
    sizes = known = None
    if draw(st.booleans()):
        sizes = rng.multinomial(num_rows, rng.dirichlet(np.full(num_clusters, draw(st.sampled_from([0.3, 3.0])))))
    if draw(st.booleans()):
        places = np.repeat(np.arange(num_clusters), num_rows // num_clusters if sizes is None else sizes)
        known, count = np.full(num_rows, -1), rng.integers(0, len(places) + 1)
        known[rng.choice(num_rows, count, replace=False)] = rng.choice(places, count, replace=False)
        known[~np.isfinite(log_probs[np.arange(num_rows), known])] = -1
    return log_probs, potentials, draw(st.sampled_from([0.01, 1.0, 25.0, 1e3])), sizes, known


@settings(max_examples=250, deadline=None)
@given(_problems())
def test_feasible_and_optimal(problem):
    _check_optimal(*problem)


@settings(max_examples=120, deadline=None)
@given(_problems())
def test_optimal_when_candidates_are_left_out_and_blocks_and_samples_are_small(problem):
    """The code that only large problems reach runs on problems that scipy can check."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"_MANY_CANDIDATES": 0, "_MAX_CANDIDATES": 2.0, "_FEW_ROWS": 2}.items():
            patch.setattr(shortest_paths, name, value)
        patch.setattr(scan, "_BLOCK_SIZE", 40)
        _check_optimal(*problem)


def test_magnitudes_that_stand_for_minus_infinity_leave_the_gap_exact():
    """A row and three clusters, any of which may stay empty: equal shares would lead to potentials of 1e30."""
    log_probs = np.array([[-1.8328997, -1e30, -1e30]], np.float32)
    for few_rows in (2, 32):
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {"_MANY_CANDIDATES": 0, "_MAX_CANDIDATES": 2.0, "_FEW_ROWS": few_rows}.items():
                patch.setattr(shortest_paths, name, value)
            patch.setattr(scan, "_BLOCK_SIZE", 40)
            _check_optimal(log_probs, np.zeros(3), 0.01)


def _check_no_cycle_gains(log_probs: np.ndarray, labels: np.ndarray) -> None:
    """Checks that no cycle of moves gains, which means that labels are optimal; K + 1 nodes make it quicker than an assignment.

    The last node stands for the places that are left at ceil(N/K): a cluster that gives up its extra row leaves one there.
    """
    num_rows, num_clusters = log_probs.shape
    scores = log_probs.astype(np.float64)
    costs = np.full((num_clusters + 1, num_clusters + 1), np.inf)
    for cluster in range(num_clusters):
        members = scores[labels == cluster]
        costs[cluster, :-1] = (members[:, [cluster]] - members).min(axis=0)
    sizes = np.bincount(labels, minlength=num_clusters)
    costs[:-1, -1] = np.where(sizes == num_rows // num_clusters, 0.0, np.inf)  # These may end up with one row more.
    costs[-1, :-1] = np.where(sizes > num_rows // num_clusters, 0.0, np.inf)  # These may end up with one row fewer.
    for middle in range(num_clusters + 1):
        costs = np.minimum(costs, costs[:, [middle]] + costs[middle])
    assert np.diagonal(costs).min() >= -1e-9


@pytest.mark.parametrize(
    ("num_rows", "num_clusters", "lam"),
    [(800, 30, 25.0), (1003, 20, 10.0), pytest.param(4000, 40, 25.0, marks=pytest.mark.slow)],
)
def test_optimal_after_sinkhorn(rng, num_rows, num_clusters, lam):
    log_probs = oracle.log_probs(rng, num_rows, num_clusters)
    result = balanced_labels(log_probs, sinkhorn(log_probs, lam=lam).potentials, lam=lam)
    assert _objective(log_probs, result.labels) == pytest.approx(_optimum(log_probs), rel=1e-9)
    _check_no_cycle_gains(log_probs, result.labels)


@pytest.mark.parametrize(
    ("num_rows", "num_clusters"),
    [(4011, 40), *(pytest.param(*each, marks=pytest.mark.slow) for each in ((4000, 40), (10_007, 90)))],
)
def test_optimal_whatever_the_potentials(rng, num_rows, num_clusters):
    log_probs = oracle.log_probs(rng, num_rows, num_clusters)
    transport = sinkhorn(log_probs, lam=25.0)
    result = balanced_labels(log_probs, transport.potentials, lam=25.0)
    _check_feasible(result, num_rows, num_clusters)
    _check_no_cycle_gains(log_probs, result.labels)
    assert 0.0 <= result.rounding_gap < 1e-9
    assert (result.labels != transport.labels).mean() < 0.1
    for potentials in (np.zeros(num_clusters), 25.0 * rng.normal(size=num_clusters)):
        again = balanced_labels(log_probs, potentials, lam=25.0)
        assert _objective(log_probs, again.labels) == pytest.approx(_objective(log_probs, result.labels), rel=1e-9)


def test_nearly_optimal_beyond_the_exact_size(rng, monkeypatch):
    monkeypatch.setattr(module, "_EXACT_SIZE", 0)
    for num_rows, num_clusters, lam in ((800, 30, 25.0), (1003, 20, 10.0)):
        log_probs = oracle.log_probs(rng, num_rows, num_clusters)
        best = _optimum(log_probs)
        for potentials in (sinkhorn(log_probs, lam=lam).potentials, np.zeros(num_clusters)):
            result = balanced_labels(log_probs, potentials, lam=lam)
            _check_feasible(result, num_rows, num_clusters)
            loss = best - _objective(log_probs, result.labels)
            assert -1e-9 <= loss <= num_rows * result.rounding_gap
            assert loss <= 1e-4 * abs(best)


@pytest.mark.parametrize("kind", sorted(set(_KINDS) - {"float64", "tiny differences", "masked", "forbidden"}))
def test_large_and_tied(rng, kind):
    """The gap is small where scipy would take too long; tests above show that it is an upper bound."""
    log_probs = _KINDS[kind](rng, 30_001, 64)
    for potentials in (sinkhorn(log_probs, max_iterations=200).potentials, np.zeros(64)):
        result = balanced_labels(log_probs, potentials, lam=25.0)
        _check_feasible(result, 30_001, 64)
        assert -1e-9 <= result.rounding_gap <= 1e-4 * max(1.0, abs(_objective(log_probs, result.labels) / 30_001))


@pytest.mark.parametrize("potentials", ["none", "random", "of a solve that failed"])
def test_bad_potentials(rng, potentials):
    log_probs = oracle.log_probs(rng, 20_000, 100)
    log_probs[:, :30] -= 10.0
    vector = {
        "none": np.zeros(100),
        "random": 100 * rng.normal(size=100),
        "of a solve that failed": sinkhorn(log_probs, max_iterations=1).potentials,
    }[potentials]
    result = balanced_labels(log_probs, vector, lam=25.0)
    _check_feasible(result, 20_000, 100)
    assert 0.0 <= result.rounding_gap < 1e-3


def test_prices_that_have_far_to_go_take_few_scans(monkeypatch):
    """Six centres in one of the groups: a search that goes on as near while any row moves takes fifty scans."""
    vectors, groups = make_blobs(3000, 5, centers=30, random_state=0)
    means = [vectors[groups == group].mean(axis=0, keepdims=True) for group in range(1, 25)]
    centers = np.concatenate([vectors[groups == 0][:6], *means])
    scores = 2 * vectors @ centers.T - (centers**2).sum(axis=1)
    scans, original = [], shortest_paths.scan
    monkeypatch.setattr(shortest_paths, "scan", lambda *arguments: scans.append(len(arguments[0])) or original(*arguments))
    monkeypatch.setattr(shortest_paths, "_BAD_SHARE", 1.0)
    monkeypatch.setattr(module, "_EXACT_SIZE", 0)
    result = balanced_labels(scores, np.zeros(30), lam=30.0)
    _check_feasible(result, 3000, 30)
    assert 0 <= result.rounding_gap < 1e-5
    assert len(scans) <= 15


def test_memory_stays_below_the_matrix(rng):
    log_probs = oracle.log_probs(rng, 30_001, 64)
    potentials = sinkhorn(log_probs).potentials
    tracemalloc.start()
    balanced_labels(log_probs, potentials, lam=25.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < log_probs.nbytes


@pytest.mark.parametrize(("num_rows", "restarted"), [(1003, False), (1003, True), (30_001, False), (30_001, True)])
def test_logits_that_are_computed(rng, tmp_path, num_rows, restarted):
    """Labels from features in a file are as good as those from the matrix, which is never made."""
    features = np.lib.format.open_memmap(tmp_path / "features.npy", "w+", np.float32, (num_rows, 8))
    features[:] = rng.normal(size=(num_rows, 8))
    kernel, bias = rng.normal(size=(8, 64)).astype(np.float32), rng.normal(size=64).astype(np.float32)
    computed, matrix = LinearLogits(features, kernel, bias), features @ kernel + bias
    potentials = np.zeros(64) if restarted else sinkhorn(computed).potentials
    balanced_labels(computed, potentials, lam=25.0)  # Imports of the first call do not count as memory.
    tracemalloc.start()
    result = balanced_labels(computed, potentials, lam=25.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    _check_feasible(result, num_rows, 64)
    expected = balanced_labels(matrix, potentials, lam=25.0)
    loss = (_objective(matrix, expected.labels) - _objective(matrix, result.labels)) / num_rows
    assert abs(loss) <= max(result.rounding_gap, expected.rounding_gap) + 1e-6
    if num_rows > 30_000 and not restarted:
        assert peak < matrix.nbytes
    few = ComputedLogits(computed.checked())[::7]
    assert isinstance(few, ComputedLogits), "not computed before it is asked for"
    np.testing.assert_allclose(few.astype(np.float64), matrix[::7], atol=1e-5)
    with pytest.raises(ValueError, match=r"`features` must be \[N, D\]"):
        balanced_labels(LinearLogits(features, kernel[1:], bias), potentials, lam=25.0)
    features[5, 0] = np.nan
    with pytest.raises(ValueError, match="neither NaN nor .* at row 5"):
        balanced_labels(computed, potentials, lam=25.0)


def test_a_number_added_to_a_row_changes_nothing(rng):
    log_probs = oracle.log_probs(rng, 600, 12)
    expected = balanced_labels(log_probs, np.zeros(12), lam=25.0)
    shifted = log_probs.astype(np.float64) + 1024.0 * rng.integers(-1000, 1000, (600, 1))
    result = balanced_labels(shifted, np.zeros(12), lam=25.0)
    np.testing.assert_array_equal(result.labels, expected.labels)
    in_float32 = shifted.astype(np.float32)
    result = balanced_labels(in_float32, np.zeros(12), lam=25.0)
    assert _objective(in_float32, result.labels) == pytest.approx(_optimum(in_float32), abs=1e-3)


def test_takes_tensors_other_precisions_and_strides_and_changes_nothing(rng):
    log_probs, potentials = oracle.log_probs(rng, 300, 7), rng.normal(size=7)
    expected = balanced_labels(log_probs, potentials, lam=25.0).labels
    for given_as in (
        tf.constant(log_probs),
        log_probs.astype(np.float64),
        np.asfortranarray(log_probs),
        np.repeat(log_probs, 2, 0)[::2],
    ):
        np.testing.assert_array_equal(balanced_labels(given_as, tf.constant(potentials), lam=25.0).labels, expected)
    for dtype in (tf.bfloat16, tf.float16):
        rounded = tf.cast(log_probs, dtype)
        _check_optimal(np.asarray(rounded), potentials, 25.0)
    sizes, known = np.array([300, 0, 0, 0, 0, 0, 0]), np.zeros(300, np.int32)
    before = [log_probs.copy(), potentials.copy(), sizes.copy(), known.copy()]
    balanced_labels(log_probs, potentials, lam=25.0, sizes=sizes, known=known)
    for now, then in zip((log_probs, potentials, sizes, known), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_few_free_moves_lower_the_excess_where_a_maximum_flow_does(rng):
    """Rows of random graphs that move along paths move once, from their cluster, and no taker gets too many."""
    num_lowered = 0
    for _ in range(200):
        label, excess = rng.integers(6, size=12), rng.permutation([2, 1, 0, 0, -1, -2])
        row, column = (each.ravel() for each in np.meshgrid(np.arange(12), np.arange(6), indexing="ij"))
        free = (rng.random(72) < 0.12) & (column != label[row])
        moves = (row[free], label[row[free]], column[free])
        rows, goals = exchange._paths(*moves, excess)
        assert len(set(rows)) == len(rows)
        assert set(zip(rows, goals, strict=True)) <= set(zip(moves[0], moves[2], strict=True))
        after = excess - np.bincount(label[rows], minlength=6) + np.bincount(goals, minlength=6)
        assert ((after * np.sign(excess) >= 0) & (np.abs(after) <= np.abs(excess))).all()
        by_flow = exchange._flow(*moves, exchange._NO_TOKENS, excess)[0]
        assert (len(rows) > 0) == (len(by_flow) > 0)
        num_lowered += len(rows) > 0
    assert 50 < num_lowered < 200
