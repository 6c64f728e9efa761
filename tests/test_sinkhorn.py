"""Tests of the transport: against a float64 oracle in the log domain, and of each promise of its docstring."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from sela_tf.transport import sinkhorn as module
from sela_tf.transport.linear_logits import LinearLogits
from sela_tf.transport.rows import Rows
from sela_tf.transport.sinkhorn import sinkhorn


@pytest.mark.parametrize(
    ("num_rows", "num_clusters", "lam"), [(3000, 32, 25.0), (2000, 64, 10.0), (300, 7, 100.0), (130, 128, 25.0)]
)
def test_agrees_with_the_float64_optimum(rng, num_rows, num_clusters, lam):
    log_probs = oracle.log_probs(rng, num_rows, num_clusters)
    result = sinkhorn(log_probs, lam=lam, tolerance=1e-4)
    best = oracle.sinkhorn(log_probs, lam)
    assert result.converged
    assert (result.labels == (lam * log_probs + best).argmax(axis=1)).mean() >= 0.999
    scores = lam * log_probs.astype(np.float64)
    assert oracle.dual(scores, best) - oracle.dual(scores, result.potentials.astype(np.float64)) < 1e-4


def test_marginal_error_is_that_of_the_potentials(rng):
    log_probs = oracle.log_probs(rng, 1000, 20)
    for iterations in (1, 3, 1000):
        result = sinkhorn(log_probs, max_iterations=iterations)
        mass = oracle.marginals(25.0 * log_probs.astype(np.float64), result.potentials.astype(np.float64))
        assert result.marginal_error == pytest.approx(np.abs(mass - 1 / 20).sum(), rel=1e-3, abs=1e-5)
        assert abs(result.potentials.mean()) < 1e-4
        np.testing.assert_array_equal(result.labels, (np.float32(25.0) * log_probs + result.potentials).argmax(axis=1))
    assert result.converged
    assert result.marginal_error <= 1e-3
    assert not sinkhorn(log_probs, max_iterations=1).converged


def test_clusters_are_nearly_balanced(rng):
    result = sinkhorn(oracle.log_probs(rng, 6400, 64))
    sizes = np.bincount(result.labels, minlength=64)
    assert sizes.min() > 80
    assert sizes.max() < 120


def test_strong_lambda_reaches_the_exact_transport(rng):
    """At lambda 1000 the plan's objective comes close to the unregularised optimum, that of scipy's assignment."""
    num_rows, num_clusters = 120, 6
    log_probs = oracle.log_probs(rng, num_rows, num_clusters)
    columns = np.repeat(np.arange(num_clusters), num_rows // num_clusters)
    rows, places = linear_sum_assignment(-log_probs[:, columns])
    best = log_probs[rows, columns[places]].sum()
    result = sinkhorn(log_probs, lam=1000.0)
    soft = (result.plan(log_probs).q * log_probs).sum() * num_rows
    assert soft == pytest.approx(best, rel=0.01)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), shift=st.floats(-50, 50))
def test_a_number_added_to_a_row_changes_nothing_and_columns_may_be_permuted(seed, shift):
    rng = np.random.default_rng(seed)
    log_probs = oracle.log_probs(rng, 256, 8)
    result = sinkhorn(log_probs)
    shifted = sinkhorn(log_probs + np.float32(shift) * rng.random((256, 1)).astype(np.float32))
    assert (shifted.labels == result.labels).mean() > 0.98  # Float32 rounds the shifted rows.
    order = rng.permutation(8)
    permuted = sinkhorn(log_probs[:, order])
    assert (order[permuted.labels] == result.labels).mean() > 0.98  # Sums in another order round differently.


@pytest.mark.parametrize("scale", [30.0, 1000.0])
def test_underflow_does_not_matter(rng, scale):
    """P^lam is 0 almost everywhere, in float32 and in float64, and a third of the clusters win no row at first."""
    log_probs = oracle.log_probs(rng, 1000, 16, spread=scale / 4)
    log_probs[:, :5] -= np.float32(scale)
    result = sinkhorn(log_probs, lam=25.0, max_iterations=50_000)
    assert result.converged
    assert np.isfinite(result.potentials).all()
    sizes = np.bincount(result.labels, minlength=16)
    assert sizes.min() > 0


def test_minus_infinity_is_a_forbidden_cluster(rng):
    log_probs = oracle.log_probs(rng, 400, 4)
    log_probs[:100, 0] = -np.inf
    result = sinkhorn(log_probs)
    assert result.converged
    assert (result.labels[:100] != 0).all()
    assert (result.plan(log_probs).q[:100, 0] == 0).all()


def test_plan_is_the_scaled_kernel(rng):
    log_probs = oracle.log_probs(rng, 500, 10)
    result = sinkhorn(log_probs, tolerance=1e-5)
    plan = result.plan(log_probs)
    np.testing.assert_allclose(plan.q.sum(axis=1), 1 / 500, rtol=1e-12)
    np.testing.assert_allclose(plan.q.sum(axis=0), 1 / 10, atol=1e-5)
    kernel = np.exp(log_probs.astype(np.float64)) ** 25.0
    np.testing.assert_allclose(plan.q, plan.alpha * kernel * plan.beta[:, np.newaxis], rtol=1e-9)


def test_warm_start_takes_fewer_iterations(rng):
    log_probs = oracle.log_probs(rng, 4000, 64)
    cold = sinkhorn(log_probs)
    again = sinkhorn(log_probs, initial_potentials=cold.potentials)
    assert again.num_iterations == 1
    moved = log_probs + rng.normal(scale=0.01, size=log_probs.shape).astype(np.float32)
    warm = sinkhorn(moved, initial_potentials=cold.potentials)
    assert warm.num_iterations < sinkhorn(moved).num_iterations
    assert (warm.labels == sinkhorn(moved).labels).mean() > 0.99


def test_one_cluster_and_one_row():
    assert sinkhorn(np.zeros((5, 1), np.float32)).labels.tolist() == [0] * 5
    assert sinkhorn(np.zeros((1, 3), np.float32)).converged


def test_takes_tensors_and_other_precisions(rng):
    log_probs = oracle.log_probs(rng, 300, 5)
    expected = sinkhorn(log_probs).labels
    np.testing.assert_array_equal(sinkhorn(tf.constant(log_probs)).labels, expected)
    np.testing.assert_array_equal(sinkhorn(log_probs.astype(np.float64)).labels, expected)
    assert sinkhorn(tf.cast(log_probs, tf.bfloat16)).converged


@pytest.mark.parametrize(
    ("log_probs", "message"),
    [
        (oracle.zeros_but(np.nan, (4, 1)), "nan at row 4, column 1"),
        (oracle.zeros_but(np.inf, (2, 0)), "inf at row 2, column 0"),
        (oracle.zeros_but(-np.inf, (3, slice(None))), "row 3 is all -inf"),
        (oracle.zeros_but(-np.inf, (slice(None), 2)), "column 2 is all -inf"),
        (oracle.zeros_but(3e38, (0, 0)), "overflows float32"),
        (np.zeros((0, 3), np.float32), r"\(0, 3\)"),
        (np.zeros((3,), np.float32), r"\(3,\)"),
        (np.zeros((3, 3), np.int64), "int64"),
    ],
)
def test_refuses_bad_values_by_name(log_probs, message):
    with pytest.raises(ValueError, match=message):
        sinkhorn(log_probs)


@pytest.mark.parametrize(
    "arguments",
    [
        {"lam": 0.0},
        {"lam": float("nan")},
        {"tolerance": 1e-9},
        {"tolerance": float("inf")},
        {"max_iterations": 0},
        {"max_iterations": 50.0},
        {"max_iterations": 2**31},
        {"lam": 1e-46},
        {"initial_potentials": [0.0]},
        {"storage": "float64"},
        {"num_threads": 0},
        {"marginals": "equal"},
        {"marginals": "zipf:x"},
        {"marginals": [1.0, 0.0]},
        {"marginals": [1.0, 1.0, 1.0]},
        {"known": [0, 1, 2, -1]},
        {"known": [0.0, 0.0, 0.0, 0.0]},
        {"known": [0, 1, 0, 1]},
        {"known": [0, 0, 0, -1]},
    ],
)
def test_refuses_bad_arguments_by_name(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        sinkhorn(np.zeros((4, 2), np.float32), **arguments)


@pytest.mark.parametrize("name", oracle.HARD)
def test_hard_problems_converge_to_the_float64_optimum(rng, name):
    """The marginals at the potentials returned, computed in float64, are right, so that the dual is at its maximum."""
    log_probs, lam = oracle.hard_problem(name, rng)
    result = sinkhorn(log_probs, lam=lam)
    num_clusters = log_probs.shape[1]
    mass = oracle.marginals(lam * log_probs.astype(np.float64), result.potentials.astype(np.float64))
    assert result.converged
    assert np.abs(mass - 1 / num_clusters).sum() <= 1.2e-3  # Float32 potentials of thousands resolve 1e-4.
    assert abs(np.abs(mass - 1 / num_clusters).sum() - result.marginal_error) <= 2e-4
    assert np.isfinite(result.potentials).all()


@pytest.mark.parametrize("name", oracle.HARD)
@pytest.mark.parametrize("passes", [1, 2, 7])
def test_a_solve_cut_short_says_so_and_has_not_gone_astray(rng, name, passes):
    log_probs, lam = oracle.hard_problem(name, rng)
    result = sinkhorn(log_probs, lam=lam, max_iterations=passes)
    scores = lam * log_probs.astype(np.float64)
    assert result.num_iterations <= passes
    assert result.converged == (result.marginal_error <= 1e-3)
    assert np.isfinite(result.potentials).all()
    gained = oracle.dual(scores, result.potentials.astype(np.float64)) - oracle.dual(scores, np.zeros(scores.shape[1]))
    assert gained >= -1e-6 * (1 + np.abs(scores[np.isfinite(scores)]).max())


@pytest.mark.slow
def test_marginals_that_cannot_be_met_are_a_reported_outcome(rng):
    """Four fifths of the rows may not go to the second of two clusters, which is to have half."""
    log_probs = rng.normal(size=(1000, 2)).astype(np.float32)
    log_probs[:800, 1] = -np.inf
    result = sinkhorn(log_probs)
    assert not result.converged
    assert result.num_iterations < 2000  # Not 10,000: the solve ends when potentials run away.
    assert result.marginal_error == pytest.approx(0.6, abs=1e-3)
    assert np.isfinite(result.potentials).all()
    assert (result.labels[800:] == 1).all()


def test_certificate(rng):
    """Primal and dual agree with float64, and the dual bounds the objective of a plan with these marginals."""
    log_probs = oracle.log_probs(rng, 600, 12)
    result = sinkhorn(log_probs, tolerance=1e-5)
    q = result.plan(log_probs).q * 600
    entropy = -(q * np.log(np.maximum(q, 1e-300))).sum(axis=1)
    assert result.primal == pytest.approx(((q * log_probs).sum(axis=1) + entropy / 25.0).mean(), abs=1e-5)
    assert result.dual == pytest.approx(
        -oracle.dual(25.0 * log_probs.astype(np.float64), result.potentials.astype(np.float64)) / 25.0, abs=1e-5
    )
    assert abs(result.duality_gap) < 1e-5
    columns = np.repeat(np.arange(12), 50)
    rows, places = linear_sum_assignment(-log_probs[:, columns])
    loose = sinkhorn(log_probs, max_iterations=2)
    for solved in (result, loose):
        assert log_probs[rows, columns[places]].mean() <= solved.dual + 1e-6


def test_the_number_of_threads_and_where_the_rows_lie_change_nothing(rng, tmp_path):
    log_probs = oracle.log_probs(rng, 30_011, 96)
    one = sinkhorn(log_probs, num_threads=1)
    assert len(Rows(log_probs, lam=1.0)._starts) > 1
    np.save(tmp_path / "rows.npy", log_probs)
    for source in (tf.constant(log_probs), np.load(tmp_path / "rows.npy", mmap_mode="r")):
        other = sinkhorn(source, num_threads=2)
        np.testing.assert_array_equal(other.potentials, one.potentials)
        np.testing.assert_array_equal(other.labels, one.labels)
        assert other.marginal_error == one.marginal_error


@pytest.mark.parametrize("num_rows", [700, 20_011])
def test_rows_computed_from_features_are_the_same_rows(rng, num_rows):
    features = rng.normal(size=(num_rows, 16)).astype(np.float32)
    kernel, bias = rng.normal(size=(16, 64)).astype(np.float32), rng.normal(size=64).astype(np.float32)
    logits = features @ kernel + bias
    stored = sinkhorn(logits)
    computed = sinkhorn(LinearLogits(features, kernel, bias))
    assert computed.converged
    assert (computed.labels == stored.labels).mean() >= 0.999
    assert computed.dual == pytest.approx(stored.dual, abs=1e-4)


def test_a_large_solve_says_what_it_takes(rng, monkeypatch, capsys):
    monkeypatch.setattr(module, "_LARGE", 1000)
    sinkhorn(oracle.log_probs(rng, 500, 8))
    assert not any(capsys.readouterr())
    sinkhorn(oracle.log_probs(rng, 500, 8), verbose=True)
    assert "sinkhorn: 500 x 8; 0.0 GB of stored rows; about" in capsys.readouterr().err


def test_known_labels_are_kept_and_count(rng):
    log_probs = oracle.log_probs(rng, 2000, 8)
    known = np.full(2000, -1)
    known[:200] = rng.integers(0, 4, 200)
    result = sinkhorn(log_probs, known=known, tolerance=1e-5)
    np.testing.assert_array_equal(result.labels[:200], known[:200])
    free = oracle.marginals(25.0 * log_probs[200:].astype(np.float64), result.potentials.astype(np.float64)) * 1800
    np.testing.assert_allclose(free + np.bincount(known[:200], minlength=8), 250, atol=0.05)
