"""Tests of the parts of the solve: the compiled passes, the accelerators, and the safeguards against bad proposals."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import tensorflow as tf

from sela_tf.transport import acceleration, coarse, lists, passes, solve
from sela_tf.transport import rows as chunks
from sela_tf.transport.linear_logits import LinearLogits
from sela_tf.transport.newton import newton
from sela_tf.transport.rows import Rows
from sela_tf.transport.sinkhorn import sinkhorn
from sela_tf.transport.target import Target


def test_compiled_once_for_many_row_counts(rng):
    for lam, tolerance in ((25.0, 1e-3), (17.0, 0.01)):
        sinkhorn(oracle.log_probs(rng, 8300, 8), lam=lam, tolerance=tolerance)
    before = passes.measure.num_signatures
    for num_rows in (8200, 8345, 8500, 8999, 9200):
        sinkhorn(oracle.log_probs(rng, num_rows, 8), lam=17.0, tolerance=0.01)
    assert passes.measure.num_signatures == before


def test_compiled_once_for_all_chunks(rng, monkeypatch):
    """XLA makes the same program for every chunk of a tensor: one for which the first row was a constant would be compiled each time."""
    monkeypatch.setattr(chunks, "_ENTRIES_TO_SHARE", 1000)
    table = tf.constant(rng.normal(size=(1000, 8)), tf.float32)
    rows = Rows(table, lam=1.0)
    programs: dict[str, set[str]] = {}
    for start in rows._starts:
        chunk = rows._chunk(start, passes.ChunkRows(table, tf.constant(start)))
        lam, v, log_rows = tf.constant(1.0), tf.zeros([8]), tf.zeros([len(chunk.weights)])
        weights, block_rows = chunk.weights, rows._exact_block_rows
        for function, arguments in (
            (passes.measure, (weights, chunk.num_rows, lam, v, tf.constant(20.0), block_rows, "near")),
            (passes.log_mass, (weights, log_rows, lam, v, block_rows)),
            (passes.absorb, (weights, log_rows, lam, v, block_rows, tf.float16)),
            (passes.argmax, (weights, chunk.num_rows, lam, v, block_rows)),
        ):
            program = function.function.experimental_get_compiler_ir(chunk.rows, *arguments)(stage="hlo")
            programs.setdefault(function.__name__, set()).add(program)
    assert len(rows._starts) > 1
    assert {name: len(each) for name, each in programs.items()} == dict.fromkeys(("measure", "log_mass", "absorb", "argmax"), 1)


@pytest.mark.parametrize("num_clusters", [128, 1000, *(pytest.param(k, marks=pytest.mark.slow) for k in (1024, 3000, 40_000))])
def test_threads_share_no_ynnpack_call(rng, monkeypatch, num_clusters):
    """TensorFlow 2.21 crashes now and then where threads share an executable that calls YNNPACK."""
    called = []
    call = passes.Compiled.__call__
    monkeypatch.setattr(
        passes.Compiled, "__call__", lambda self, *arguments: called.append((self, arguments)) or call(self, *arguments)
    )
    features = rng.normal(size=(500, 16)).astype(np.float32)
    kernel = rng.normal(size=(16, num_clusters)).astype(np.float32)
    for source in (features @ kernel, LinearLogits(features, kernel, np.zeros(num_clusters, np.float32))):
        rows, v = Rows(source, lam=1.0, num_threads=2), np.zeros(num_clusters)
        rows.absorb(v, rows.measure(v).log_rows, tf.float16).measure(v)
        rows.measure_and_list(v, 20.0)
        rows.measure_and_store(v, tf.float16)
        rows.labels(v)
    assert {function.__name__ for function, _ in called} == {"measure", "absorb", "stored_mass", "argmax"}
    for function, arguments in called:
        assert "ynn" not in function.function.experimental_get_compiler_ir(*arguments)(stage="optimized_hlo"), function.__name__


def test_padding_is_not_seen(rng):
    """The same rows give the same potentials whether they fill their blocks or not."""
    log_probs = oracle.log_probs(rng, 129, 8)
    few = sinkhorn(log_probs, tolerance=1e-5)
    twice = sinkhorn(np.concatenate([log_probs, log_probs]), tolerance=1e-5)
    np.testing.assert_allclose(few.potentials, twice.potentials, atol=1e-2)
    np.testing.assert_array_equal(few.labels, twice.labels[:129])


@pytest.mark.parametrize("storage", ["float16", *(pytest.param(each, marks=pytest.mark.slow) for each in ("float32", "none"))])
def test_anderson_alone_reaches_the_same_optimum(rng, storage, monkeypatch):
    """Anderson-accelerated Sinkhorn reaches the optimum without Newton's method."""
    monkeypatch.setattr(lists, "_look_at", lambda *_: None)
    log_probs = oracle.log_probs(rng, 3000, 48)
    result = sinkhorn(log_probs, lam=50.0, storage=storage, tolerance=2e-4)
    assert result.converged
    best = oracle.sinkhorn(log_probs, 50.0)
    assert (result.labels == (50.0 * log_probs + best).argmax(axis=1)).mean() >= 0.999


def test_an_end_is_not_given_up_for_the_rounding_of_its_dual(rng, monkeypatch):
    """A state with the right marginals whose dual was measured a little too low ends the solve all the same."""
    monkeypatch.setattr(lists, "_look_at", lambda *_: None)
    log_probs = oracle.log_probs(rng, 3000, 48)
    usual = sinkhorn(log_probs, lam=50.0)

    class Rounded(solve.State):
        def __init__(self, *args):
            super().__init__(*args)
            self.dual -= 100.0 * (self.error <= 1e-3)

    monkeypatch.setattr(solve, "State", Rounded)
    result = sinkhorn(log_probs, lam=50.0)
    assert result.converged
    assert result.num_iterations == usual.num_iterations
    np.testing.assert_array_equal(result.potentials, usual.potentials)


def test_lists_are_given_up_with_newtons_method(rng, monkeypatch):
    """Four fifths of the rows may not go to the second of two clusters: Newton's method ends after its rounds, and another goes on."""
    newton_, calls = solve.newton, []
    monkeypatch.setattr(solve, "newton", lambda *args: calls.append(args) or newton_(*args))
    monkeypatch.setattr(solve, "_MAX_NEWTON_ROUNDS", 3)
    log_probs = rng.normal(size=(1000, 2)).astype(np.float32)
    log_probs[:800, 1] = -np.inf
    assert sinkhorn(log_probs, max_iterations=8).num_iterations == 8
    assert len(calls) == 3


def proposed(rows, v, target):
    """The potentials that Newton's method ends at, on lists made at v."""
    _, made = lists.ListMaker(rows, target, None).measure_and_list(v, 1, np.inf)
    return newton(made.candidates, target, 1e-6)


def test_newton_goes_to_the_optimum_of_sharp_rows_and_declines_others(rng):
    log_probs = oracle.log_probs(rng, 4000, 32, spread=15.0)
    rows, target = Rows(log_probs, lam=25.0), Target(np.full(32, 1 / 32))
    v = np.zeros(32)
    for _ in range(8):
        v = proposed(rows, v, target)
    assert np.abs(np.exp(rows.measure(v).log_mass) - 1 / 32).sum() < 1e-5
    assert not lists.are_sharp(Rows(log_probs, lam=0.1), np.zeros(32))


def test_annealing_spares_passes_where_potentials_have_far_to_go(rng, monkeypatch):
    log_probs, lam = oracle.hard_problem("one-hot on an eighth", rng)
    annealed = sinkhorn(log_probs, lam=lam)
    monkeypatch.setattr(solve, "_PATIENCE", 10**9)
    assert annealed.converged
    assert 2 * annealed.num_iterations < sinkhorn(log_probs, lam=lam).num_iterations


def test_single_precision_takes_over_where_half_has_no_room(rng):
    log_probs, lam = oracle.hard_problem("prime", rng)
    assert sinkhorn(log_probs, lam=lam).num_iterations < 26  # It takes 31 in half precision.


def test_rows_that_do_not_count_are_in_no_sum(rng):
    log_probs = oracle.log_probs(rng, 4000, 32, spread=15.0)
    counted = np.arange(4000) % 3 > 0
    rows, some = Rows(log_probs, lam=25.0, counted=counted), Rows(log_probs[counted], lam=25.0)
    v, target = rng.normal(size=32), Target(np.full(32, 1 / 32))
    measured, expected = rows.measure(v), some.measure(v)
    np.testing.assert_allclose(measured.log_mass, expected.log_mass, atol=1e-5)
    assert measured.mean_log_row == pytest.approx(expected.mean_log_row, rel=1e-6)
    for _ in range(8):
        v = proposed(rows, v, target)
    assert np.abs(np.exp(some.measure(v).log_mass) - 1 / 32).sum() < 1e-5


def test_newton_lists_grow_with_the_clusters(rng):
    """Five candidates a row are too few here: without more, Anderson-accelerated Sinkhorn would take 77 passes."""
    log_probs = oracle.log_probs(rng, 4000, 512, spread=8.0)
    result = sinkhorn(log_probs)
    assert result.converged
    assert result.num_iterations <= 25


def test_an_acceleration_that_lowers_the_dual_is_given_up(rng, monkeypatch):
    """The iteration converges with the plain steps that remain, one every other pass."""
    rows, v, log_rows, target = _first_look(oracle.log_probs(rng, 1000, 16), lam=2.0)
    measure = rows.absorb(v, log_rows, tf.float32).measure
    plain = acceleration.anderson(measure, v, target, tolerance=1e-4, max_iterations=200)
    monkeypatch.setattr(acceleration, "_correction", lambda points, *_: 3 * np.random.default_rng(0).normal(size=len(points[0])))
    spoiled = acceleration.anderson(measure, v, target, tolerance=1e-4, max_iterations=200)
    assert max(plain.error, spoiled.error) <= 1e-4
    assert spoiled.num_iterations > plain.num_iterations


def _first_look(log_probs, lam):
    rows, num_clusters = Rows(log_probs, lam=lam), log_probs.shape[1]
    v = np.zeros(num_clusters)
    return rows, v, rows.measure(v).log_rows, Target(np.full(num_clusters, 1 / num_clusters))


def test_a_proposal_that_lowers_the_dual_is_given_up(rng, monkeypatch):
    """The solve converges whatever an accelerator proposes."""
    rng = np.random.default_rng(0)
    monkeypatch.setattr(solve, "newton", lambda candidates, *_: candidates.potentials + 50 * rng.normal(size=16))
    log_probs = oracle.log_probs(rng, 1000, 16)
    result = sinkhorn(log_probs)
    assert result.converged
    assert oracle.dual(25.0 * log_probs, oracle.sinkhorn(log_probs, 25.0)) - oracle.dual(25.0 * log_probs, result.potentials) < 1e-3


def test_a_coarse_start_spares_passes(rng, monkeypatch):
    """A start on a share of the rows saves passes where zero potentials are far off."""
    log_probs = oracle.log_probs(rng, 140_000, 32, spread=0.02) - 0.2 * (np.arange(32) < 20).astype(np.float32)
    with_start = sinkhorn(log_probs)
    monkeypatch.setattr(coarse, "_ENTRIES", 2**40)
    without = sinkhorn(log_probs)
    assert with_start.converged
    assert with_start.num_iterations < without.num_iterations
    assert (with_start.labels == without.labels).mean() > 0.99
