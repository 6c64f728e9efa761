"""The transport and the rounding together, as training calls them, and the files of known labels."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sela_tf.transport import assignment as module
from sela_tf.transport.assignment import assign_labels
from sela_tf.transport.sinkhorn import sinkhorn


def _objective(log_probs: np.ndarray, labels: np.ndarray) -> float:
    return float(-np.take_along_axis(log_probs, labels[:, np.newaxis], axis=1).mean(dtype=np.float64))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), num_clusters=st.sampled_from([2, 7, 12]), change=st.floats(0.01, 3))
def test_the_objective_falls_at_every_relabelling(seed, num_clusters, change):
    """Whatever the network has become since: the labels of before were feasible, and the new ones are the best."""
    rng = np.random.default_rng(seed)
    log_probs = oracle.log_probs(rng, 500, num_clusters)
    labels = rng.permutation(np.arange(500) % num_clusters)
    potentials = None
    for _ in range(4):
        new = assign_labels(log_probs, initial_potentials=potentials)
        assert set(np.bincount(new.labels, minlength=num_clusters)) <= {500 // num_clusters, -(-500 // num_clusters)}
        assert _objective(log_probs, new.labels) <= _objective(log_probs, labels) + 1e-5
        labels, potentials = new.labels, new.potentials
        log_probs = log_probs + change * rng.normal(size=log_probs.shape).astype(np.float32)


def test_marginals_become_whole_sizes(rng):
    log_probs = oracle.log_probs(rng, 1003, 6)
    shares = np.array([0.3, 0.3, 0.2, 0.1, 0.05, 0.05])
    assigned = assign_labels(log_probs, marginals=shares)
    sizes = np.bincount(assigned.labels, minlength=6)
    np.testing.assert_array_equal(sizes, assigned.sizes)
    assert np.abs(sizes - 1003 * shares).max() < 1


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), held=st.integers(1, 300), prior=st.sampled_from(["uniform", "zipf", "gaussian"]))
def test_known_labels_are_kept_and_count(seed, held, prior):
    rng = np.random.default_rng(seed)
    log_probs = oracle.log_probs(rng, 400, 5)
    known = np.full(400, -1)
    known[rng.permutation(400)[:held]] = np.arange(held) % 5
    try:
        assigned = assign_labels(log_probs, marginals=prior, known=known)
    except ValueError as error:
        if prior != "zipf" or "`known` has" not in str(error):
            raise
        return
    np.testing.assert_array_equal(assigned.labels[known >= 0], known[known >= 0])
    np.testing.assert_array_equal(np.bincount(assigned.labels, minlength=5), assigned.sizes)
    if prior == "uniform":
        assert set(assigned.sizes) == {80}


def test_labels_are_balanced_even_where_the_transport_failed(rng):
    assigned = assign_labels(oracle.log_probs(rng, 300, 6), lam=500.0, max_iterations=1)
    assert not assigned.converged
    assert assigned.exactly_balanced
    assert set(np.bincount(assigned.labels)) == {50}


def test_a_share_that_known_labels_fill_to_the_last_image_is_rounded_up(rng):
    """21 images, 10.5 of each of two clusters, and 11 known of the one that would get 10."""
    known = np.repeat([1, -1], [11, 10])
    assigned = assign_labels(oracle.log_probs(rng, 21, 2), marginals=np.array([1.0, 1.0]), known=known)
    np.testing.assert_array_equal(assigned.sizes, [10, 11])
    np.testing.assert_array_equal(assigned.labels, np.repeat([1, 0], [11, 10]))


@pytest.mark.parametrize("marginals", ["uniform", "zipf:0.5"])
def test_rows_that_hardly_differ_are_rounded_from_colder_transports(rng, monkeypatch, marginals):
    """Logits of a network that sees little difference between images: the soft transport is balanced, its argmax far from it."""
    log_probs = (0.05 * rng.normal(size=(600, 1)) @ rng.normal(size=(1, 12)) + 1e-4 * rng.normal(size=(600, 12))).astype(np.float32)
    known = np.full(600, -1)
    known[:5] = [3, 3, 1, 0, 11]
    solved = sinkhorn(log_probs, marginals=marginals, known=known)
    sizes = np.bincount(solved.labels, minlength=12)
    assert np.maximum(sizes - 600 * solved.marginals, 0).sum() > 0.22 * 600
    lams = []

    def counted(*args, **options):
        lams.append(options["lam"])
        return sinkhorn(*args, **options)

    monkeypatch.setattr(module, "sinkhorn", counted)
    assigned = assign_labels(log_probs, marginals=marginals, known=known)
    assert len(lams) > 1
    assert lams == [25.0 * 4**i for i in range(len(lams))]
    np.testing.assert_array_equal(assigned.potentials, solved.potentials)
    assert (assigned.labels[:5] == known[:5]).all()
    monkeypatch.setattr(module, "_MANY_TO_MOVE", 1.0)
    plain = assign_labels(log_probs, marginals=marginals, known=known)
    np.testing.assert_array_equal(assigned.sizes, plain.sizes)
    assert _objective(log_probs, assigned.labels) == pytest.approx(_objective(log_probs, plain.labels), rel=1e-9)
