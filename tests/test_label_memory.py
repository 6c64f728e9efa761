"""Tests of the memory that a label pass takes; labels do not depend on the form that log-probabilities are kept in."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from fixtures import ROOT

import sela_tf
from sela_tf.transport.assignment import assign_labels, plan_memory
from sela_tf.transport.candidates import BYTES_PER_CANDIDATE
from sela_tf.transport.sinkhorn import sinkhorn


def logits(rng, num_rows: int, num_clusters: int, *, scale: float) -> sela_tf.LinearLogits:
    centres = rng.normal(size=(2 * num_clusters, 16))
    features = centres[rng.integers(0, 2 * num_clusters, num_rows)] + 0.5 * rng.normal(size=(num_rows, 16))
    kernel = scale * rng.normal(size=(16, num_clusters))
    return sela_tf.LinearLogits(*(array.astype(np.float32) for array in (features, kernel, np.zeros(num_clusters))))


def test_the_most_precise_way_that_fits_is_taken():
    entries = 1000 * 1024
    lists = 8 * BYTES_PER_CANDIDATE * 1000
    for limit, source in (
        (6 * entries, "float32"),
        (6 * entries - 1, "float16"),
        (2 * entries + lists, "float16"),
        (2 * entries + lists - 1, "computed"),
        (1, "computed"),
    ):
        plan = plan_memory(1000, 1024, limit)
        assert plan.form == source
        assert plan.log_probs_bytes(1000, 1024) + plan.rest == limit


@pytest.mark.parametrize("scale", [pytest.param(0.01, id="untrained", marks=pytest.mark.slow), pytest.param(2.0, id="trained")])
def test_labels_are_the_same_in_every_form_of_log_probabilities(rng, scale):
    """The forms are float32, float16 and computed from features. The problem is small enough for labels that are the optimum."""
    problem = logits(rng, 1500, 24, scale=scale)
    entries = 1500 * 24
    float32 = assign_labels(problem, memory_limit=6 * entries)
    np.testing.assert_array_equal(float32.labels, assign_labels(problem.log_probs()).labels)
    for limit, source in ((4 * entries, "float16"), (1000, "computed")):
        assert plan_memory(1500, 24, limit).form == source
        other = assign_labels(problem, memory_limit=limit)
        assert (other.labels == float32.labels).mean() >= 0.999
        assert other.marginal_error <= 1e-3


def test_half_precision_forbids_no_cluster(rng):
    far = sela_tf.LinearLogits(np.array([[1.0], [-1.0]], np.float32), np.array([[0.0, 1e6]], np.float32), np.zeros(2, np.float32))
    half = far.half_precision()
    assert half.dtype == np.float16
    assert np.isfinite(half).all()
    some = logits(rng, 300, 20, scale=1.0)
    expected = some.features @ some.kernel
    np.testing.assert_allclose(some.half_precision(), expected - expected.max(axis=1, keepdims=True), atol=0.01, rtol=1e-3)


def test_stored_rows_and_lists_keep_within_the_limit(rng, monkeypatch):
    """Rows are stored only if they fit, and lists get the candidates that there is room for; the solve converges all the same."""
    from sela_tf.transport import rows as module

    problem = logits(rng, 3000, 64, scale=2.0).log_probs()
    listed, stored = [], []
    lists, store = module.Rows.measure_and_list, module.Rows.measure_and_store

    def listing(*args):
        measured, near = lists(*args)
        listed.append(sum(len(each.columns) for each in near))
        return measured, near

    monkeypatch.setattr(module.Rows, "measure_and_list", listing)
    monkeypatch.setattr(module.Rows, "measure_and_store", lambda *args: stored.append(args) or store(*args))
    free = sinkhorn(problem)
    most, room = max(listed), 3000 * 3 * BYTES_PER_CANDIDATE
    assert most * BYTES_PER_CANDIDATE > room
    listed.clear()
    stored.clear()
    bound = sinkhorn(problem, memory_limit=room)
    assert max(listed, default=0) * BYTES_PER_CANDIDATE <= 1.1 * room
    assert not stored
    assert bound.converged
    assert (bound.labels == free.labels).mean() > 0.995


def test_rows_are_stored_anew_in_float32_only_if_they_fit(rng, monkeypatch):
    """A solve whose steps are too long for half precision goes on in single precision, or without stored rows."""
    from sela_tf.transport import lists
    from sela_tf.transport import rows as rows_module
    from sela_tf.transport import solve as module

    problem = rng.normal(size=(400, 16)).astype(np.float32)
    stored, store = [], rows_module.Rows.measure_and_store
    monkeypatch.setattr(rows_module.Rows, "measure_and_store", lambda *args: stored.append(args[-1].name) or store(*args))
    monkeypatch.setattr(lists, "_look_at", lambda *args: None)
    # Half precision that sees no error ends a run of Sinkhorn after its first pass.
    anderson = module.anderson
    monkeypatch.setattr(module, "anderson", lambda *args, **settings: anderson(*args, **{**settings, "max_iterations": 1}))
    for limit, expected in ((None, {"float16", "float32"}), (2 * problem.size, {"float16"})):
        stored.clear()
        sinkhorn(problem, memory_limit=limit, max_iterations=40)
        assert set(stored) == expected


_ALIVE = """
import resource, sys, numpy as np
import sela_tf
from sela_tf.self_labelling.label_pass import compute_labels
N, D, K, T = 60_000, 8, 1000, int(sys.argv[1])
import tensorflow as tf
heads = sela_tf.MultiHead(T, K); heads(tf.zeros([1, D]))
heads.kernel.assign(np.random.default_rng(0).normal(size=(D, T, K)))
features = np.random.default_rng(1).normal(size=(N, D)).astype(np.float32)
table = sela_tf.LabelTable(T, K, N)
peaks = []
def assign(logits, *, initial_potentials):
    log_probs = logits.log_probs()
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return sela_tf.Assignment(log_probs.argmax(axis=1), np.zeros(K, np.float32))
compute_labels(features, heads, table, assign=assign)
print(peaks[-1] - peaks[0])
"""


@pytest.mark.slow
def test_one_matrix_is_alive_at_a_time():
    """The second head's 229 MiB take the place of the first's."""
    done = subprocess.run([sys.executable, "-c", _ALIVE, "3"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 120 * 1024
