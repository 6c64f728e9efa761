"""Tests of clusters whose sizes are bounded: against scipy's assignment, and against the conditions that only the optimum meets."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from sela_tf.transport import lists
from sela_tf.transport.rounding import balanced_labels
from sela_tf.transport.shortest_paths import AllowedSizes, _Search
from sela_tf.transport.sinkhorn import sinkhorn


def _best(log_probs: np.ndarray, lower: np.ndarray, upper: np.ndarray, known: np.ndarray) -> float:
    """Returns the largest sum of log p of allowed labels: dummy rows take the places that may stay empty."""
    num_rows, num_clusters = log_probs.shape
    scores = log_probs.astype(np.float64)
    scores[(known >= 0)[:, np.newaxis] & (known[:, np.newaxis] != np.arange(num_clusters))] = -np.inf
    places, is_optional = (
        np.repeat(np.arange(num_clusters), upper),
        np.concatenate([np.arange(most) >= least for least, most in zip(lower, upper, strict=True)]),
    )
    dummies = np.where(is_optional, 0.0, -np.inf)[np.newaxis].repeat(len(places) - num_rows, axis=0)
    whole = np.concatenate([scores[:, places], dummies])
    rows, columns = linear_sum_assignment(whole, maximize=True)
    return float(whole[rows, columns].sum())


@st.composite
def _problems(draw):
    """Draws (log_probs, size_min, size_max, known) that have labels."""
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    num_rows, num_clusters = draw(st.integers(1, 60)), draw(st.integers(1, 9))
    log_probs = oracle.log_probs(rng, num_rows, num_clusters, spread=draw(st.sampled_from([0.1, 1.0, 10.0])))
    if draw(st.booleans()):
        log_probs = np.round(4 * log_probs) / 4
    sizes = rng.multinomial(num_rows, rng.dirichlet(np.full(num_clusters, draw(st.sampled_from([0.3, 3.0])))))
    width = draw(st.sampled_from([0, 1, 5, 60]))
    size_min = np.maximum(sizes - rng.integers(0, width + 1, num_clusters), 0)
    size_max = sizes + rng.integers(0, width + 1, num_clusters)
    known = np.full(num_rows, -1)
    if draw(st.booleans()):
        some = rng.permutation(num_rows)[: rng.integers(0, num_rows + 1)]
        known[some] = rng.permutation(np.repeat(np.arange(num_clusters), sizes))[: len(some)]
    return log_probs, size_min, size_max, known


@settings(max_examples=150, deadline=None)
@given(_problems())
def test_labels_are_the_best_within_the_bounds(problem):
    log_probs, size_min, size_max, known = problem
    result = balanced_labels(log_probs, np.zeros(log_probs.shape[1]), lam=25.0, known=known, size_min=size_min, size_max=size_max)
    assert (result.sizes >= size_min).all()
    assert (result.sizes <= size_max).all()
    np.testing.assert_array_equal(result.labels[known >= 0], known[known >= 0])
    best = _best(log_probs, size_min, size_max, known)
    found = float(log_probs[np.arange(len(log_probs)), result.labels].astype(np.float64).sum())
    assert found == pytest.approx(best, abs=1e-6)
    assert best - found - 1e-6 <= result.rounding_gap * len(log_probs) <= 1e-6 * max(1.0, abs(best))


@pytest.mark.parametrize("seed", [10, 14, 49, 97, 100, 102])
def test_bounds_hold_where_many_rows_and_tokens_move_in_a_round(seed):
    rng = np.random.default_rng(seed)
    num_rows, num_clusters = int(rng.integers(200, 1500)), int(rng.integers(4, 25))
    log_probs = oracle.log_probs(rng, num_rows, num_clusters, spread=float(rng.choice([0.1, 1, 5])))
    if seed % 3 == 0:
        log_probs = np.round(4 * log_probs) / 4
    sizes = rng.multinomial(num_rows, rng.dirichlet(np.full(num_clusters, 2.0)))
    width = int(rng.choice([1, 5, 30, 200]))
    size_min = np.maximum(sizes - rng.integers(0, width + 1, num_clusters), 0)
    size_max = sizes + rng.integers(0, width + 1, num_clusters)
    result = balanced_labels(log_probs, np.zeros(num_clusters), lam=25.0, size_min=size_min, size_max=size_max)
    assert (result.sizes >= size_min).all()
    assert (result.sizes <= size_max).all()
    assert result.rounding_gap < 1e-6


def test_the_gap_counts_sizes_that_are_not_the_cheapest(rng):
    """At any prices, the places of the tokens cost what the sizes cost beyond the cheapest that are allowed."""
    lower, upper = np.array([1, 2, 0, 3]), np.array([4, 2, 5, 8])
    search = _Search(np.zeros((12, 4), np.float32), np.zeros(4), AllowedSizes(lower, upper, 12), np.full(12, -1), 1.0, exact=True)
    for sizes in ([4, 2, 3, 3], [1, 2, 1, 8], [2, 2, 5, 3]):
        prices = rng.normal(size=4)
        search.u, search.pool.inside = search.sizes.with_pool(prices), upper - sizes
        assert search._price_of_sizes() == pytest.approx(prices @ sizes - 12 * search.sizes.price(prices))


def test_newton_stops_prices_at_zero():
    """A step that would take a price to the other bound would be halved again and again: 100 passes in place of 9."""
    log_probs = oracle.log_probs(np.random.default_rng(1), 4000, 64, spread=8.0)
    assert sinkhorn(log_probs, size_min=31, size_max=125, tolerance=1e-4, max_iterations=20).converged


def _check_optimality(log_probs: np.ndarray, lam: float, lower: float, upper: float, result, tolerance: float) -> None:
    """Checks the Karush-Kuhn-Tucker conditions, which hold at the optimum of a concave problem and nowhere else."""
    v = result.potentials.astype(np.float64)
    mass = oracle.marginals(lam * log_probs.astype(np.float64), v)
    assert (mass >= lower - tolerance).all()
    assert (mass <= upper + tolerance).all()
    # A price is paid only for a bound that is reached.
    assert np.abs(mass - lower)[v > 0.05].max(initial=0) <= tolerance
    assert np.abs(mass - upper)[v < -0.05].max(initial=0) <= tolerance


@pytest.mark.parametrize(
    ("spread", "lam"),
    [(15.0, 25.0), (1.0, 2.0), *(pytest.param(*each, marks=pytest.mark.slow) for each in ((1.0, 25.0), (15.0, 400.0)))],
)
@pytest.mark.parametrize(
    ("size_min", "size_max"), [(0, 120), (60, 400), (100, 200), (125, 125), (0, 4000), (124, None), (None, 126)]
)
def test_the_transport_meets_the_conditions_of_the_optimum(rng, spread, lam, size_min, size_max, monkeypatch):
    """On sharp rows and others, with Newton's method and without."""
    if size_min == 0 and size_max == 120:
        size_max = 150
    log_probs = oracle.log_probs(rng, 4000, 32, spread=spread)
    lower, upper = (size_min or 0) / 4000, (4000 if size_max is None else size_max) / 4000
    for with_newton in (True, False):
        if not with_newton:
            monkeypatch.setattr(lists, "_look_at", lambda *_: None)
        result = sinkhorn(log_probs, lam=lam, tolerance=1e-5, size_min=size_min, size_max=size_max)
        assert result.converged
        _check_optimality(log_probs, lam, lower, upper, result, 2e-5)
        assert abs(result.duality_gap) < 1e-3
        assert result.marginals.sum() == pytest.approx(1)
