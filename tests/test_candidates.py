"""Tests of the lists of candidates: what they hold, what follows from them, and that labels do not depend on what they lack."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import tensorflow as tf
from scipy.special import logsumexp, softmax

from sela_tf.transport import lists, solve
from sela_tf.transport.candidates import BYTES_PER_CANDIDATE, BYTES_PER_ROW, Candidates
from sela_tf.transport.linear_logits import LinearLogits
from sela_tf.transport.rows import Rows
from sela_tf.transport.sinkhorn import sinkhorn
from sela_tf.transport.target import Target

K, LAM = 24, 25.0


def lists_of(rows: Rows, v: np.ndarray, cutoff: float) -> Candidates:
    measured, near = rows.measure_and_list(v, cutoff)
    return Candidates(near, rows.that_count(measured.log_rows), v, cutoff)


@pytest.mark.parametrize("form", ["array", "tensor", "bfloat16", "computed", "some count"])
def test_lists_hold_what_is_near(rng, form):
    """Two million entries in several chunks, of which the last overlaps the one before."""
    features = rng.normal(size=(9001, 16)).astype(np.float32)
    kernel = rng.normal(size=(16, 256)).astype(np.float32)
    logits = features @ kernel
    if form == "bfloat16":
        logits = tf.cast(tf.cast(logits, tf.bfloat16), tf.float32).numpy()
    counted = rng.random(9001) < 0.6 if form == "some count" else None
    source = {
        "tensor": tf.constant(logits),
        "bfloat16": tf.cast(logits, tf.bfloat16),
        "computed": LinearLogits(features, kernel, np.zeros(256, np.float32)),
    }.get(form, logits)
    v = rng.normal(size=256)
    measured, near = Rows(source, lam=4.0, counted=counted, num_threads=2).measure_and_list(v, 20.0)
    scores = 4.0 * (logits if counted is None else logits[counted]).astype(np.float64)
    top = logsumexp(scores + v, axis=1, keepdims=True)
    row, column = np.nonzero(scores + v >= top - 20.0)
    counts = np.concatenate([each.counts for each in near])
    assert len(counts) == len(scores)
    # An entry at the very edge may fall to either side, as passes are float32.
    assert abs(counts.sum() - len(row)) <= 2e-4 * len(row)
    listed = np.stack([np.repeat(np.arange(len(scores)), counts), np.concatenate([each.columns for each in near])])
    assert np.isin(listed[0] * 256 + listed[1], row * 256 + column).mean() > 0.9998
    expected = (scores - top)[listed[0], listed[1]]
    np.testing.assert_allclose(np.concatenate([each.scores for each in near]), expected, atol=2e-4)
    assert measured.mean_log_row == pytest.approx(top.mean(), rel=1e-6)


def test_masses_and_the_dual_at_other_potentials_are_those_of_all_entries(rng):
    log_probs = oracle.log_probs(rng, 3000, K, spread=10.0)
    v, other = rng.normal(size=K), 4 * rng.normal(size=K)
    candidates = lists_of(Rows(log_probs, lam=LAM), v, 60.0)
    at = candidates.evaluate(other)
    measured, expected = candidates.measured(at), Rows(log_probs, lam=LAM).measure(other)
    np.testing.assert_allclose(np.exp(measured.log_mass), np.exp(expected.log_mass), atol=1e-6)
    assert measured.mean_log_row == pytest.approx(expected.mean_log_row, rel=1e-6)
    far = 900 * rng.normal(size=K)  # Exponentials of such differences overflow.
    assert candidates.evaluate(far).mass.sum() == pytest.approx(1)


def test_what_is_missing_weighs_no_more_than_its_bound(rng):
    log_probs = oracle.log_probs(rng, 1000, K, spread=3.0)
    v = np.zeros(K)
    for cutoff in (5.0, 15.0, 40.0):
        candidates = lists_of(Rows(log_probs, lam=LAM), v, cutoff)
        is_listed = softmax(LAM * log_probs.astype(np.float64), axis=1) >= np.exp(-cutoff)
        for scale in (0.0, 1.0, 10.0):
            other = scale * rng.normal(size=K)
            weight = (softmax(LAM * log_probs.astype(np.float64) + other, axis=1) * ~is_listed).sum(axis=1)
            missing = candidates.missing(other, candidates.evaluate(other))
            assert weight.max() <= missing.worst * 1.01
            assert weight.mean() <= missing.mean * 1.01


def test_labels_that_lists_may_lack_are_looked_up(rng):
    """Potentials far from those of the lists: an entry that is not listed is the best of many rows, and these say so."""
    log_probs = oracle.log_probs(rng, 3000, K, spread=10.0)
    rows, v, other = Rows(log_probs, lam=LAM), np.zeros(K), 40 * rng.normal(size=K)
    labels = lists_of(rows, v, 20.0).labels(other, rows.measure(other).log_rows)
    best = (LAM * log_probs.astype(np.float64) + other).argmax(axis=1)
    sure = labels >= 0
    assert 0.1 < sure.mean() < 0.9
    np.testing.assert_array_equal(labels[sure], best[sure])


@pytest.mark.parametrize("num_known", [0, 500])
def test_labels_are_the_argmax_of_all_scores(rng, monkeypatch, num_known):
    """Also with lists that are short, so that rows are looked up, and with known labels."""
    log_probs = oracle.log_probs(rng, 4000, K, spread=12.0)
    known = np.full(4000, -1)
    known[:num_known] = np.arange(num_known) % K
    for reach in (21.0, 60.0):
        monkeypatch.setattr(lists, "USUAL_CUTOFF", reach)
        result = sinkhorn(log_probs, known=known)
        assert result.converged
        expected = (LAM * log_probs + result.potentials).argmax(axis=1)
        np.testing.assert_array_equal(result.labels[:num_known], known[:num_known])
        assert (result.labels[num_known:] == expected[num_known:]).mean() > 0.9995


def test_a_warm_start_nearby_takes_one_pass(rng):
    """Where potentials move less than lists reach, no pass is needed to measure them; the marginals are right all the same."""
    log_probs = oracle.log_probs(rng, 4000, K, spread=12.0)
    before = sinkhorn(log_probs + 0.05 * rng.normal(size=log_probs.shape).astype(np.float32))
    result = sinkhorn(log_probs, initial_potentials=before.potentials)
    assert result.num_iterations == 1
    mass = softmax(LAM * log_probs.astype(np.float64) + result.potentials, axis=1).mean(axis=0)
    assert np.abs(mass - 1 / K).sum() <= 1.05e-3
    assert np.abs(mass - 1 / K).sum() == pytest.approx(result.marginal_error, abs=2e-5)


def test_entries_far_below_their_row_weigh_what_they_do(rng):
    """A pass takes entries that are very far for nearer ones: no cluster that has only such gets a mass from them."""
    log_probs = oracle.log_probs(rng, 500, 8)
    log_probs[:, 3] = -40.0
    measured = Rows(log_probs, lam=LAM).measure(np.zeros(8))
    scores = LAM * log_probs.astype(np.float64)
    expected = logsumexp(scores - logsumexp(scores, axis=1, keepdims=True), axis=0) - np.log(500)
    assert expected[3] < -500
    np.testing.assert_allclose(measured.log_mass, expected, rtol=1e-4, atol=1e-4)


def test_a_start_on_a_share_of_the_rows_judges_no_values(rng):
    """A cluster that only one row may have, and a value that is not finite: neither is a matter of the rows of the start."""
    log_probs = oracle.log_probs(rng, 140_000, 32, spread=0.02) - 0.2 * (np.arange(32) < 20).astype(np.float32)
    log_probs[np.arange(140_000) % 100 > 0, 5] = -np.inf
    log_probs[::34, 5] = -np.inf
    result = sinkhorn(tf.constant(log_probs), max_iterations=3)
    assert np.isfinite(result.potentials).all()
    log_probs[77_777, 3] = np.nan
    with pytest.raises(ValueError, match=r"nan at row 77777, column 3 \(1 of 140000 rows"):
        sinkhorn(log_probs)


@pytest.mark.parametrize("bounds", [{}, {"size_min": 625, "size_max": 625}, {"size_min": 400, "size_max": 800}])
def test_lists_of_a_share_of_the_rows_lead_to_the_optimum_of_all(rng, monkeypatch, bounds):
    """There is room for the lists of a tenth of the rows; the marginals are those of all rows all the same."""
    features, kernel = rng.normal(size=(20_000, 16)).astype(np.float32), 0.5 * rng.normal(size=(16, 32)).astype(np.float32)
    source, whole = LinearLogits(features, kernel, np.zeros(32, np.float32)), features @ kernel
    listed, list_share = [], lists.ListMaker._list_share
    monkeypatch.setattr(lists.ListMaker, "_list_share", lambda *args: listed.append(args[-1]) or list_share(*args))
    room = 2000 * (4 * BYTES_PER_CANDIDATE + features[0].nbytes)
    result, best = sinkhorn(source, memory_limit=room, **bounds), sinkhorn(whole, tolerance=1e-5, **bounds)
    assert len(listed) == result.num_iterations <= 12
    assert max(listed) < 5000
    assert result.converged
    mass = softmax(LAM * whole.astype(np.float64) + result.potentials, axis=1).mean(axis=0)
    least, most = (bounds.get(name, 625) / 20_000 for name in ("size_min", "size_max"))
    assert np.maximum(least - mass, mass - most).max() <= 1e-3
    assert result.dual == pytest.approx(best.dual, abs=1e-5)
    scores = LAM * whole.astype(np.float64) + result.potentials
    np.testing.assert_allclose(scores[np.arange(20_000), result.labels], scores.max(axis=1), atol=1e-3)


@pytest.mark.parametrize("bounds", [{}, {"size_min": 400, "size_max": 800}])
def test_near_the_optimum_lists_of_the_tops_of_all_rows_spare_passes(rng, monkeypatch, bounds):
    """There is room for two candidates of each row, on average."""
    features, kernel = rng.normal(size=(20_000, 16)).astype(np.float32), 0.5 * rng.normal(size=(16, 32)).astype(np.float32)
    features[::100] = 0  # Rows of equal entries have none near their log-sum-exp.
    source, whole = LinearLogits(features, kernel, np.zeros(32, np.float32)), features @ kernel
    arguments = {"lam": 16.0, "tolerance": 1e-5, "memory_limit": 20_000 * (2 * BYTES_PER_CANDIDATE + BYTES_PER_ROW), **bounds}
    made, measure_and_list = [], lists.ListMaker.measure_and_list
    monkeypatch.setattr(lists.ListMaker, "measure_and_list", _recording(measure_and_list, made))
    result = sinkhorn(source, **arguments)
    assert result.converged
    assert len(made) <= result.num_iterations <= 6
    ends = [each.candidates.cutoff for _, each in made if not each.are_of_share]
    assert ends
    assert max(ends) < 20
    assert not any(each.are_whole for _, each in made)
    for _, each in made:
        if not each.are_of_share:
            taken = len(each.candidates._columns) * BYTES_PER_CANDIDATE + len(each.candidates._starts) * BYTES_PER_ROW
            assert taken <= 1.1 * arguments["memory_limit"]
    mass = softmax(16.0 * whole.astype(np.float64) + result.potentials, axis=1).mean(axis=0)
    least, most = (bounds.get(name, 625) / 20_000 for name in ("size_min", "size_max"))
    assert np.maximum(least - mass, mass - most).clip(0).sum() <= 1e-5
    made.clear()
    rough = sinkhorn(source, **{**arguments, "tolerance": 1e-3})
    assert len(made) == rough.num_iterations - 1  # Nothing is listed in the pass that finds the labels.
    scores = 16.0 * whole.astype(np.float64) + rough.potentials
    np.testing.assert_allclose(scores[np.arange(20_000), rough.labels], scores.max(axis=1), atol=1e-3)
    monkeypatch.setattr(lists, "MOST_MISSED", 0.0)
    assert sinkhorn(source, **arguments).num_iterations > result.num_iterations


@pytest.mark.parametrize("width", [0.0, 1e-3, 0.3, 1.0])
def test_the_target_of_a_part_can_be_reached_and_is_where_the_part_is_at_the_solution(rng, width):
    lower = rng.dirichlet(np.ones(K)) * (1 - width / 2)
    target = Target(lower, lower + width * rng.dirichlet(np.ones(K))) if width else Target(lower)
    solution, mass, part = (target.lower + target.upper) / (target.lower + target.upper).sum(), *rng.dirichlet(np.ones(K), 2)
    for aim in (target.scaled(part / mass), target.scaled(part / solution)):
        assert aim.lower.sum() <= 1 + 1e-12
        assert aim.upper.sum() >= 1 - 1e-12
    assert (aim.lower <= part + 1e-12).all()
    assert (aim.upper >= part - 1e-12).all()


def test_a_share_keeps_within_the_limit_with_the_rows_that_it_copies(rng, monkeypatch):
    """A row of 512 features takes more than its candidates."""
    features, kernel = rng.normal(size=(20_000, 512)).astype(np.float32), 0.1 * rng.normal(size=(512, 32)).astype(np.float32)
    copied, list_share, room = [], lists.ListMaker._list_share, 3_000_000

    def listing(self, *args):
        made = list_share(self, *args)
        copied.append(self._share.num_rows * features[0].nbytes)
        return made

    monkeypatch.setattr(lists.ListMaker, "_list_share", listing)
    assert sinkhorn(LinearLogits(features, kernel, np.zeros(32, np.float32)), memory_limit=room).converged
    assert room / 2 < max(copied) <= room


def test_a_proposal_from_a_share_that_lowers_the_dual_is_halved(rng, monkeypatch):
    """Newton's method that goes six times as far as it should needs no other method: a part of the way is good again."""
    features, kernel = rng.normal(size=(20_000, 16)).astype(np.float32), 0.5 * rng.normal(size=(16, 32)).astype(np.float32)
    source, room = LinearLogits(features, kernel, np.zeros(32, np.float32)), 2000 * (4 * BYTES_PER_CANDIDATE + features[0].nbytes)
    newton, measured = solve.newton, []

    def too_far(candidates, *args):
        return candidates.potentials + 6.0 * (newton(candidates, *args) - candidates.potentials)

    monkeypatch.setattr(solve, "newton", too_far)
    monkeypatch.setattr(lists.ListMaker, "measure_and_list", _recording(lists.ListMaker.measure_and_list, measured))
    result = sinkhorn(source, memory_limit=room)
    assert result.converged
    assert len(measured) == result.num_iterations
    assert all(made is not None for made in measured)


def _recording(method, results):
    """The method, whose results are also added to a list."""

    def recorded(*args):
        results.append(method(*args))
        return results[-1]

    return recorded
