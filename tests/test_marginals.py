"""Tests of clusters of unequal sizes."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sela_tf.transport.marginals import check_marginals, rounded_sizes
from sela_tf.transport.sinkhorn import sinkhorn


def test_a_vector_is_the_clusters_shares_in_their_order(rng):
    log_probs = oracle.log_probs(rng, 3000, 5)
    shares = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    result = sinkhorn(log_probs, marginals=shares, tolerance=1e-5)
    np.testing.assert_allclose(result.marginals, shares / 15)
    mass = oracle.marginals(25.0 * log_probs.astype(np.float64), result.potentials.astype(np.float64))
    np.testing.assert_allclose(mass, shares / 15, atol=1e-5)


@pytest.mark.parametrize("prior", ["zipf", "zipf:0.5", "gaussian", "gaussian:0.4"])
def test_a_prior_gives_the_largest_share_to_the_largest_cluster(rng, prior):
    log_probs = oracle.log_probs(rng, 4000, 12)
    present = oracle.marginals(25.0 * log_probs.astype(np.float64), np.zeros(12))
    result = sinkhorn(log_probs, marginals=prior)
    np.testing.assert_array_equal(np.argsort(result.marginals), np.argsort(present))
    np.testing.assert_allclose(np.sort(result.marginals)[::-1], check_marginals(prior, 12))
    sizes = np.bincount(result.labels, minlength=12) / 4000
    assert np.corrcoef(sizes, result.marginals)[0, 1] > 0.98


def test_priors_are_what_their_names_say():
    zipf = check_marginals("zipf", 100)
    np.testing.assert_allclose(zipf[0] / zipf[[1, 9, 99]], [2, 10, 100])
    gaussian = check_marginals("gaussian:0.2", 1000) * 1000
    assert gaussian.mean() == pytest.approx(1)
    assert gaussian.std() == pytest.approx(0.2, rel=0.02)
    np.testing.assert_allclose(check_marginals("zipf:0", 7), 1 / 7)
    assert check_marginals("gaussian:1", 1000).min() > 0


@settings(deadline=None)
@given(shares=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=30), num_rows=st.integers(1, 10_000))
def test_sizes_are_whole_and_as_near_as_they_can_be(shares, num_rows):
    target = check_marginals(shares, len(shares))
    sizes = rounded_sizes(target, num_rows)
    assert sizes.sum() == num_rows
    assert np.abs(sizes - target * num_rows).max() < 1
    rounded_up = sizes > np.floor(target * num_rows)
    remainders = target * num_rows % 1
    assert remainders[rounded_up].min(initial=1) >= remainders[~rounded_up].max(initial=0)


@pytest.mark.parametrize("name", ["poisson", "zipf:", "zipf:-1", "zipf:99", "gaussian:2", "gaussian:nan", ""])
def test_refuses_unknown_priors(name):
    with pytest.raises(ValueError, match="marginals"):
        check_marginals(name, 4)
